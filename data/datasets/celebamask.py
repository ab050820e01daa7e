"""CelebAMask-HQ (Lee et al. 2019) in its official layout and in the layout of its face parsing challenge.

Both give label maps of the challenge's ids 0–18 (``data.labels.CELEBAMASK``).
"""

import os
from pathlib import Path

import numpy as np

from data import images
from data.labels import CELEBAMASK
from data.listing import Listing, NoMasks, Sample, list_lines, pair, read_map
from utils.errors import InputError

PHOTO_FOLDER, PART_FOLDER = "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
MAPPING_FILE = "CelebA-HQ-to-CelebA-mapping.txt"
PARTITIONS = ("standard", "paper")
FACES_PER_FOLDER = 2000
LAYOUT = (
    f"expected either {PHOTO_FOLDER}/ and {PART_FOLDER}/ (official layout) "
    "or train/train_image/, train/train_mask/, val/…, test/… (challenge layout; test_image/ at the top too)"
)

# First number that no longer belongs to (train, val).
_STANDARD_ENDS = (162771, 182638)  # CelebA's own numbers, as the data set's g_partition does
_PAPER_ENDS = (18000, 24000)  # CelebA-HQ's numbers: 6:2:2 of 30,000


def find(root: Path, split: str, partition: str | None = None) -> Listing:
    """Lists one split of a CelebAMask-HQ folder in either layout; no picture is opened.

    partition: for the official layout, ``standard`` (CelebA's split, through the mapping file) or ``paper`` (6:2:2 by
    number); None takes the standard one where the mapping file is there. The challenge layout has its own.
    Raises InputError for an unknown layout, an unknown partition, and a split without photos or without any mask.
    """
    if (root / PHOTO_FOLDER).is_dir() or (root / PART_FOLDER).is_dir():
        return _find_official(root, split, partition)
    if any(
        (root / name / f"{name}_{kind}").is_dir() for name in ("train", "val", "test") for kind in ("image", "mask")
    ):
        if partition is not None:
            raise InputError(f"partition {partition}: {root} has the challenge layout and its own split; leave it out")
        return _find_challenge(root, split)
    raise InputError(f"no CelebAMask-HQ layout in {root}: {LAYOUT}")


def _find_challenge(root: Path, split: str) -> Listing:
    photo_folder, mask_folder = (root / split / f"{split}_{kind}" for kind in ("image", "mask"))
    if split == "test" and not photo_folder.is_dir() and (root / "test_image").is_dir():
        photo_folder, mask_folder = root / "test_image", root / "test_mask"
    if not photo_folder.is_dir():
        raise InputError(f"no folder {photo_folder} for split {split}: {LAYOUT}")
    photos = images.list_files(photo_folder, images.PHOTO_SUFFIXES)
    masks = images.list_files(mask_folder, images.MASK_SUFFIXES) if mask_folder.is_dir() else {}
    if photos and not masks:
        hint = "; the public challenge keeps its test masks: take another split" if split == "test" else ""
        problem = InputError if mask_folder.is_dir() or split != "test" else NoMasks
        raise problem(f"no masks for split {split}: looked for {mask_folder}/*.png{hint}")
    samples, problems = pair(split, photos, {name: (path,) for name, path in masks.items()})
    return Listing(samples, problems, read_map)


def _find_official(root: Path, split: str, partition: str | None) -> Listing:
    for folder in (root / PHOTO_FOLDER, root / PART_FOLDER):
        if not folder.is_dir():
            raise InputError(f"no folder {folder}: {LAYOUT}")
    files = images.list_files(root / PHOTO_FOLDER, images.PHOTO_SUFFIXES)
    photos = {int(stem): path for stem, path in files.items() if stem.isdecimal()}
    parts, strange = _list_parts(root / PART_FOLDER)
    strange += [path.name for stem, path in files.items() if not stem.isdecimal()]
    problems = [f"files that name no face or no known part: {images.shorten(strange)} in {root}"] if strange else []

    ends, mapping = _choose_partition(root, partition)
    if mapping is not None:
        unmapped = sorted((photos.keys() | parts.keys()) - mapping.keys())
        if unmapped:
            problems.append(f"faces not in {root / MAPPING_FILE}: {images.shorten(map(str, unmapped))}")
    numbers = {n: n for n in photos.keys() | parts.keys()} if mapping is None else mapping
    inside = {n for n, number in numbers.items() if _split_of(number, ends) == split}
    samples, missing = pair(
        split,
        {str(n): path for n, path in photos.items() if n in inside},
        {str(n): tuple(paths[part] for part in sorted(paths)) for n, paths in parts.items() if n in inside},
    )
    return Listing(samples, problems + missing, _read_official, shrink=True, shows=_part_of)


