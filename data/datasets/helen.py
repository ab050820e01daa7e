"""HELEN in the layout that Smith et al. 2013 released, resized: soft masks, three lists, sides settled by reading.

    images/<name>.jpg   labels/<name>/<name>_lbl00.png … _lbl10.png   exemplars.txt  tuning.txt  testing.txt

Or with the eleven soft masks of a face merged into one map of ids, labels/<name>.png.

The label maps follow the convention of ``data.labels``: brow1 and eye1 lie on the image's left.
"""

import os
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from data import images
from data.datasets import merged
from data.labels import HELEN
from data.listing import Listing, Sample, a_few
from utils.errors import InputError
from utils.files import read_text

LISTS = {"train": "exemplars.txt", "val": "tuning.txt", "test": "testing.txt"}
NUM_MASKS = len(HELEN.names)
LONGEST_NAME = 200  # bytes; file systems take 255, with what the masks' names add
LAYOUT = (
    "expected HELEN's released layout: images/<name>.jpg, labels/<name>/<name>_lbl00.png … _lbl10.png, "
    "exemplars.txt, tuning.txt, testing.txt; or labels/<name>.png with all labels of a face"
)


def find(root: Path, split: str) -> Listing:
    """Lists one split of HELEN and settles which of each pair's masks lies on the image's left.

    Opens no picture but the brow and eye masks of up to 32 training faces (of this split where there are none).
    Raises InputError for a missing folder or list, a list that cannot be read, and brows and eyes that disagree.
    """
    for folder in (root / "images", root / "labels"):
        if not folder.is_dir():
            raise InputError(f"no folder {folder}: {LAYOUT}")
    if not os.path.lexists(root / LISTS[split]):
        raise InputError(f"no list {root / LISTS[split]} for split {split}: {LAYOUT}")
    photos = images.list_files(root / "images", images.PHOTO_SUFFIXES)
    names = _read_list(root / LISTS[split])
    if maps := images.list_files(root / "labels", images.MASK_SUFFIXES):
        return _find_merged(root, split, names, photos, maps)
    samples, problems = _complete(root, split, names, photos)
    problems += _listed_again(root, split, names)
    if not samples:
        return Listing(samples, problems, read_labels)
    voters = samples
    if split != "train" and os.path.lexists(root / LISTS["train"]):
        voters = _complete(root, "train", _read_list(root / LISTS["train"]), photos)[0] or samples
    swap = not _first_is_left(voters, root)
    return Listing(samples, problems, partial(read_labels, swap=swap), version="first right" if swap else "first left")


def _find_merged(root: Path, split: str, names: list[str], photos: dict[str, Path], maps: dict[str, Path]) -> Listing:
    samples, bare = [], []
    for name in dict.fromkeys(names):
        if name in photos and name in maps:
            samples.append(Sample(name, photos[name], (maps[name],)))
        else:
            bare.append(name)
    problems = [f"listed faces without photo or label map in split {split}: {images.shorten(bare)}"] if bare else []
    problems += _listed_again(root, split, names)
    everybody = [Sample(name, photos[name], (path,)) for name, path in maps.items() if name in photos]
    return merged.listing(samples, problems, HELEN, root, everybody)


def read_labels(sample: Sample, swap: bool = False) -> np.ndarray:
    """Label map uint8 (H, W) of HELEN's 11 ids: the strongest of the soft masks at each pixel, the first in a tie.

    swap: exchange both brows and both eyes, for files that count from the image's right.
    """
    strongest = images.read_labels(sample.masks[0])
    labels = np.zeros_like(strongest)
    for label, path in enumerate(sample.masks[1:], 1):
        mask = images.read_labels(path)
        if mask.shape != labels.shape:
            raise InputError(f"sizes differ: masks {sample.masks[0]} and {path}")
        stronger = mask > strongest
        labels[stronger] = label
        strongest = np.maximum(strongest, mask)
    return np.array(HELEN.mirror, np.uint8)[labels] if swap else labels


