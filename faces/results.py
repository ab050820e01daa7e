"""What parsing a photo or a video gives, and the files that it is written into."""

import errno
import io
import json
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from faces.inputs import is_video
from faces.scene import Scene, drawn
from scoring.pictures import colour, encode, encode_grey, encode_labels
from utils.errors import InputError
from utils.files import write_bytes
from utils.runtime import is_out_of_memory

# what each kind of result is called behind the name of its photo or video
OF_PHOTOS = {
    "labels": ".png",
    "overlay": "_overlay.jpg",
    "coloured": ".png",
    "faces": "_faces.json",
    "probabilities": ".npz",
    "owners": "_owners.png",
}
OF_VIDEOS = {
    "video": "_overlay.mp4",
    "times": "_frames.json",  # _faces.json is that of a photo of the same name
    "frames": "_labels",
}


class Job(NamedTuple):
    """A photo or video and the files to write for it. outputs: kind, of ``OF_PHOTOS`` or ``OF_VIDEOS`` -> path."""

    photo: Path
    outputs: dict[str, Path]


@dataclass(frozen=True)
class Wanted:
    """Which results are written, and where.

    out: the folder of all but "coloured", which go into ``coloured``. kinds: see ``Job``. overwrite: replace results
    that exist already. roots: folders whose own folders the results are put into again.
    """

    out: Path
    kinds: Collection[str]
    coloured: Path | None = None
    overwrite: bool = False
    roots: tuple[Path, ...] = ()

    def outputs(self, file: Path, name: str) -> dict[str, Path]:
        """The results of a photo or video, as in ``Job``. name: what they are called after."""
        endings = OF_VIDEOS if is_video(file) else OF_PHOTOS
        folders = {"coloured": self.coloured or self.out}
        return {kind: folders.get(kind, self.out) / f"{name}{endings[kind]}" for kind in endings if kind in self.kinds}

    def inside(self, file: Path) -> Path:
        """Where in the results' folder those of a file are put."""
        root = next((root for root in self.roots if root in file.parents), file.parent)
        return file.parent.relative_to(root)


def plan(files: list[Path], wanted: Wanted) -> tuple[list[Job], list[str]]:
    """What to write for each photo and video, and one line for each whose results would have another one's name or
    cannot be written.

    Results are named after the file's stem, or after its whole name where several photos, or videos, share a stem.
    Results that exist already are left out unless ``wanted.overwrite``. Raises InputError where a result would replace
    one of the files.
    """
    stems = Counter((wanted.inside(file) / file.stem, is_video(file)) for file in files)
    given = {os.path.realpath(file) for file in files}
    taken: dict[tuple[str, bool], Path] = {}
    jobs, failed = [], []
    for file in files:
        place = wanted.inside(file)
        name = str(place / (file.stem if stems[place / file.stem, is_video(file)] == 1 else file.name))
        if (other := taken.setdefault((name, is_video(file)), file)) != file:
            failed.append(f"{file}: its results would overwrite those of {other}: choose another folder for them")
            continue
        outputs = wanted.outputs(file, name)
        for path in outputs.values():
            if os.path.realpath(path) in given:
                raise InputError(f"{path} is an input, which its results would replace: choose another folder")
        try:
            there = {kind for kind, path in outputs.items() if is_result(path, kind)}
        except OSError as error:
            failed.append(not_written(file, error))
            continue
        jobs.append(Job(file, {kind: outputs[kind] for kind in outputs if wanted.overwrite or kind not in there}))
    return jobs, failed


def is_result(path: Path, kind: str) -> bool:
    """Whether a result exists already. Raises OSError where none can be written, as its name is too long or
    something else has it."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):  # as yet; whoever makes the folder tells where none can be
        return False
    if os.path.isdir(path) if kind == "frames" else os.path.isfile(path):
        return True
    raise OSError(errno.EEXIST, f"{path} is there and is no file")


def not_written(photo: Path, error: Exception) -> str:
    reason = "too little memory" if is_out_of_memory(error) else getattr(error, "strerror", None) or error
    return f"{photo}: its results could not be written ({reason})"


def write(
    job: Job, photo: np.ndarray, scene: Scene, windows: bool = False, opacity: float = 0.5, grey: bool = False
) -> None:
    """Write the job's files, each of them whole or not at all. windows: drawn into the overlay. opacity: of the
    overlay's colours. grey: label maps without a palette. Raises OSError."""
    labels = scene.labels
    made: dict[str, bytes] = {}
    if "labels" in job.outputs:
        made["labels"] = encode_grey(scene.labels_HW) if grey else encode_labels(scene.labels_HW, labels)
    if "overlay" in job.outputs:
        made["overlay"] = encode(Image.fromarray(drawn(photo, scene, windows, opacity)), "JPEG", quality=92)
    if "coloured" in job.outputs:
        made["coloured"] = encode(Image.fromarray(colour(scene.labels_HW, labels, published=True)), "PNG")
    if "faces" in job.outputs:
        found = {"labels": labels.name, "names": labels.names, "faces": [face.report() for face in scene.faces]}
        made["faces"] = (json.dumps(found, indent=1) + "\n").encode()
    if "probabilities" in job.outputs:
        probs_KHW = scene.probs_KHW
        if probs_KHW is None:  # no face: all is background
            probs_KHW = np.zeros((len(labels), *scene.labels_HW.shape), np.float16)
            probs_KHW[0] = 1
        archive = io.BytesIO()
        np.savez_compressed(archive, probabilities=probs_KHW)
        made["probabilities"] = archive.getvalue()
    if "owners" in job.outputs:
        made["owners"] = encode_grey(scene.owners_HW)
    for kind, content in made.items():
        write_bytes(job.outputs[kind], content)
