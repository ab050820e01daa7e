"""Tells what is wrong with a download: ``python -m data.check --dataset celebamask --data DIR --out sheet.png``.

Every problem is listed, then a summary. Exit status: 0 when all is well, 1 when problems were found, 2 for bad usage.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from data import images
from data.labels import LABELS, TABLES
from data.source import SPLITS, Listing, Sample, find, id_problem, read_face, size_problem
from utils import visualize
from utils.errors import InputError
from utils.options import Parser
from utils.runtime import run_main

SHEET_FACES, SHEET_COLUMNS, SHEET_CELL = 24, 6, 224
FEW_FACES = 10  # below so many, a part that no face has may be chance
FEW_SWAPPED = 0.01  # share of faces with swapped sides that CelebAMask-HQ itself stays below
LISTED_SIZES = 6
T = TypeVar("T")
_PAIRS = ((1, 2), (3, 4))  # (brow1, brow2), (eye1, eye2)


class Face(NamedTuple):
    """What one face shows.

    size: (H, W) of the photo. present: bool (classes,), None for unreadable masks. swapped: pairs of labels that lie
    the wrong way round.
    """

    sample: Sample
    problems: list[str]
    size: tuple[int, int] | None
    present: np.ndarray | None
    swapped: tuple[tuple[int, int], ...]


def main(argv: list[str] | None = None) -> int:
    """Checks a data folder and prints what it finds. Returns 1 when there are problems, else 0.

    Raises InputError where the folder or the options leave nothing to check.
    """
    options = _parse(argv)
    splits = [options.split] if options.split else list(SPLITS)
    listings, problems = _list_splits(options, splits)
    checked: list[tuple[Listing, list[Face]]] = []
    for split, listing in listings.items():
        problems += listing.problems
        faces = check_faces(options.dataset, listing, options.max_images, split)
        checked.append((listing, faces))
        print(f"\n{options.dataset} {split}: {len(listing.samples)} faces, {len(faces)} checked")
        problems += _report(options.dataset, split, faces)
    if options.out:
        _draw_sheet(options.dataset, checked, options.out)
    print()
    for problem in problems:
        print(f"problem: {problem}")
    total = sum(len(faces) for _, faces in checked)
    print(f"{len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'} in {total} faces")
    return 1 if problems else 0


def check_faces(dataset: str, listing: Listing, most: int | None = None, title: str = "") -> list[Face]:
    """Reads up to ``most`` faces of a listing, evenly spread, and tells what is wrong with each."""
    samples = _spread(listing.samples, most)
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        faces = pool.imap(lambda sample: check_face(dataset, listing, sample), samples)
        return list(tqdm(faces, title, len(samples), disable=not sys.stderr.isatty()))


def check_face(dataset: str, listing: Listing, sample: Sample) -> Face:
    """Reads one face and collects all of its problems."""
    problems: list[str] = []
    photo, labels = None, None
    try:
        photo = images.read_photo(sample.photo) if sample.masks else None  # synthetic faces have no files
    except InputError as error:
        problems.append(str(error))
    try:
        labels = listing.read_labels(sample)
    except InputError as error:
        problems.append(str(error))
    size = None if photo is None else (photo.shape[0], photo.shape[1])
    if labels is None:
        return Face(sample, problems, size, None, ())
    found = [id_problem(dataset, sample, labels)]
    if size:
        found.append(size_problem(sample, size, (labels.shape[0], labels.shape[1]), listing.shrink))
    problems += [problem for problem in found if problem]
    table = TABLES[dataset]
    present = np.bincount(labels.ravel(), minlength=256)[: len(table.names)] > 0
    return Face(sample, problems, size if sample.masks else labels.shape, present, _swapped_pairs(table.merge[labels]))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__.partition("\n")[0])
    parser.prog = "python -m data.check"
    parser.add_argument("--dataset", required=True, choices=list(TABLES))
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set (none for synthetic)")
    parser.add_argument("--split", choices=SPLITS, help="default: all three")
    parser.add_argument("--partition", help="official CelebAMask-HQ: standard or paper (default: standard if possible)")
    parser.add_argument("--max-images", type=int, metavar="N", help="check at most N faces of a split, evenly spread")
    parser.add_argument("--out", type=Path, metavar="FILE", help="contact sheet to draw, .png or .jpg")
    options = parser.parse_args(argv)
    if options.max_images is not None and options.max_images < 1:
        raise InputError(f"--max-images {options.max_images}: must be at least 1")
    if options.out and options.out.suffix.lower() not in images.PHOTO_SUFFIXES:
        raise InputError(f"--out {options.out}: must end in .png or .jpg")
    if options.out and options.out.exists():
        raise InputError(f"--out {options.out}: exists already; name another file or remove it")
    return options


def _list_splits(options: argparse.Namespace, splits: list[str]) -> tuple[dict[str, Listing], list[str]]:
    """Listings of the splits that can be listed, and the problems of those that cannot."""
    listings: dict[str, Listing] = {}
    errors: list[InputError] = []
    for split in splits:
        try:
            listings[split] = find(options.dataset, options.data, split, options.partition)
        except InputError as error:
            errors.append(error)
    if not listings:
        raise errors[0]
    return listings, [str(error) for error in errors]


def _report(dataset: str, split: str, faces: list[Face]) -> list[str]:
    """Prints sizes and parts of a split; returns its problems."""
    problems = [problem for face in faces for problem in face.problems]
    sizes = [face.size for face in faces if face.size]
    if sizes:
        print(f"  sizes (width×height): {_describe_sizes(sizes)}")
    read = [face.present for face in faces if face.present is not None]
    if not read:
        return problems
    names, merge = TABLES[dataset].names, TABLES[dataset].merge
    present = np.sum(read, axis=0)
    print(f"  {'part':<12} {'faces':>6} {'without':>8}")
    for label, name in enumerate(names[1:], 1):
        without = 1 - present[label] / len(read)
        print(f"  {name:<12} {present[label]:>6} {without:>8.1%}")
        if present[label] == 0 and merge[label] != 0 and len(read) >= FEW_FACES:
            problems.append(f"no face of split {split} has part {name}: were its masks unpacked?")
    for one, two in _PAIRS:
        swapped = [face.sample.name for face in faces if (one, two) in face.swapped]
        line = f"{LABELS[one]} lies right of {LABELS[two]} in split {split}: {images.shorten(swapped)}"
        if len(swapped) > FEW_SWAPPED * len(read):
            problems.append(f"sides swapped: {line}")
        elif swapped:
            print(f"  note: {line}; so few are slips of the annotators")
    return problems


def _describe_sizes(sizes: Iterable[tuple[int, int]]) -> str:
    counts = Counter(sizes)
    if len(counts) <= LISTED_SIZES:
        return ", ".join(f"{width}×{height}: {count}" for (height, width), count in counts.most_common())
    heights, widths = zip(*counts.elements(), strict=True)
    middle = f"{int(np.median(widths))}×{int(np.median(heights))}"
    return f"{len(counts)} sizes, {min(widths)}×{min(heights)} to {max(widths)}×{max(heights)}, median {middle}"


def _swapped_pairs(labels: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The pairs of a nine-label map whose first part lies on the image's right of the second."""
    swapped = []
    for one, two in _PAIRS:
        left, right = np.nonzero(labels == one)[1], np.nonzero(labels == two)[1]
        if len(left) and len(right) and left.mean() > right.mean():
            swapped.append((one, two))
    return tuple(swapped)


