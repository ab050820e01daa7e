"""Data sets with one label map a face: LaPa, HELEN's maps in one file each, and any folder with lists of pairs.

Which side their "left" is, is settled by reading: if in most of a few faces brow1 and eye1 lie right of brow2 and eye2,
their ids are exchanged, so that all follow the convention of ``data.labels``.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np

from data import images
from data.labels import LAPA, PARTS, LabelSet, among
from data.listing import Listing, Sample, a_few, pair
from utils.errors import InputError
from utils.files import read_text

LONGEST_NAME = 255  # bytes that file systems take
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
    samples: dict[str, Sample] = {}
    missing, twice = [], []
    for number, line in enumerate(read_text(path, "list").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not all(map(_is_inside, words)):
            shown = line.strip()[:60]
            raise InputError(f"{path} line {number}: expected `images/<name>.jpg labels/<name>.png`, found `{shown}`")
        photo, mask = (root / word for word in words)
        lost = [word for word, file in zip(words, (photo, mask), strict=True) if not os.path.isfile(file)]
        if lost:
            missing += lost
        elif photo.stem in samples:
            twice.append(photo.stem)
        else:
            samples[photo.stem] = Sample(photo.stem, photo, (mask,))
    problems = [f"files of {path} that are not in {root}: {images.shorten(missing)}"] if missing else []
    problems += [f"names listed twice in {path}: {images.shorten(twice)}"] if twice else []
    if not samples and not problems:
        raise InputError(f"list {path} is empty: {LIST_LAYOUT}")
    found = list(samples.values())
    if not draws:
        return listing(found, problems, labels, root)
    count = min(max(1, len(found) // 10), len(found) - 1)
    drawn = {*np.random.default_rng(0).permutation(len(found))[:count].tolist()}
    note = (
        f"no {root / 'val_list.txt'}: {len(drawn)} of the {len(found)} faces of {path.name} validate, drawn with seed 0"
    )
    chosen = [sample for k, sample in enumerate(found) if (k in drawn) == (split == "val")]
    return listing(chosen, problems, labels, root, found)._replace(note=note)


def _is_inside(word: str) -> bool:
    """Whether a listed path stays in its folder and is short enough for a file."""
    parts = Path(word).parts
    short = all(len(part.encode()) <= LONGEST_NAME for part in parts)
    return short and not word.startswith("/") and ".." not in parts and "\0" not in word


def listing(
    samples: list[Sample], problems: list[str], labels: LabelSet, root: Path, voters: list[Sample] | None = None
) -> Listing:
    """A listing of faces with one map each, its sides settled. voters: faces that settle them; default: these."""
    swap = is_swapped(voters or samples, labels, root)
    read = partial(read_map, mirror=labels.mirror_256 if swap else ())
    return Listing(samples, problems, read, version="sides exchanged" if swap else "")


def read_map(sample: Sample, mirror: tuple[int, ...] = ()) -> np.ndarray:
    """The label map of a sample, uint8 (H, W). mirror: 256 ids to put in place of 0, 1, …; empty: as they are."""
    ids = images.read_labels(sample.masks[0])
    return np.array(mirror, np.uint8)[ids] if mirror else ids


def is_swapped(samples: list[Sample], labels: LabelSet, root: Path) -> bool:
    """Whether brow1 and eye1 lie on the image's right in most of a few faces; False where no face tells.

    Raises InputError where brows and eyes disagree.
    """
    parts = dict(zip(PARTS, labels.part_ids, strict=True)) if labels.part_ids else {}
    pairs = [(parts["brow1"], parts["brow2"]), (parts["eye1"], parts["eye2"])] if parts else []
    votes = np.zeros(len(pairs), np.int64)
    for sample in a_few(samples) if pairs else []:
        try:
            ids = images.read_labels(sample.masks[0])
        except InputError:  # reading the face tells of it
            continue
        for k, (one, two) in enumerate(pairs):
            left, right = (np.nonzero(among(ids, part))[1] for part in (one, two))
            if len(left) and len(right):
                votes[k] += int(np.sign(left.mean() - right.mean()))
    if (votes > 0).any() and (votes < 0).any():
        raise InputError(f"brows and eyes disagree about left and right in the label maps of {root}: fetch them again")
    return bool((votes > 0).any())
