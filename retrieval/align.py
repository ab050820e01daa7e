"""Crops the face from every photo in a folder of people (one folder per person), as FaceNet's release does.

Writes OUT/<person>/<photo>.png, and OUT/faces.jsonl: for each photo the number of faces and the box of the chosen one.
Run again, it continues where it stopped, repeats photos that have changed (by SHA-256) and removes the faces of deleted
photos. Photos without a face are kept whole, and listed.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.transform import estimate_transform
from tqdm import tqdm

from data.images import read_photo, shorten, warp_frame
from faces.align import frame_of
from faces.detect import Detection, Detector
from retrieval.mtcnn import Mtcnn
from retrieval.people import CROP, INSIDE, list_people
from scoring import options
from scoring.pictures import encode
from utils import distributed, files, locks
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import is_out_of_memory, printable, run_main

DETECTORS = {"yunet": Detector, "mtcnn": Mtcnn}
RECORD, SETTINGS = "faces.jsonl", "align.json"
SHAPES = ("box", "upright", "dlib")
NARROW = 0.62  # of the frame that parsing uses: from the brow to below the mouth
OLD_ZOOM = 1.08  # of the faces that older versions cut out for dlib's network; their folders do not say so
# where a face's points (see ``Detection``) lie in the square for dlib's network, -1 to 1 from edge to edge: the medians
# in dlib's own squares with five pixels around, enlarged by ``OLD_ZOOM``
DLIB_POINTS_52 = np.array([(-0.372, -0.408), (0.372, -0.408), (0, 0.046), (-0.329, 0.367), (0.329, 0.367)])


@dataclass(frozen=True)
class Cut:
    """How a face is cut out. shape: "box", or a square turned as the face is, one of ``SHAPES``. image_size: side of
    the result, pixels. margin: what is added to the box's width and to its height, pixels of the photo. zoom: of dlib's
    square."""

    detector: str = "yunet"
    image_size: int = CROP
    margin: int = 32
    shape: str = "box"
    zoom: float = 1.0


def choose(faces: list[Detection], height: int, width: int) -> Detection | None:
    """The face that is large and near the photo's middle: largest area - 2 (distance of the centres)^2."""

    def value(face: Detection) -> float:
        left, top, wide, high = face.box
        off_x, off_y = left + wide / 2 - width / 2, top + high / 2 - height / 2
        return wide * high - 2 * (off_x**2 + off_y**2)

    return max(faces, key=value, default=None)


def rectangle(box: tuple[float, float, float, float], margin: int, height: int, width: int) -> tuple[int, ...]:
    """The box (left, top, width, height) with half the margin on each side, within the photo: whole pixels (left, top,
    right, bottom)."""
    left, top, wide, high = box
    half = margin / 2
    corners_4 = (left - half, top - half, left + wide + half, top + high + half)
    return tuple(np.clip(corners_4, 0, (width, height, width, height)).astype(int).tolist())


def fitted_square(points_52: np.ndarray, zoom: float) -> np.ndarray:
    """matrix_23 (see ``faces.align.Frame``) of the square where the points lie nearest to those of dlib's own squares,
    in least squares. zoom: how much larger the face is than there."""
    return estimate_transform("similarity", DLIB_POINTS_52 * (zoom / OLD_ZOOM), points_52).params[:2]


def cut_out(photo_HW3: np.ndarray, face: Detection, cut: Cut) -> np.ndarray:
    """The face as uint8 (S, S, 3). Antialiased; the box's aspect is not kept, that of squares is."""
    if cut.shape == "upright":
        return warp_frame(photo_HW3, frame_of(face.points_52).matrix_23 * [NARROW, NARROW, 1], cut.image_size)
    if cut.shape == "dlib":
        return warp_frame(photo_HW3, fitted_square(face.points_52, cut.zoom), cut.image_size)
    left, top, right, bottom = rectangle(face.box, cut.margin, *photo_HW3.shape[:2])
    if right <= left or bottom <= top:  # a box outside the photo
        return photo_HW3
    piece = Image.fromarray(photo_HW3[top:bottom, left:right])
    return np.array(piece.resize((cut.image_size, cut.image_size), Image.Resampling.BILINEAR))


@cache
def _finder(name: str) -> Detector | Mtcnn:
    """The one detector of its name, which threads share."""
    return DETECTORS[name]()


def cut_photo(photo_HW3: np.ndarray, cut: Cut) -> tuple[np.ndarray, Detection | None, int]:
    """The face of a photo, or the photo itself where there is none; the chosen face; and how many there are."""
    faces = _finder(cut.detector).find(photo_HW3)
    face = choose(faces, *photo_HW3.shape[:2])
    return (photo_HW3 if face is None else cut_out(photo_HW3, face, cut)), face, len(faces)


