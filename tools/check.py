"""Checks a data set for damaged, missing or mislabelled files.

``python -m tools.check --dataset celebamask --data DIR --out sheet.png``

Every problem is listed, then a summary. Exit status: 0 when all is well, 1 when problems were found, 2 for bad usage.
Oddities in at most 1 % of the faces are notes, not problems: annotators err, and some photos are odd.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import images
from data.labels import NO_ID, PARTS, LabelSet
from data.listing import SIDES, SPLITS, Listing, NoMasks, Sample, id_problem, side_steps, size_problem
from data.source import FaceData, find, reader
from faces.detect import Detector
from faces.scene import SceneParser
from models.loading import SHIPPED_WEIGHTS, load_for_inference
from scoring import pictures
from scoring.options import add_data_options, check, refuse_existing
from tools import oddities
from utils.cli import Parser
from utils.errors import InputError
from utils.files import make_folder, write_bytes
from utils.runtime import printable, run_main

SHEET_FACES, SHEET_COLUMNS, SHEET_CELL = 24, 6, 224
FEW_FACES = 10  # below so many, a part that no face has may be chance
FEW = 0.01  # largest share of odd faces of one kind that is only noted; CelebAMask-HQ stays below it
FILLS_PART, FILLS = 0.5, 0.95  # share of the photo from which a part's label, and any other one, is no sound mask
LISTED_SIZES, LISTED_ODD = 6, 12
T = TypeVar("T")


@dataclass
class Checked:
    """What one face shows; None and NaN where that cannot be known.

    size: (H, W) of the photo, of synthetic faces of the label map. present: bool (labels + 1,), the last of ignored
    pixels; None for unreadable masks. swapped: pairs of ``SIDES`` that lie the wrong way round. faceless: whether no
    face is found in the photo. square_SS (of the largest face), places_P2: see ``tools.oddities``. parsed_SS, own_SS:
    what the parser sees and what the label map shows, see ``small_parts`` there.
    """

    sample: Sample
    problems: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    present: np.ndarray | None = None
    swapped: tuple[tuple[str, str], ...] = ()
    faceless: bool = False
    square_SS: np.ndarray | None = None
    places_P2: np.ndarray | None = None
    parsed_SS: np.ndarray | None = None
    own_SS: np.ndarray | None = None


def main(argv: list[str] | None = None) -> int:
    """Checks a data folder and prints what it finds. Returns 1 when there are problems, else 0.

    Raises InputError where the folder or the options leave nothing to check.
    """
    options = _parse(argv)
    data = FaceData(
        options.dataset, options.data, options.partition, label_set=options.labels, ignore=options.ignore_255
    )
    splits = [options.split] if options.split else list(SPLITS)
    listings, problems = _list_splits(data, splits)
    scenes = SceneParser(load_for_inference([SHIPPED_WEIGHTS], torch.device("cpu")), Detector())
    checked: dict[str, list[Checked]] = {}
    odd: set[Sample] = set()
    for split, listing in listings.items():
        problems += listing.problems
        faces = check_faces(data.labels, listing, scenes, options.max_images, split)
        checked[split] = faces
        print(f"\n{options.dataset} {split}: {len(listing.samples)} faces, {len(faces)} checked")
        problems += _report(data.labels, split, faces, odd)
    problems += _copies(checked, odd)
    if options.out:
        _draw_sheet(data, [(listings[split], faces) for split, faces in checked.items()], odd, options.out)
    print()
    problems = list(dict.fromkeys(problems))
    for problem in problems:
        print(f"problem: {printable(problem)}")
    total = sum(len(faces) for faces in checked.values())
    print(f"{len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'} in {total} faces")
    return 1 if problems else 0


def check_faces(
    labels: LabelSet, listing: Listing, scenes: SceneParser, most: int | None = None, title: str = ""
) -> list[Checked]:
    """Reads up to ``most`` faces of a listing, evenly spread, and finds what is wrong with each. scenes: is called from
    several threads."""
    samples = _spread(listing.samples, most)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faces = pool.map(lambda sample: check_face(labels, listing, scenes, sample), samples)
        return list(tqdm(faces, title, len(samples), disable=None))


def check_face(labels: LabelSet, listing: Listing, scenes: SceneParser, sample: Sample) -> Checked:
    """Reads one face and collects all of its problems."""
    face, photo, ids = Checked(sample), None, None
    try:
        photo = images.read_photo(sample.photo) if sample.masks else None  # synthetic faces have no files
    except InputError as error:
        face.problems.append(str(error))
    try:
        ids = listing.read_labels(sample)
    except InputError as error:
        face.problems.append(str(error))
    picture, found = None, []
    if photo is not None:
        face.size, image_256 = (photo.shape[0], photo.shape[1]), images.make_image_256(photo)
        for picture in (image_256, photo):
            if found := scenes.detector.find(picture):
                face.square_SS = oddities.face_square(picture, found[0])
                break
        face.faceless = not found
    if ids is None:
        return face
    own_size = (ids.shape[0], ids.shape[1])
    shares = np.bincount(ids.ravel(), minlength=256)[: len(labels)] / ids.size
    face.present = np.append(shares > 0, (ids == NO_ID).any())
    face.swapped = tuple(pair for pair, step in zip(SIDES, side_steps(ids, labels), strict=True) if step > 0)
    unknown = id_problem(labels, sample, ids)
    differ = size_problem(sample, face.size, own_size, listing.shrink) if face.size else None
    face.problems += [problem for problem in (unknown, differ) if problem]
    if not sample.masks:
        face.size = own_size
    elif not unknown:
        face.problems += _empty_or_full(labels, listing, sample, shares)
    if unknown or not labels.part_ids:
        return face
    face.places_P2 = oddities.part_places(ids, labels)
    if picture is not None and found:
        own_SS = oddities.small_parts(ids, labels)
        (scene,) = scenes.parse_found([picture], [found])
        owned = (scene.labels_HW * (scene.owners_HW == k) for k in range(1, 1 + len(scene.faces)))
        seen = [oddities.small_parts(ids_HW, scene.labels) for ids_HW in owned] or [np.zeros_like(own_SS)]
        face.parsed_SS = max(seen, key=lambda seen_SS: oddities.agreement(seen_SS, own_SS[None])[0])
        face.own_SS = own_SS
    return face


def _parse(argv: list[str] | None) -> argparse.Namespace:
    cli = Parser(__doc__.partition("\n")[0])
    add_data_options(cli, required=True)
    cli.add_argument("--split", choices=SPLITS, help="default: all three")
    cli.add_argument("--max-images", type=int, metavar="N", help="check at most N faces of a split, evenly spread")
    cli.add_argument("--out", type=Path, metavar="FILE", help="contact sheet to draw, .png or .jpg")
    cli.add_argument("--overwrite", action="store_true", help="replace the contact sheet")
    options = cli.parse_args(argv)
    check(options, folders=())
    if options.out and options.out.suffix.lower() not in images.PHOTO_SUFFIXES:
        raise InputError(f"--out {options.out}: must end in .png or .jpg")
    if options.out:
        refuse_existing("--out", options.out, options.overwrite)
        make_folder(options.out.parent, "--out")
    return options


def _list_splits(data: FaceData, splits: list[str]) -> tuple[dict[str, Listing], list[str]]:
    """Listings of the splits that can be listed, and the problems of those that cannot; what is none is printed."""
    listings: dict[str, Listing] = {}
    errors: list[InputError] = []
    for split in splits:
        try:
            listings[split] = find(data, split)
        except InputError as error:
            errors.append(error)
    if not listings:
        raise errors[0]
    notes = [listing.note for listing in listings.values() if listing.note]
    for note in dict.fromkeys((*notes, *(str(error) for error in errors if isinstance(error, NoMasks)))):
        print(f"note: {printable(note)}")
    return listings, [str(error) for error in errors if not isinstance(error, NoMasks)]


def _report(labels: LabelSet, split: str, faces: list[Checked], odd: set[Sample]) -> list[str]:
    """Prints sizes, parts and oddities of a split; returns its problems. odd: the odd faces are added."""
    problems = [problem for face in faces for problem in face.problems]
    sizes = [face.size for face in faces if face.size]
    if sizes:
        print(f"  sizes (width×height): {_describe_sizes(sizes)}")
    read = [face.present for face in faces if face.present is not None]
    if not read:
        return problems
    present, in_parts = np.sum(read, axis=0), set(sum(labels.part_ids, ()))
    print(f"  {'part':<12} {'faces':>6} {'without':>8}")
    for label, name in enumerate((*labels.foreground, *["(ignored)"] * labels.ignores), 1):
        without = 1 - present[label] / len(read)
        print(f"  {name:<12} {present[label]:>6} {without:>8.1%}")
        if present[label] == 0 and label in in_parts and len(read) >= FEW_FACES:
            problems.append(f"no face of split {split} has part {name}: were its masks unpacked?")
    for one, two in SIDES:
        swapped = [(face.sample, "") for face in faces if (one, two) in face.swapped]
        problems += _judge(f"sides swapped: {one} lies right of {two} in split {split}", swapped, len(read), odd)
    problems += _judge(f"parts far from where they usually lie in split {split}", _far(faces), len(read), odd)
    usual, foreign = _foreign(faces)
    if usual < oddities.KNOWN:
        print(f"  note: label maps agree little with the shipped weights' (F1 {usual:.2f}): are they these photos'?")
    what = f"label maps that are shifted or another photo's, by what the shipped weights see, in split {split}"
    problems += _judge(what, foreign, len(read), odd)
    faceless = [(face.sample, "") for face in faces if face.faceless]
    problems += _judge(f"photos in which no face is found in split {split}", faceless, len(faces), odd)
    return problems


def _judge(what: str, found: list[tuple[Sample, str]], count: int, odd: set[Sample]) -> list[str]:
    """One line for odd faces of one kind: a problem, or while they are few of ``count`` a note, which is printed.

    found: the faces, and what is to be said of each.
    """
    odd.update(sample for sample, _ in found)
    names = (f"{sample.name} {detail}".strip() for sample, detail in found)
    line = f"{what}: {images.shorten(names, LISTED_ODD)}"
    if len(found) > FEW * count:
        return [line]
    if found:
        print(f"  note: {printable(line)}")
    return []


def _far(faces: list[Checked]) -> list[tuple[Sample, str]]:
    """The faces of a split with parts in strange places, and which parts; none of so few that places are chance."""
    placed = [face for face in faces if face.places_P2 is not None]
    if len(placed) < FEW_FACES:
        return []
    far_NP = oddities.far_parts(np.array([face.places_P2 for face in placed]))
    names = ["+".join(name for name, far in zip(PARTS, far_P, strict=True) if far) for far_P in far_NP]
    return [(face.sample, name) for face, name in zip(placed, names, strict=True) if name]


def _foreign(faces: list[Checked]) -> tuple[float, list[tuple[Sample, str]]]:
    """How well the label maps of a split agree with what the parser sees, see ``oddities.misfits``; and the faces whose
    label maps are another photo's, and whose, where that is known."""
    parsed = [face for face in faces if face.parsed_SS is not None]
    maps = (np.array([getattr(face, name) for face in parsed]) for name in ("parsed_SS", "own_SS"))
    usual, found = oddities.misfits(*maps)
    return usual, [(parsed[n].sample, "" if k is None else f"looks like {parsed[k].sample.name}'s") for n, k in found]