def _read_official(sample: Sample) -> np.ndarray:
    """Paints the parts in the order of their ids, later over earlier, as the data set's g_mask does."""
    labels = None
    for path in sample.masks:
        part = images.read_labels(path)
        if labels is None:
            labels = np.zeros_like(part)
        if part.shape != labels.shape:
            raise InputError(f"sizes differ: masks {sample.masks[0]} and {path}")
        labels[part != 0] = CELEBAMASK.names.index(_part_of(path))
    assert labels is not None, "find() lists only faces with at least one part"
    return labels


def _part_of(path: Path) -> str:
    return path.stem.partition("_")[2]


def _list_parts(folder: Path) -> tuple[dict[int, dict[int, Path]], list[str]]:
    """Face number -> class id -> file, from the folders 0 … 14; and the names that fit no face or part."""
    faces: dict[int, dict[int, Path]] = {}
    strange = []
    ids = {name: i for i, name in enumerate(CELEBAMASK.names) if i}
    with os.scandir(folder) as entries:
        subfolders = sorted((e.name for e in entries if e.is_dir() and e.name.isdecimal()), key=int)
    for subfolder in subfolders:
        here = folder / subfolder
        for name in sorted(os.listdir(here)):
            if name.startswith(".") or not name.lower().endswith(images.MASK_SUFFIXES):
                continue
            number, _, part = name[:-4].partition("_")
            if not number.isdecimal() or part not in ids or int(number) // FACES_PER_FOLDER != int(subfolder):
                strange.append(f"{subfolder}/{name}")
                continue
            paths = faces.setdefault(int(number), {})
            if ids[part] in paths:
                raise InputError(f"two files for one part in {here}: {paths[ids[part]].name} and {name}; keep one")
            paths[ids[part]] = here / name
    return faces, strange


def _choose_partition(root: Path, partition: str | None) -> tuple[tuple[int, int], dict[int, int] | None]:
    path = root / MAPPING_FILE
    if partition is None:
        partition = "standard" if os.path.lexists(path) else "paper"
    if partition not in PARTITIONS:
        raise InputError(f"unknown partition {partition}: choose from {', '.join(PARTITIONS)}")
    if partition == "paper":
        return _PAPER_ENDS, None
    if not os.path.lexists(path):
        raise InputError(f"no file {path}, which the standard partition needs: add it or take partition paper")
    return _STANDARD_ENDS, _read_mapping(path)


def _read_mapping(path: Path) -> dict[int, int]:
    """CelebA-HQ number -> CelebA number (``orig_idx``, from 0) of the mapping file."""
    lines = list_lines(path, "mapping file")
    columns = next(lines, ("", ""))[1].split()
    if "idx" not in columns or "orig_idx" not in columns:
        raise InputError(f"{path} line 1: expected the columns idx, orig_idx, orig_file")
    own, original = columns.index("idx"), columns.index("orig_idx")
    mapping: dict[int, int] = {}
    for place, line in lines:
        words = line.split()
        try:
            number, original_number = int(words[own]), int(words[original])
        except (ValueError, IndexError):
            raise InputError(f"{place}: expected numbers under idx and orig_idx") from None
        if number in mapping:
            raise InputError(f"{place}: face {number} is listed twice; keep one line")
        mapping[number] = original_number
    return mapping


def _split_of(number: int, ends: tuple[int, int]) -> str:
    return "train" if number < ends[0] else "val" if number < ends[1] else "test"
