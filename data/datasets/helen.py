"""HELEN in the layout that Smith et al. 2013 released, resized: soft masks, three lists, sides settled by reading.

    images/<name>.jpg   labels/<name>/<name>_lbl00.png … _lbl10.png   exemplars.txt  tuning.txt  testing.txt

Or with the eleven soft masks of a face merged into one map of ids, labels/<name>.png.

The label maps follow the convention of ``data.labels``: brow1 and eye1 lie on the image's left.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data import images
from data.datasets import merged
from data.labels import HELEN
from data.listing import Listing, Sample, is_inside, list_lines, listed, read_map
from utils.errors import InputError

LISTS = {"train": "exemplars.txt", "val": "tuning.txt", "test": "testing.txt"}
LAYOUT = (
    "expected HELEN's released layout: images/<name>.jpg, labels/<name>/<name>_lbl00.png … _lbl10.png, "
    "exemplars.txt, tuning.txt, testing.txt; or labels/<name>.png with all labels of a face"
)


def find(root: Path, split: str) -> Listing:
    """Lists one split of HELEN and settles which of each pair's masks lies on the image's left.

    Opens no picture but the masks of up to 32 training faces (of this split where there are none).
    Raises InputError for a missing folder or list, a list that cannot be read, and brows and eyes that disagree.
    """
    for folder in (root / "images", root / "labels"):
        if not folder.is_dir():
            raise InputError(f"no folder {folder}: {LAYOUT}")
    if not os.path.lexists(root / LISTS[split]):
        raise InputError(f"no list {root / LISTS[split]} for split {split}: {LAYOUT}")
    photos = images.list_files(root / "images", images.PHOTO_SUFFIXES)
    maps = images.list_files(root / "labels", images.MASK_SUFFIXES)
    samples, problems = listed(root / LISTS[split], _faces(root, split, photos, maps))
    voters = samples
    if split != "train" and os.path.lexists(root / LISTS["train"]):
        training = list(_faces(root, "train", photos, maps))
        voters = listed(root / LISTS["train"], training)[0] or samples
        if shared := sorted({sample.name for sample in samples} & {sample.name for sample in training}):
            problems.append(f"names both in {LISTS[split]} and {LISTS['train']} of {root}: {images.shorten(shared)}")
    return merged.listing(samples, problems, HELEN, root, voters, read_map if maps else read_soft)


def _faces(root: Path, split: str, photos: dict[str, Path], maps: dict[str, Path]) -> Iterator[Sample]:
    """The faces of a list, lines ``number , name``, whether their files exist or not. maps: of the merged layout."""
    for place, line in list_lines(root / LISTS[split]):
        number, _, name = (word.strip() for word in line.partition(","))
        if not number.isdecimal() or not is_inside(name):
            raise InputError(f"{place}: expected `number , name`, found `{line[:60]}`")
        photo = photos.get(name, root / "images" / f"{name}.jpg")
        masks = [root / "labels" / name / f"{name}_lbl{label:02d}.png" for label in range(len(HELEN))]
        yield Sample(name, photo, (maps.get(name, root / "labels" / f"{name}.png"),) if maps else tuple(masks))


def read_soft(sample: Sample) -> np.ndarray:
    """Label map uint8 (H, W) of HELEN's 11 ids: the strongest of the soft masks at each pixel, the first in a tie."""
    strongest = images.read_labels(sample.masks[0])
    labels = np.zeros_like(strongest)
    for label, path in enumerate(sample.masks[1:], 1):
        mask = images.read_labels(path)
        if mask.shape != labels.shape:
            raise InputError(f"sizes differ: masks {sample.masks[0]} and {path}")
        stronger = mask > strongest
        labels[stronger] = label
        strongest = np.maximum(strongest, mask)
    return labels