def _copies(checked: dict[str, list[Checked]], odd: set[Sample]) -> list[str]:
    """A problem for each two splits that show nearly the same photo. odd: such faces are added."""
    problems = []
    seen = {split: [face for face in faces if face.square_SS is not None] for split, faces in checked.items()}
    for (one, ones), (two, others) in combinations(seen.items(), 2):
        squares = (np.array([face.square_SS for face in faces]) for faces in (ones, others))
        same = [(ones[i].sample, others[j].sample) for i, j in oddities.copies(*squares)]
        odd.update(sample for pair in same for sample in pair)
        if same:
            names = images.shorten(f"{a.name} and {b.name}" for a, b in same)
            problems.append(f"nearly the same photo in the splits {one} and {two}: {names}")
    return problems


def _empty_or_full(labels: LabelSet, listing: Listing, sample: Sample, shares: np.ndarray) -> list[str]:
    """The problems of masks that show nothing, or a label from edge to edge. shares: of each label in the photo."""
    if not shares[1:].any():
        return [f"empty mask {sample.masks[0]}: it shows no part of a face"]
    problems = []
    for path in sample.masks:
        hidden = listing.shows is not None and shares[labels.names.index(listing.shows(path))] == 0
        if hidden and not images.read_labels(path).any():
            problems.append(f"empty mask {path}: it shows nothing of its part")
    in_parts = set(sum(labels.part_ids, ()))
    for label, name in enumerate(labels.foreground, 1):
        if shares[label] >= (FILLS_PART if label in in_parts else FILLS):
            problems.append(f"{name} fills {shares[label]:.0%} of the photo in mask {sample.masks[0]}")
    return problems