def _read_list(path: Path) -> list[str]:
    """The names of a list, lines ``number , name``. Raises InputError for a list that is empty or cannot be read."""
    names = []
    for count, line in enumerate(read_text(path, "list").splitlines(), 1):
        number, comma, name = (word.strip() for word in line.partition(","))
        if not line.strip():
            continue
        if not comma or not number.isdecimal() or not _is_file_name(name):
            raise InputError(f"{path} line {count}: expected `number , name`, found `{line.strip()[:60]}`")
        names.append(name)
    if not names:
        raise InputError(f"list {path} is empty: {LAYOUT}")
    return names


def _listed_again(root: Path, split: str, names: list[str]) -> list[str]:
    """One line for names that the split's list holds twice, and one for those that it shares with the training list."""
    problems = []
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        problems.append(f"names listed twice: {images.shorten(twice)} in {root / LISTS[split]}")
    if split != "train" and os.path.lexists(root / LISTS["train"]):
        shared = sorted(set(names) & set(_read_list(root / LISTS["train"])))
        if shared:
            problems.append(f"names both in {LISTS[split]} and {LISTS['train']} of {root}: {images.shorten(shared)}")
    return problems


def _is_file_name(name: str) -> bool:
    """Whether a listed name stays in its folder and is short enough for a file."""
    return name not in ("", ".", "..") and not set("/\0") & set(name) and len(name.encode()) <= LONGEST_NAME


def _complete(root: Path, split: str, names: list[str], photos: dict[str, Path]) -> tuple[list[Sample], list[str]]:
    samples, no_photo, no_masks, some_masks = [], [], [], []
    for name in dict.fromkeys(names):
        folder = root / "labels" / name
        files = [f"{name}_lbl{label:02d}.png" for label in range(NUM_MASKS)]
        present = set(os.listdir(folder)) if folder.is_dir() else set()
        missing = [file for file in files if file not in present]
        if name not in photos:
            no_photo.append(name)
        if len(missing) == NUM_MASKS:
            no_masks.append(name)
        elif missing:
            some_masks.append(missing[0])
        elif name in photos:
            samples.append(Sample(name, photos[name], tuple(folder / file for file in files)))
    problems = (
        (no_photo, f"masks without photo in split {split}", root / "images"),
        (no_masks, f"photos without mask in split {split}", root / "labels"),
        (some_masks, f"faces without all of their {NUM_MASKS} masks in split {split}", root / "labels"),
    )
    return samples, [f"{what}: {images.shorten(bad)} in {where}" for bad, what, where in problems if bad]


def _first_is_left(samples: list[Sample], root: Path) -> bool:
    """Whether the first mask of each pair (brow 2, eye 4) lies on the image's left: the majority of a few faces."""
    answers = {}
    for one, two in HELEN.pairs:
        votes = [_is_left(sample, one, two) for sample in a_few(samples)]
        if votes.count(True) != votes.count(False):
            answers[one] = votes.count(True) > votes.count(False)
    if not answers:
        raise InputError(f"cannot tell left from right: no usable brow or eye masks (lbl02–lbl05) in {root / 'labels'}")
    if len(set(answers.values())) > 1:
        raise InputError(
            f"brows and eyes disagree about left and right in {root / 'labels'}: "
            "lbl02 and lbl04 must lie on the same side of the image; fetch the masks again"
        )
    return next(iter(answers.values()))


def _is_left(sample: Sample, one: str, two: str) -> bool | None:
    """Whether class one lies left of class two; None where a mask is empty or damaged (reading tells of that)."""
    try:
        centres = [_x_centre(images.read_labels(sample.masks[HELEN.names.index(name)])) for name in (one, two)]
    except InputError:
        return None
    return None if None in centres else centres[0] < centres[1]  # type: ignore[operator]


def _x_centre(mask: np.ndarray) -> float | None:
    columns = mask.sum(axis=0, dtype=np.float64)
    total = columns.sum()
    return float(columns @ np.arange(len(columns)) / total) if total else None
