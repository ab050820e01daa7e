"""YuNet and MTCNN on the photos of one folder of people: how many faces each finds, and where they disagree.

Reads what ``retrieval.align`` wrote for each, in the same order of photos.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import read_photo
from retrieval.align import RECORD
from scoring.pictures import encode, tile
from utils import files
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import run_main

AGREE = 0.4  # least overlap (intersection over union) of boxes of one face: the detectors draw them differently
SHOWN = 24
COLOURS = ((40, 200, 60), (220, 40, 40))


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union of two boxes (left, top, width, height)."""
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(wide, 0) * max(high, 0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def compare(one: list[dict], other: list[dict]) -> tuple[dict[str, float], list[str]]:
    """Counts over the photos, and the photos that the detectors disagree about, least overlap first."""
    overlaps = {}
    for a, b in zip(one, other, strict=True):
        both = a["box"] and b["box"]
        overlaps[a["photo"]] = overlap(a["box"], b["box"]) if both else float(not (a["box"] or b["box"]))
    counted = {
        "photos": len(one),
        "found by the first": float(np.mean([row["faces"] > 0 for row in one])),
        "found by the second": float(np.mean([row["faces"] > 0 for row in other])),
        "found by both": float(np.mean([a["faces"] > 0 and b["faces"] > 0 for a, b in zip(one, other, strict=True)])),
        "median overlap": float(np.median(list(overlaps.values()))),
        "other faces chosen, or missed": sum(value < AGREE for value in overlaps.values()),
        "several faces in the first": float(np.mean([row["faces"] > 1 for row in one])),
        "several faces in the second": float(np.mean([row["faces"] > 1 for row in other])),
    }
    return counted, [name for name in sorted(overlaps, key=overlaps.__getitem__) if overlaps[name] < AGREE]


def drawn(photo_HW3: np.ndarray, boxes: list[list[float] | None]) -> np.ndarray:
    """The photo with the boxes, the first green, the second red."""
    picture = photo_HW3.copy()
    for box, colour in zip(boxes, COLOURS, strict=True):
        if box is not None:
            left, top, right, bottom = (max(0, int(v)) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
            inside = picture[top + 2 : bottom - 2, left + 2 : right - 2].copy()
            picture[top:bottom, left:right] = colour
            picture[top + 2 : bottom - 2, left + 2 : right - 2] = inside
    return picture


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    cli.add_argument("photos", type=Path, help="the folder of people")
    cli.add_argument("one", type=Path, help="what retrieval.align made of it with one detector")
    cli.add_argument("other", type=Path, help="and with another")
    cli.add_argument("--sheet", type=Path, metavar="FILE", help="a PNG of the photos that they disagree about")
    args = cli.parse_args(argv)
    one, other = (files.read_json_lines(folder / RECORD, "record") for folder in (args.one, args.other))
    if [row["photo"] for row in one] != [row["photo"] for row in other]:
        raise InputError(f"{args.one} and {args.other} are of different photos: align the same folder with both")
    counted, apart = compare(one, other)
    print(json.dumps(counted, indent=1))
    print("\n".join(apart))
    if args.sheet and apart:
        boxes = {a["photo"]: [a["box"], b["box"]] for a, b in zip(one, other, strict=True)}
        pictures = [drawn(read_photo(args.photos / name), boxes[name]) for name in apart[:SHOWN]]
        files.write_bytes(args.sheet, encode(Image.fromarray(tile(pictures, 6, 200)), "PNG"))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