def _describe_sizes(sizes: Iterable[tuple[int, int]]) -> str:
    counts = Counter(sizes)
    if len(counts) <= LISTED_SIZES:
        return ", ".join(f"{width}×{height}: {count}" for (height, width), count in counts.most_common())
    heights, widths = zip(*counts.elements(), strict=True)
    middle = f"{int(np.median(widths))}×{int(np.median(heights))}"
    return f"{len(counts)} sizes, {min(widths)}×{min(heights)} to {max(widths)}×{max(heights)}, median {middle}"


def _spread(items: list[T], most: int | None) -> list[T]:
    """At most so many items, evenly spread."""
    if most is None or most >= len(items):
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _draw_sheet(data: FaceData, checked: list[tuple[Listing, list[Checked]]], odd: set[Sample], path: Path) -> None:
    """Overlays of up to 24 faces that can be read, those with problems and the odd ones first."""
    faces = [(listing, face) for listing, faces in checked for face in faces if face.present is not None]
    bad = [(listing, face.sample) for listing, face in faces if face.problems or face.sample in odd]
    good = [(listing, face.sample) for listing, face in faces if not (face.problems or face.sample in odd)]
    chosen = _spread(bad, SHEET_FACES)
    chosen += _spread(good, SHEET_FACES - len(chosen))
    shown = []
    for listing, sample in chosen:
        try:
            photo, ids = reader(data, listing)(sample)
        except InputError:
            continue  # listed among the problems
        shown.append(pictures.overlay(photo, ids, data.labels))
    if not shown:
        print("\nno contact sheet: no face can be drawn")
        return
    sheet = pictures.tile(shown, SHEET_COLUMNS, SHEET_CELL)
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    write_bytes(path, pictures.encode(Image.fromarray(sheet), kind))
    print(f"\ncontact sheet of {len(shown)} faces: {printable(str(path))}")


if __name__ == "__main__":
    sys.exit(run_main(main, "interrupted"))
