"""What a data set's folder holds for one split: names, files, what is wrong, and how one face is read."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import images
from data.labels import NO_ID, PARTS, LabelSet, among
from utils.errors import InputError
from utils.files import read_text

SPLITS = ("train", "val", "test")
SIDES = (("brow1", "brow2"), ("eye1", "eye2"))  # parts, of which the first lies on the image's left
LONGEST_NAME = 255  # bytes that file systems take


class NoMasks(InputError):
    """A split has photos without any mask, as the public test split of the CelebAMask challenge."""


class Sample(NamedTuple):
    """One face: its name and files. Synthetic faces have no files (``Path()`` and ``()``)."""

    name: str
    photo: Path
    masks: tuple[Path, ...]


Read = Callable[[Sample], tuple[np.ndarray, np.ndarray]]  # a sample -> its photo and its label map


class Listing(NamedTuple):
    """What a folder holds for one split, found without opening a picture.

    samples: the complete pairs.
    problems: one line for each thing that is missing or unknown.
    read_labels: sample -> uint8 (H, W) of the data set's ids.
    shrink: whether photos are stored larger than the masks and must be brought to the masks' grid.
    version: changes whenever the same files would be read differently.
    draw: gives the photo and the label map of a sample without files; None where there are files.
    shows: mask file -> the label that it shows, where each label that a face shows has a file of its own.
    note: what a user should know of this split; empty where there is nothing.
    """

    samples: list[Sample]
    problems: list[str]
    read_labels: Callable[[Sample], np.ndarray]
    shrink: bool = False
    version: str = ""
    draw: Read | None = None
    shows: Callable[[Path], str] | None = None
    note: str = ""


class Source(NamedTuple):
    """A split of a data set; ``read(sample)`` gives photo uint8 (H, W, 3) RGB and ids of ``labels``, uint8 (H, W).

    version: changes whenever ``read`` would give something else for the same names and files. note: see ``Listing``.
    """

    labels: LabelSet
    samples: list[Sample]
    read: Read
    version: str = ""
    note: str = ""


def side_steps(ids_HW: np.ndarray, labels: LabelSet) -> np.ndarray:
    """How many pixels the first part of each of ``SIDES`` lies to the right of the second, between their centroids:
    float64 (2,), 0 where one of them is absent. ids_HW: ids of ``labels``."""
    steps_2 = np.zeros(len(SIDES))
    part_ids = dict(zip(PARTS, labels.part_ids, strict=True)) if labels.part_ids else {}
    for k, pair in enumerate(SIDES if part_ids else ()):
        one, two = (np.nonzero(among(ids_HW, part_ids[name]))[1] for name in pair)
        if len(one) and len(two):
            steps_2[k] = one.mean() - two.mean()
    return steps_2


def list_lines(path: Path, what: str = "list") -> Iterator[tuple[str, str]]:
    """The lines of a text that are not blank: (place, for messages; line). Raises InputError as ``read_text`` does."""
    for number, line in enumerate(read_text(path, what).splitlines(), 1):
        if line.strip():
            yield f"{path} line {number}", line.strip()


def is_inside(word: str) -> bool:
    """Whether a listed path stays in its folder and is short enough for a file."""
    parts = Path(word).parts
    short = all(len(part.encode()) <= LONGEST_NAME for part in parts)
    return short and bool(parts) and not word.startswith("/") and ".." not in parts and "\0" not in word


def listed(path: Path, faces: Iterable[Sample]) -> tuple[list[Sample], list[str]]:
    """The faces of a list that have all of their files, each once; and one line for the files that are missing and for
    the names that come twice. Raises InputError for an empty list."""
    found: dict[str, Sample] = {}
    missing, twice = [], []
    for face in faces:
        if lost := [file for file in (face.photo, *face.masks) if not os.path.isfile(file)]:
            missing.append(str(lost[0].relative_to(path.parent)))
        elif face.name in found:
            twice.append(face.name)
        else:
            found[face.name] = face
    problems = [f"files of {path} that are not in {path.parent}: {images.shorten(missing)}"] if missing else []
    problems += [f"names listed twice in {path}: {images.shorten(twice)}"] if twice else []
    if not found and not problems:
        raise InputError(f"list {path} is empty: write into it which faces the split has")
    return list(found.values()), problems


def pair(split: str, photos: dict[str, Path], masks: dict[str, tuple[Path, ...]]) -> tuple[list[Sample], list[str]]:
    """Pairs photos and masks by name: (complete samples in the photos' order, one line for each direction missing)."""
    samples = [Sample(name, photo, masks[name]) for name, photo in photos.items() if name in masks]
    problems = []
    bare = [name for name in photos if name not in masks]
    orphans = [name for name in masks if name not in photos]
    if bare:
        where = photos[bare[0]].parent
        problems.append(f"photos without mask in split {split}: {images.shorten(bare)} in {where}")
    if orphans:
        where = masks[orphans[0]][0].parent
        problems.append(f"masks without photo in split {split}: {images.shorten(orphans)} in {where}")
    return samples, problems


def size_problem(sample: Sample, photo: tuple[int, int], labels: tuple[int, int], shrink: bool) -> str | None:
    """The line to tell when a photo and its mask, both (H, W), do not fit each other; None when they do."""
    shrinks = shrink and photo[0] >= labels[0] and photo[0] * labels[1] == photo[1] * labels[0]
    if photo == labels or shrinks:
        return None
    return (
        f"sizes differ: photo {sample.photo} is {photo[1]}×{photo[0]}, "
        f"its mask {sample.masks[0]} is {labels[1]}×{labels[0]}"
    )


def id_problem(labels: LabelSet, sample: Sample, ids: np.ndarray) -> str | None:
    """The line to tell when a label map holds ids that its label set does not have; None when it does not."""
    present = np.flatnonzero(np.bincount(ids.ravel(), minlength=NO_ID + 1))
    unknown = [str(i) for i in present if i >= len(labels) and not (labels.ignores and i == NO_ID)]
    if not unknown:
        return None
    more = "; for pixels to ignore: --ignore-255" if unknown == [str(NO_ID)] else ""
    has = f"{labels.name} has 0 to {len(labels) - 1}{more}"
    return f"unknown ids in mask {sample.masks[0]}: {images.shorten(unknown)}; {has}"


def read_map(sample: Sample) -> np.ndarray:
    """The label map of a sample with one mask, uint8 (H, W)."""
    return images.read_labels(sample.masks[0])


def read_face(
    labels: LabelSet, read_labels: Callable[[Sample], np.ndarray], shrink: bool, sample: Sample, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Photo uint8 (H, W, 3) and labels uint8 (H, W) of one sample; see ``Listing`` and ``data.source.FaceData`` for
    the arguments.

    Raises InputError for damaged files, sizes that differ and unknown ids.
    """
    photo, ids = images.read_photo(sample.photo), read_labels(sample)
    height, width = ids.shape
    problem = size_problem(sample, photo.shape[:2], (height, width), shrink) or id_problem(labels, sample, ids)
    if problem:
        raise InputError(problem)
    if size is not None:
        height, width = (max(1, round(side * size / max(ids.shape))) for side in ids.shape)
        ids = images.resize_labels(ids, height, width)
    return images.resize_photo(photo, height, width), ids