def _spread(items: list[T], most: int | None) -> list[T]:
    """At most so many items, evenly spread."""
    if most is None or most >= len(items):
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _draw_sheet(dataset: str, checked: list[tuple[Listing, list[Face]]], path: Path) -> None:
    """Overlays of up to 24 faces that can be read, those with problems first."""
    faces = [(listing, face) for listing, faces in checked for face in faces if face.present is not None]
    bad = [(listing, face.sample) for listing, face in faces if face.problems or face.swapped]
    good = [(listing, face.sample) for listing, face in faces if not (face.problems or face.swapped)]
    chosen = _spread(bad, SHEET_FACES)
    chosen += _spread(good, SHEET_FACES - len(chosen))
    merge = TABLES[dataset].merge
    pictures = []
    for listing, sample in chosen:
        try:
            photo, labels = read_face(dataset, listing.read_labels, listing.shrink, sample)
        except InputError:
            continue  # listed among the problems
        pictures.append(visualize.overlay(photo, merge[labels]))
    if not pictures:
        print("\nno contact sheet: no face can be drawn")
        return
    sheet = visualize.tile(pictures, SHEET_COLUMNS, SHEET_CELL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(path)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror}") from error
    print(f"\ncontact sheet of {len(pictures)} faces: {path}")


if __name__ == "__main__":
    sys.exit(run_main(main))