def align_photo(path: Path, target: Path, cut: Cut, old: dict[str, Any]) -> dict[str, Any]:
    """Write the face of a photo, or the photo itself where there is none; returns its row of the record, which is the
    old one where both files are still as it says."""
    row: dict[str, Any] = {"photo": _name(path)}
    try:
        row["photo_sha256"] = files.sha256(path)
        same = target.is_file() and old.get("photo_sha256") == row["photo_sha256"]
        if same and old.get("face_sha256") == files.sha256(target):
            return old
        picture, face, count = cut_photo(read_photo(path), cut)
    except InputError as error:
        return {**row, "failed": str(error)}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {**row, "failed": f"too little memory for the faces of {path}: save it smaller"}
    target.parent.mkdir(exist_ok=True)
    data = encode(Image.fromarray(picture), "PNG")
    files.write_bytes(target, data)
    row["face_sha256"] = hashlib.sha256(data).hexdigest()
    return {**row, "faces": count, "box": None if face is None else [round(value, 2) for value in face.box]}


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def align(source: Path, out: Path, cut: Cut, workers: int) -> list[dict[str, Any]]:
    """Align all photos; returns the rows of the record in order. Raises InputError."""
    people = list_people(source)
    with locks.one_run(out, "OUT"):
        _settle(out, {"source": os.path.realpath(source), **asdict(cut)})
        done, rows = _done(out), []
        targets = {path: out / path.parent.name / f"{path.stem}.png" for path in people.files}
        gone = done.keys() - {_name(path) for path in people.files}
        stale = {out / Path(name).with_suffix(".png") for name in gone} - {*targets.values()}
        for face in stale.intersection(out.glob("*/*.png")):
            face.unlink()
        _write_record(out, done.values())
        with open(out / RECORD, "a") as record, ThreadPoolExecutor(max(1, workers)) as pool:
            made = pool.map(lambda path: align_photo(path, targets[path], cut, done.get(_name(path), {})), targets)
            bar = tqdm(made, "align", len(targets), disable=None, leave=False)
            for target, row in zip(targets.values(), bar, strict=True):
                if "failed" in row:
                    print(f"failed: {printable(row['failed'])}", file=sys.stderr)
                    target.unlink(missing_ok=True)  # of the photo as it was
                    continue
                rows.append(row)
                record.write(json.dumps(row) + "\n")
                record.flush()
        for folder in out.iterdir():
            with suppress(OSError):  # files, and folders with faces
                folder.rmdir()
        _write_record(out, rows)
    return rows


def _write_record(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    files.write_text(out / RECORD, "".join(json.dumps(row) + "\n" for row in rows))


def _settle(out: Path, settings: dict[str, Any]) -> None:
    """Write down of which folder faces are cut out, and how. Raises InputError where the folder holds others."""
    path = out / SETTINGS
    if path.exists():
        if changed := distributed.difference(dict.fromkeys(settings) | _settings(path), settings):
            what = "repeat its IN and options, or choose another OUT"
            raise InputError(f"{out} holds faces cropped with {changed}: {what}")
        return
    if any(entry.name != ".lock" for entry in out.iterdir()):
        raise InputError(f"{out} holds other files: choose a new folder")
    files.write_text(path, json.dumps(settings, indent=1) + "\n")


def _settings(path: Path) -> dict[str, Any]:
    held = files.read_json(path, "settings")
    return {"zoom": OLD_ZOOM if held.get("shape") == "dlib" else Cut.zoom, **held}


def read_cut(out: Path) -> Cut | None:
    """How the faces of a folder were cut out; None where it does not say so, as one that an older version has made."""
    with suppress(InputError, TypeError):
        held = _settings(out / SETTINGS)
        return Cut(**{name: value for name, value in held.items() if name != "source"})
    return None


def _done(out: Path) -> dict[str, dict[str, Any]]:
    """The rows of an interrupted run."""
    path = out / RECORD
    if not os.path.lexists(path):
        return {}
    rows = files.read_json_lines(path, "record", unfinished=True)
    if not all(isinstance(row.get("photo"), str) and "box" in row for row in rows):
        raise InputError(f"{path} is damaged: remove {out} and align again")
    return {row["photo"]: row for row in rows}


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    cli.add_argument("source", type=Path, metavar="IN", help="photos, one folder per person")
    cli.add_argument("out", type=Path, metavar="OUT", help="folder for the faces")
    cli.add_argument("--image-size", type=int, default=CROP, metavar="N", help="side of the crop, pixels")
    cli.add_argument("--margin", type=int, default=32, metavar="N", help="added to a box's sides, pixels")
    cli.add_argument("--detector", choices=tuple(DETECTORS), default="yunet", help="face detector")
    cli.add_argument(
        "--cut",
        dest="shape",
        choices=SHAPES,
        default="box",
        help="box: the detector's, for the published weights; upright: a square rotated with the face; dlib: as dlib's "
        "network expects",
    )
    cli.add_argument("--upright", dest="shape", action="store_const", const="upright", help="same as --cut upright")
    cli.add_argument("--workers", type=int, default=2, metavar="N", help="threads")
    args = cli.parse_args(argv)
    options.check(args, folders=())
    files.require_outside("OUT", args.out, args.source, INSIDE)
    cut = Cut(args.detector, args.image_size, args.margin, args.shape)
    _finder(cut.detector)  # its weights are missed before anything is written
    rows = align(args.source, args.out, cut, args.workers)
    without = [row["photo"] for row in rows if row["box"] is None]
    if rows and len(without) == len(rows):
        raise InputError(f"no face in any of the {len(rows)} photos of {args.source}: are they photos of people?")
    print(f"{len(rows)} photos, {len(rows) - len(without)} faces, into {args.out}")
    if without:
        print(f"no face in {shorten(without)}: kept whole")
    photos = list_people(args.source).files
    if left := sorted(_name(path) for path in _others(args.source) - set(photos)):
        print(f"left out, no photos by their names: {shorten(left)}")
    return 0 if len(rows) == len(photos) else 1


def _others(source: Path) -> set[Path]:
    """Whatever lies among the people and their photos, but for hidden files."""
    beside = {path for path in source.glob("*") if not path.is_dir()}
    return {path for path in beside | set(source.glob("*/*")) if not path.name.startswith(".")}


if __name__ == "__main__":
    sys.exit(run_main(main, "interrupted (the same command continues)"))
