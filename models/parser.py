"""FaceParser: what every parser here is, and all that evaluate, predict, export and the hub know of it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from data.batch import FRAME_SIDE, Batch, photo_batch
from data.images import IMAGE_SIDE, as_photo
from data.labels import LabelSet
from data.view import View, framed_images
from geometry.paste import Patch, paste_any, paste_turned
from geometry.sampling import enlarge, enlarged_labels, most_probable, stretch_by, stretch_weights
from geometry.theta import compose, enlarged, frame_to_photo
from models.mirror import Mirrored
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import to_host

BATCH_PIXELS = 2**22  # of photos that are labelled at once, to limit the memory


@dataclass(frozen=True)
class Weights:
    """What a checkpoint file holds of a parser.

    kind: which parser. labels: its label set. config: what the weights were made for, of the parser's ``Config``.
    modules: state dicts of some of its networks, by name. path: the file.
    """

    kind: str
    labels: LabelSet
    config: Any
    modules: dict[str, dict[str, Tensor]]
    path: Path


def check_types(config: Any) -> None:
    """Raises ValueError where a field of a parser's ``Config`` that is declared as int, float, bool or str holds
    another type (True is no int, an int is a float), and for floats that are not finite."""
    for name, declared in get_type_hints(type(config)).items():
        if declared not in (int, float, bool, str):
            continue
        value = getattr(config, name)
        if type(value) is not declared and not (declared is float and type(value) is int):
            raise ValueError(f"{name} must be of type {declared.__name__}, not {checkpoint.shown(value)}")
        if type(value) is float and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")


class Parsed(NamedTuple):
    """labels_BHW: uint8, on the padded photos' grid. theta_BP23: the parser's windows in the frame of each photo, None
    where it has none."""

    labels_BHW: Tensor
    theta_BP23: Tensor | None


class WindowProbs(NamedTuple):
    """What a parser sees of each face of a batch: windows with the probabilities of their labels.

    probs: for each window a tensor (B, 1 + labels, S, S), channel 0 for none of its labels; the windows' labels follow
    one another in the order of the parser's ids, from 1. theta_BP23: the windows in the frame of the batch's view.
    """

    probs: list[Tensor]
    theta_BP23: Tensor


class FaceParser(nn.Module):
    """A network, or several, that name the part of every pixel of a face.

    kind: its name in checkpoints. Config: frozen dataclass of plain values that describes and checks its shape; it
    travels in every checkpoint. networks: the attributes that hold what a checkpoint stores. folded: see ``fold``.
    labels: what it labels. paste: how probabilities are put back onto the photo's grid, "nearest" or "bilinear".
    """

    kind: ClassVar[str]
    Config: ClassVar[type]
    networks: ClassVar[tuple[str, ...]] = ("network",)
    folded: ClassVar[tuple[str, ...]] = ()
    paste: str = "bilinear"

    def __init__(self, config: Any, labels: LabelSet) -> None:
        super().__init__()
        self.config, self.labels = config, labels

    def parse(self, batch: Batch) -> Parsed:
        """Label each photo of a batch on its own pixel grid."""
        canvas_BKHW, theta_BP23 = self.probabilities(batch)
        return Parsed(most_probable(canvas_BKHW, 1), theta_BP23)

    def probabilities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(canvas_BKHW of the labels' probabilities on the padded photos' grid, theta_BP23 as in ``Parsed``)."""
        raise NotImplementedError

    def window_probs(self, batch: Batch) -> WindowProbs:
        """Label each face of a batch in the windows through which the parser sees it, which may be turned."""
        raise NotImplementedError

    def patches(self, batch: Batch, keep_probs: bool = False) -> Iterator[tuple[Patch, np.ndarray]]:
        """Label faces framed in larger photos (``data.batch.framed_batch``): of one after the other its patch on the
        photo's own pixel grid, on the parser's device (see ``on_host``), and theta_P23 (float64) of its windows, in the
        frame of the photo. keep_probs: see ``geometry.paste.paste_turned``."""
        seen = self.window_probs(batch)
        theta_BP23 = View(batch).source(seen.theta_BP23.detach().float()).double().cpu().numpy()  # waits for the device
        height, width = batch.photos_BHW3.shape[1:3]
        return zip(paste_turned(seen.probs, theta_BP23, height, width, self.paste, keep_probs), theta_BP23, strict=True)

    def forward(self, photos_BHW3: Tensor) -> Tensor:
        """photos_BHW3: uint8, or floats in 0-1, all of one size. Returns canvas_BKHW, whose argmax are the labels; this
        is exported, for uint8 alone. Raises InputError for other types and floats outside 0-1."""
        raise NotImplementedError

    def forward_framed(self, photos_1HW3: Tensor, frames_F23: Tensor) -> Tensor:
        """``forward`` for faces that are framed in one larger photo; this is exported too.

        photos_1HW3: as in ``forward``. frames_F23: float32, see ``data.batch.framed_batch``. Returns canvas_FKHW, on
        the photo's own pixel grid. Raises InputError where the parser cannot.
        """
        _, height, width, _ = photos_1HW3.shape
        probs, theta_FP23 = self.framed_probs(photos_1HW3, frames_F23)
        return paste_any(probs, theta_FP23, height, width, self.paste)

    def framed_probs(self, photos_1HW3: Tensor, frames_F23: Tensor) -> WindowProbs:
        """What ``forward_framed`` pastes: as ``window_probs``, but the windows are in the frame of the photo."""
        raise InputError(f"framed: {self.kind} parses whole photos only; leave it out")

    @staticmethod
    def preprocess(images_B3HW: Tensor, black: float = 0.0, white: float = 1.0) -> Tensor:
        """Pictures as other networks have them, float (B, 3, H, W) or (3, H, W), as photos_BHW3 for ``forward``:
        floats in 0-1, values beyond ``black`` and ``white`` clipped. Differentiable. Raises InputError for other
        shapes."""
        if images_B3HW.ndim not in (3, 4) or images_B3HW.shape[-3] != 3 or not images_B3HW.is_floating_point():
            raise InputError(f"images must be float (B, 3, H, W), not {images_B3HW.dtype} {tuple(images_B3HW.shape)}")
        images_B3HW = images_B3HW if images_B3HW.ndim == 4 else images_B3HW[None]
        return ((images_B3HW - black) / (white - black)).clamp(0, 1).permute(0, 2, 3, 1)

    def mirrored(self) -> "FaceParser":
        """This parser, changed in place to average with the mirrored photo."""
        raise NotImplementedError

    def fold(self) -> None:
        """For inference alone: evaluation mode, and in ``folded`` every batch normalisation that follows a convolution
        in a row of layers becomes part of it, in place. The same logits up to rounding, in fewer passes over memory."""
        self.eval()
        parsers = [parser for parser in self.modules() if isinstance(parser, FaceParser)]  # itself, and those in it
        folded = [getattr(parser, name) for parser in parsers for name in parser.folded]
        for layers in [module for network in folded for module in network.modules()]:
            if not isinstance(layers, nn.Sequential):
                continue
            for (name, layer), (following, norm) in pairwise(layers.named_children()):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(layers, name, fuse_conv_bn_eval(layer, norm))
                    setattr(layers, following, nn.Identity())

    @torch.inference_mode()
    def label_photos(self, photos: Sequence[str | PathLike | Image.Image | np.ndarray]) -> list[np.ndarray]:
        """Label photos of any sizes, see ``data.images.as_photo``: uint8 (H, W) of ``labels``' ids out.

        On a GPU those of one size go together, and the host waits once for all label maps. Raises InputError for what
        is no photo.
        """
        device = next(self.parameters()).device
        arrays = [as_photo(photo, f"photos[{k}]") for k, photo in enumerate(photos)]
        order = sorted(range(len(arrays)), key=lambda k: arrays[k].shape)
        maps: dict[int, Tensor] = {}
        for shape, alike in groupby(order, key=lambda k: arrays[k].shape):
            rest = list(alike)
            at_once = 1 if device.type == "cpu" else max(1, BATCH_PIXELS // (shape[0] * shape[1]))
            for first in range(0, len(rest), at_once):
                some = rest[first : first + at_once]
                batch = photo_batch([arrays[k] for k in some], self.labels).to(device)
                maps.update(zip(some, self.parse(batch).labels_BHW, strict=True))
        return [labels_HW.numpy() for labels_HW in to_host([maps[k] for k in range(len(arrays))])]

    @classmethod
    def from_weights(cls, found: Sequence[Weights], crops: str = "predicted") -> "FaceParser":
        """Build the parser that the checkpoints describe, here the last one. crops: for STN-iCNN alone, see
        ``models.stn_icnn.model``. Raises InputError for weights that are missing or do not fit."""
        if crops != "predicted":
            raise InputError(f"crops {crops}: {found[-1].path} holds {cls.kind}, which has no crops; leave it out")
        parser = cls(found[-1].config, found[-1].labels)
        parser.load(found[-1], cls.networks)
        return parser.eval()

    def load(self, weights: Weights, names: Sequence[str]) -> None:
        """Load the named networks strictly.

        Raises InputError for one that the file lacks or that does not fit, and for a file of another label set.
        """
        if weights.labels != self.labels:
            raise InputError(f"{weights.path} is of the label set {weights.labels.name}, not {self.labels.name}")
        for name in names:
            if name not in weights.modules:
                held = ", ".join(sorted(weights.modules))
                raise InputError(f"{weights.path} holds {held}, but its {name} weights are needed here")
            checkpoint.load_module(getattr(self, name), weights.modules[name], weights.path, name)


class WholeFaceParser(FaceParser):
    """A parser whose one ``network`` labels the photo stretched to ``config.size``; its logits are enlarged to each
    photo's own size."""

    def __init__(self, config: Any, labels: LabelSet, network: nn.Module) -> None:
        super().__init__(config, labels)
        self.network = network
        self.flip: Mirrored | None = None

    def logits(self, images_B3SS: Tensor) -> Tensor:
        """images_B3SS, float in [0, 1], to logits_BKhw, which may be smaller."""
        return self.network(images_B3SS)

    def mirrored(self) -> "WholeFaceParser":
        self.flip = Mirrored(self.logits, self.labels)
        return self

    def _logits(self, images_B3SS: Tensor) -> Tensor:
        """``logits``, once ``mirrored`` the mean with those of the mirrored photo."""
        return self.flip(images_B3SS) if self.flip else self.logits(images_B3SS)

    def parse(self, batch: Batch) -> Parsed:
        logits_BKhw = self._logits(View(batch).photo(self.config.size))
        return Parsed(enlarged_labels(logits_BKhw, batch.host.sizes_B2, *batch.labels_BHW.shape[1:]), None)

    def window_probs(self, batch: Batch) -> WindowProbs:
        size, scale = self.config.size, 1.0
        if batch.frames_B33 is not None:
            size, scale = self.framed
        return one_window(self._logits(View(batch.widened(scale)).photo(size)), scale)

    @property
    def framed(self) -> tuple[int, float]:
        """Of faces in larger photos: the side in pixels of what is seen of them, and relative to their frames. Wide
        ones are sampled from the photos themselves, see ``View.needs_photos``."""
        scale = getattr(self.config, "frame_scale", 1.0)
        return self.config.size if scale == 1 else max(160, round(self.config.size * scale / 32) * 32), scale

    def probabilities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        logits_BKhw = self._logits(View(batch).photo(self.config.size))
        canvas_BKHW = torch.zeros(*logits_BKhw.shape[:2], *batch.labels_BHW.shape[1:], device=logits_BKhw.device)
        for canvas_KHW, logits_KHW in zip(canvas_BKHW, enlarge(logits_BKhw, batch.host.sizes_B2), strict=True):
            canvas_KHW[:, : logits_KHW.shape[1], : logits_KHW.shape[2]] = logits_KHW.softmax(0)
        return canvas_BKHW, None

    def forward(self, photos_BHW3: Tensor) -> Tensor:
        logits_BKhw = self._logits(stretched(photos_BHW3, self.config.size))
        return F.interpolate(logits_BKhw.float(), photos_BHW3.shape[1:3], mode="bilinear").softmax(1)

    def framed_probs(self, photos_1HW3: Tensor, frames_F23: Tensor) -> WindowProbs:
        framed = framed_input(photos_1HW3, frames_F23, *self.framed)
        probs, theta_F123 = one_window(self._logits(framed.images_F3SS))
        return WindowProbs(probs, compose(framed.frames_F33, theta_F123))


def on_host(patches: Iterable[tuple[Patch, np.ndarray]]) -> list[tuple[Patch, np.ndarray]]:
    """``FaceParser.patches`` on the CPU, after one wait for all of them."""
    patches = list(patches)
    held = iter(to_host([value for patch, _ in patches for value in patch[2:] if value is not None]))
    return [
        (Patch(*patch[:2], next(held), next(held), None if patch.probs_KYX is None else next(held)), theta_P23)
        for patch, theta_P23 in patches
    ]


def one_window(logits_BKSS: Tensor, scale: float = 1.0) -> WindowProbs:
    """Logits of whole photos as one window, whose samples lie at the centres of their pixels. scale: of
    its side, relative to the view."""
    probs_BKSS = logits_BKSS.float().softmax(1)
    # the view's own outermost pixel centres lie at +-1
    reach = scale * (1 - 1 / logits_BKSS.shape[-1]) / (1 - 1 / FRAME_SIDE)
    theta_123 = torch.eye(2, 3, device=probs_BKSS.device)[None] * reach
    return WindowProbs([probs_BKSS], theta_123.expand(probs_BKSS.shape[0], 1, 2, 3))


class Framed(NamedTuple):
    """Faces framed in one photo, fit to be exported: the resized photos, images_F3SS, float in [0, 1]; frames_F33
    and photo_F as in ``Batch``; sizes_F2, the photo's."""

    images_F3SS: Tensor
    frames_F33: Tensor
    sizes_F2: Tensor
    photo_F: Tensor


def framed_input(photos_1HW3: Tensor, frames_F23: Tensor, size: int, scale: float = 1.0) -> Framed:
    """What ``View.photo`` gives for framed faces, but from at least FRAME_SIDE x FRAME_SIDE samples for each frame,
    whatever its size. photos_1HW3, frames_F23: see ``FaceParser.forward_framed``. scale: see ``Batch.widened``."""
    check_range(photos_1HW3)
    device, faces = photos_1HW3.device, frames_F23.shape[0]
    sizes_F2 = torch.tensor([photos_1HW3.shape[1:3]], device=device).expand(faces, 2)
    frames_F33 = frame_to_photo(enlarged(frames_F23, scale), sizes_F2, FRAME_SIDE)
    photo_F = torch.zeros(faces, dtype=torch.long, device=device)
    count = math.ceil(FRAME_SIDE * scale / size)
    return Framed(framed_images(photos_1HW3, frames_F33, sizes_F2, photo_F, size, count), frames_F33, sizes_F2, photo_F)


def check_range(photos_BHW3: Tensor) -> None:
    """Raises InputError for photos that are neither uint8 nor floats in 0-1."""
    if photos_BHW3.dtype == torch.uint8:
        return
    if not photos_BHW3.is_floating_point():
        raise InputError(f"photos must be uint8, or floats in 0-1, not {photos_BHW3.dtype}")
    if photos_BHW3.numel() and not (photos_BHW3.amin() >= 0 and photos_BHW3.amax() <= 1):
        raise InputError("photos hold floats outside 0-1: divide them by 255, or convert them to uint8")


def stretched(photos_BHW3: Tensor, size: int) -> Tensor:
    """What ``View.photo`` gives for photos of one size (see ``FaceParser.forward``), but fit to be exported:
    images_B3SS, float in [0, 1].

    Small ones go by way of 256 x 256 here too, equal to ``data.images.make_image_256`` up to the rounding of its bytes.
    """
    check_range(photos_BHW3)
    white = 255 if photos_BHW3.dtype == torch.uint8 else 1
    counts = photos_BHW3.shape[1:3]
    lengths_2 = torch.tensor(counts, device=photos_BHW3.device)
    axes = list(zip(counts, lengths_2, strict=True))
    if View.needs_photos(size):
        weights = [stretch_weights(count, length, size, length >= size) for count, length in axes]
    else:
        shrinks = (lengths_2 >= IMAGE_SIDE).all()
        pool_ST = F.adaptive_avg_pool1d(torch.eye(IMAGE_SIDE, device=photos_BHW3.device), size).T
        weights = [pool_ST @ stretch_weights(count, length, IMAGE_SIDE, shrinks) for count, length in axes]
    return stretch_by(photos_BHW3, *weights) / white
