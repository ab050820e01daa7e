"""Data sets with one label map a face: LaPa, and any folder with lists of pairs; and which side their "left" is.

That is settled by reading: if in most of a few faces brow1 and eye1 lie right of brow2 and eye2, their ids are
exchanged, so that all follow the convention of ``data.labels``.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from data import images
from data.labels import LAPA, LabelSet
from data.listing import Listing, Sample, is_inside, list_lines, listed, pair, read_map, side_steps
from utils.errors import InputError

FACES_READ_FOR_SIDES = 32
LAPA_LAYOUT = "expected LaPa's layout: train/images/<name>.jpg, train/labels/<name>.png, val/…, test/…"
LIST_LAYOUT = (
    "expected lists train_list.txt, val_list.txt, test_list.txt with lines `images/<name>.jpg labels/<name>.png`"
)


def find_lapa(root: Path, split: str) -> Listing:
    """Lists one split of LaPa (Liu et al. 2020); its landmarks are not needed.

    Opens no picture but a few label maps, as all functions here. Raises InputError for missing folders, and where
    brows and eyes disagree about the sides.
    """
    folders = root / split / "images", root / split / "labels"
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"no folder {folder}: {LAPA_LAYOUT}")
    photos, masks = images.list_files(folders[0], images.PHOTO_SUFFIXES), images.list_files(folders[1], (".png",))
    samples, problems = pair(split, photos, {name: (path,) for name, path in masks.items()})
    return listing(samples, problems, LAPA, root)


def find_list(root: Path, split: str, labels: LabelSet) -> Listing:
    """Lists one split of a folder with ``<split>_list.txt``, as EAGRNet reads it; labels: what the maps' ids mean.

    Without val_list.txt a tenth of the training list validates, drawn with seed 0. Raises InputError for a list that is
    missing, empty or no list of pairs within the folder, and for sides as above.
    """
    draws = split != "test" and not os.path.lexists(root / "val_list.txt")
    path = root / f"{'train' if draws else split}_list.txt"
    if not os.path.lexists(path):
        raise InputError(f"no list {path}: {LIST_LAYOUT}; set some faces of another list aside for it")
    found, problems = listed(path, _pairs(path))
    if not draws:
        return listing(found, problems, labels, root)
    count = min(max(1, len(found) // 10), len(found) - 1)
    drawn = {*np.random.default_rng(0).permutation(len(found))[:count].tolist()}
    note = (
        f"no {root / 'val_list.txt'}: {len(drawn)} of the {len(found)} faces of {path.name} validate, drawn with seed 0"
    )
    chosen = [sample for k, sample in enumerate(found) if (k in drawn) == (split == "val")]
    return listing(chosen, problems, labels, root, found)._replace(note=note)


def _pairs(path: Path) -> Iterator[Sample]:
    for place, line in list_lines(path):
        words = line.split()
        if len(words) != 2 or not all(map(is_inside, words)):
            raise InputError(f"{place}: expected `images/<name>.jpg labels/<name>.png`, found `{line[:60]}`")
        photo, mask = (path.parent / word for word in words)
        yield Sample(photo.stem, photo, (mask,))


ReadLabels = Callable[[Sample], np.ndarray]


def listing(
    samples: list[Sample],
    problems: list[str],
    labels: LabelSet,
    root: Path,
    voters: list[Sample] | None = None,
    read: ReadLabels = read_map,
) -> Listing:
    """A listing of faces, its sides settled. voters: faces that settle them; default: these. read: a face's map."""
    swap = is_swapped(voters or samples, labels, root, read)
    read = partial(_read_exchanged, read, labels.mirror_256) if swap else read
    return Listing(samples, problems, read, version="sides exchanged" if swap else "")


def _read_exchanged(read: ReadLabels, mirror_256: tuple[int, ...], sample: Sample) -> np.ndarray:
    return np.array(mirror_256, np.uint8)[read(sample)]


def is_swapped(samples: list[Sample], labels: LabelSet, root: Path, read: ReadLabels = read_map) -> bool:
    """Whether brow1 and eye1 lie on the image's right in most of a few faces; False where no face tells.

    Raises InputError where brows and eyes disagree.
    """
    votes_2 = np.zeros(2)
    for sample in samples[:: max(1, len(samples) // FACES_READ_FOR_SIDES)][:FACES_READ_FOR_SIDES]:
        try:
            votes_2 += np.sign(side_steps(read(sample), labels))
        except InputError:  # reading the face tells of it
            continue
    if votes_2.min() < 0 < votes_2.max():
        raise InputError(f"brows and eyes disagree about left and right in the label maps of {root}: download again")
    return bool(votes_2.max() > 0)
