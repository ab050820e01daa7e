"""From checkpoint files to a parser of whole scenes."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from faces.detect import Detector
from faces.scene import SceneParser
from models.loading import SHIPPED_WEIGHTS, load_for_inference
from utils.errors import InputError
from utils.runtime import pick_device


def load(
    checkpoints: str | PathLike | Sequence[str | PathLike] | None = None,
    device: str = "auto",
    faces: str = "all",
    mirror: bool = False,
    labels: str | None = None,
) -> SceneParser:
    """A parser of photos with any number of faces, ready to use.

    checkpoints: a file, or several, see ``models.loading.load_parser``; default: the shipped weights.
    device: "auto", "cpu", "cuda" or "cuda:N". faces: "all" or the "largest". mirror: average with the mirrored faces.
    labels: "celebamask" for all 19 labels, see ``models.loading.load_parser``; default: those of the checkpoint.
    Raises InputError for files that hold no parser or one of other labels, a device that is not there, other values
    than these, and where the detector is missing.
    """
    files = [checkpoints or SHIPPED_WEIGHTS] if isinstance(checkpoints, str | PathLike | None) else checkpoints
    if not isinstance(files, list | tuple) or not all(isinstance(file, str | PathLike) for file in files):
        raise InputError(f"checkpoints must be a file or a list of files, not {checkpoints!r:.80}")
    if not files:
        raise InputError("checkpoints is an empty list: give a file, or None for the shipped weights")
    place = pick_device(str(device))
    parser = load_for_inference([Path(file) for file in files], place, mirror=mirror, labels=labels)
    return SceneParser(parser, Detector(), faces)
