"""What parsing a photo or a video gives, and the files that it is written into."""

import errno
import json
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from data.labels import LabelSet
from faces.scene import Face
from scoring.pictures import colour, draw_outlines, encode, encode_labels, overlay
from utils.errors import InputError
from utils.files import write_whole
from utils.runtime import is_out_of_memory


class Job(NamedTuple):
    """A photo and the files to write for it.

    outputs: kind ("labels", "overlay", "coloured", "faces" or "probabilities") -> path.
    """

    photo: Path
    outputs: dict[str, Path]


class Result(NamedTuple):
    """What is made of a photo: labels_HW uint8; windows: corners_P42 in its pixels for each face, for the overlay;
    faces: None where the photo itself is the face; probabilities_KHW float16, None where they are not asked for."""

    labels_HW: np.ndarray
    windows: list[np.ndarray]
    faces: list[Face] | None
    probabilities_KHW: np.ndarray | None


def plan(photos: list[Path], args: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """What to write for each photo, and one line for each whose results would have another photo's name or cannot be
    written.

    Results are named after the photo's stem, or after its whole file name where several photos share a stem. Files
    that exist already are left out unless --overwrite. Raises InputError where a result would replace a photo.
    """
    stems = Counter(photo.stem for photo in photos)
    given = {os.path.realpath(photo) for photo in photos}
    taken: dict[str, Path] = {}
    jobs, failed = [], []
    for photo in photos:
        name = photo.stem if stems[photo.stem] == 1 else photo.name
        if name in taken:
            failed.append(f"{photo}: its results would be named like those of {taken[name]}: it needs another --out")
            continue
        taken[name] = photo
        outputs = {"labels": args.out / f"{name}.png"}
        if not args.no_overlay:
            outputs["overlay"] = args.out / f"{name}_overlay.jpg"
        if args.coloured:
            outputs["coloured"] = args.coloured / f"{name}.png"
        if args.faces != "none":
            outputs["faces"] = args.out / f"{name}_faces.json"
        if args.probabilities:
            outputs["probabilities"] = args.out / f"{name}.npz"
        for path in outputs.values():
            if os.path.realpath(path) in given:
                raise InputError(f"{path} is a photo to label, and its results would replace it: name another --out")
        try:
            there = {kind for kind, path in outputs.items() if is_result(path)}
        except OSError as error:
            failed.append(not_written(photo, error))
            continue
        jobs.append(Job(photo, {kind: outputs[kind] for kind in outputs if args.overwrite or kind not in there}))
    return jobs, failed


def plan_videos(videos: list[Path], args: argparse.Namespace) -> tuple[list[Job], list[Path]]:
    """What to write for each video, and those whose results are there already. Raises InputError for videos that would
    be replaced, whose results would have the same name, or that --faces none cannot parse."""
    if videos and args.faces == "none":
        raise InputError(f"--faces none: the faces of {videos[0]} have to be found; say --faces all or largest")
    jobs: list[Job] = []
    skipped: list[Path] = []
    taken: dict[Path, Path] = {}
    for file in videos:
        outputs = {"video": args.out / f"{file.stem}_overlay.mp4"}
        if args.frame_labels:
            outputs["frames"] = args.out / f"{file.stem}_labels"
        if other := taken.get(outputs["video"]):
            raise InputError(f"{file}: its results would be named like those of {other}: it needs another --out")
        taken[outputs["video"]] = file
        if any(os.path.realpath(path) == os.path.realpath(given) for path in outputs.values() for given in videos):
            raise InputError(
                f"{outputs['video']} is a video to parse, and its results would replace it: name another --out"
            )
        if not args.overwrite and any(os.path.lexists(path) for path in outputs.values()):
            skipped.append(file)
        else:
            jobs.append(Job(file, outputs))
    return jobs, skipped


def is_result(path: Path) -> bool:
    """Whether a result is there already. Raises OSError where none can be written, as its name is too long or
    something else has it."""
    try:
        mode = os.lstat(path).st_mode
    except (
        FileNotFoundError,
        NotADirectoryError,
    ):  # as yet; ``make_folder`` tells where no folder can be made
        return False
    if stat.S_ISREG(mode) or os.path.isfile(path):
        return True
    raise OSError(errno.EEXIST, f"{path} is there and is no file")


def not_written(photo: Path, error: Exception) -> str:
    reason = "too little memory" if is_out_of_memory(error) else getattr(error, "strerror", None) or error
    return f"{photo}: its results could not be written ({reason})"


def put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def write(job: Job, photo: np.ndarray, result: Result, labels: LabelSet, windows: bool) -> None:
    """Write the job's files, all or none. Raises OSError."""
    made: dict[str, Callable[[BinaryIO], object]] = {}
    if "labels" in job.outputs:
        made["labels"] = partial(put, encode_labels(result.labels_HW, labels))
    if "overlay" in job.outputs:
        shown = overlay(photo, result.labels_HW, labels)
        if windows:
            for corners_P42 in result.windows:
                shown = draw_outlines(shown, corners_P42, labels)
        made["overlay"] = partial(put, encode(Image.fromarray(shown), "JPEG", quality=92))
    if "coloured" in job.outputs:
        picture = Image.fromarray(colour(result.labels_HW, labels, published=True))
        made["coloured"] = partial(put, encode(picture, "PNG"))
    if "faces" in job.outputs and result.faces is not None:
        found = {"labels": labels.name, "faces": [face.report() for face in result.faces]}
        made["faces"] = partial(put, (json.dumps(found, indent=1) + "\n").encode())
    if "probabilities" in job.outputs and result.probabilities_KHW is not None:
        made["probabilities"] = partial(np.savez_compressed, probabilities=result.probabilities_KHW)
    placed: list[Path] = []
    with ExitStack() as folders:
        parents = {job.outputs[kind].parent for kind in made}
        beside = {
            parent: folders.enter_context(tempfile.TemporaryDirectory(prefix=".", dir=parent)) for parent in parents
        }
        parts = {kind: Path(beside[job.outputs[kind].parent], kind) for kind in made}
        for kind, save in made.items():
            write_whole(parts[kind], save)
        try:
            for kind in made:
                os.replace(parts[kind], job.outputs[kind])
                placed.append(job.outputs[kind])
        except OSError:
            for path in placed:
                path.unlink(missing_ok=True)
            raise
