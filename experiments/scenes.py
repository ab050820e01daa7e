"""Scenes of one to four faces of a data set, small and turned, on synthetic backgrounds; and pictures without any face.

Reports how many faces are found and how well the scenes are parsed, compared with faces whose true frames are given.
The data set's photos must be aligned faces with labels of skin and hair, as those of CelebAMask-HQ.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from data.loaders import Faces
from experiments import canvases, common
from experiments.common import Result
from faces.align import Frame, square
from faces.detect import Detection, Detector
from faces.scene import SceneParser
from models.parser import FaceParser
from scoring.metrics import headline
from scoring.pictures import overlay
from utils.errors import InputError
from utils.runtime import run_main
from utils.tables import markdown

NAME = "scenes"
ROWS = ("detected", "true")
SCENES, EMPTY = 120, 100  # scenes, pictures without a face
MOST_FACES = 4
SIDES, DEGREES = (140, 520), 60  # of a face's aligned square: pixels from edge to edge; turned either way
SHORTER, LONGER = (760, 1000), (1000, 1280)  # sides of a scene, pixels
OVERLAP = 0.03  # greatest share of a face's pixels that another's may cover
TRIES = 60  # places that are drawn before a face is made smaller


class Cutout(NamedTuple):
    """A face turned, scaled and cut out, in the box that holds it.

    photo_HW3, labels_HW: uint8. cover_HW: float32, 1 where the face hides what is behind it. frame: of the aligned
    photo, in pixels of the box.
    """

    photo_HW3: np.ndarray
    labels_HW: np.ndarray
    cover_HW: np.ndarray
    frame: Frame


class Scene(NamedTuple):
    """photo_HW3: uint8, RGB. labels_HW: uint8, the true labels. owners_HW: uint8, which face a pixel shows (0: none, k:
    the k-th). frames: of the aligned photos, in pixels of the scene. names: of the faces."""

    photo_HW3: np.ndarray
    labels_HW: np.ndarray
    owners_HW: np.ndarray
    frames: list[Frame]
    names: list[str]


def scenes(faces: Faces, count: int, seed: int) -> Iterator[Scene]:
    """So many scenes, the same for the same faces, count and seed; each face is used once before any is used again."""
    order = np.random.default_rng(seed).permutation(len(faces))
    smooth, busy = list(canvases.SMOOTH.values()), list(canvases.BUSY.values())
    used = 0
    for k in range(count):
        rng = np.random.default_rng((seed, k))
        longer, shorter = (int(rng.integers(low, high + 1)) for low, high in (LONGER, SHORTER))
        height, width = (longer, shorter) if rng.random() < 0.5 else (shorter, longer)
        kinds = busy if k % 2 else smooth
        photo_HW3 = kinds[k // 2 % len(kinds)](rng, height, width)
        several = 1 + k // 2 % MOST_FACES
        chosen = [int(order[i % len(order)]) for i in range(used, used + several)]
        used += several
        yield compose(
            photo_HW3, [(faces.names[i], faces.photo(i), faces.ids(i), faces.label_map(i)) for i in chosen], rng
        )


def compose(
    photo_HW3: np.ndarray, faces: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]], rng: np.random.Generator
) -> Scene:
    """Put faces on a background at places, sizes and angles that are drawn; none hides more than 3 % of another.

    faces: name, photo uint8 (H, W, 3), what belongs to the face (uint8 (H, W), not 0) and its labels uint8 (H, W). A
    face that finds no place is made smaller.
    """
    height, width = photo_HW3.shape[:2]
    picture_HW3 = photo_HW3.astype(np.float32)
    labels_HW, owners_HW = np.zeros((2, height, width), np.uint8)
    frames = []
    for k, (_, photo, shown, labels) in enumerate(faces, 1):
        side, degrees = rng.uniform(*SIDES), rng.uniform(-DEGREES, DEGREES)
        cutout = cut_out(photo, shown, labels, side, degrees)
        while (place := _place(cutout, owners_HW, rng)) is None:
            side = max(SIDES[0], 0.85 * side)
            cutout = cut_out(photo, shown, labels, side, degrees)
        top, left = place
        box = slice(top, top + cutout.cover_HW.shape[0]), slice(left, left + cutout.cover_HW.shape[1])
        cover_HW1 = cutout.cover_HW[..., None]
        picture_HW3[box] += cover_HW1 * (cutout.photo_HW3 - picture_HW3[box])
        covered_HW = cutout.cover_HW > 0.5
        labels_HW[box][covered_HW] = cutout.labels_HW[covered_HW]
        owners_HW[box][covered_HW] = k
        frames.append(_moved(cutout.frame, left, top))
    return Scene(np.rint(picture_HW3).astype(np.uint8), labels_HW, owners_HW, frames, [face[0] for face in faces])


def cut_out(photo: np.ndarray, shown: np.ndarray, labels: np.ndarray, side: float, degrees: float) -> Cutout:
    """A face without its background, its square ``side`` pixels long and turned clockwise by ``degrees``.

    The cut follows what is labelled, softly, and rounds off where that reaches the border of the photo.
    """
    height, width = labels.shape
    scale, reach = side / max(height, width), side / np.sqrt(2)
    box = 2 * int(np.ceil(reach)) + 1
    middle = (box - 1) / 2
    matrix_23 = np.asarray(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, scale), np.float64)
    matrix_23[:, 2] += middle - np.array([width - 1, height - 1]) / 2
    if scale < 1:  # what shrinks would show false edges
        photo = cv2.GaussianBlur(photo, (0, 0), 0.5 * (scale**-2 - 1) ** 0.5)
    y_H1, x_W = (np.abs(np.arange(n) - (n - 1) / 2) * 2 / n for n in (height, width))
    round_HW = np.clip((1 - (x_W**3 + y_H1[:, None] ** 3) ** (1 / 3)) / 0.12, 0, 1)
    cover_HW = cv2.GaussianBlur((shown > 0).astype(np.float32), (0, 0), 0.012 * max(height, width))
    cover_HW = np.clip(2 * cover_HW - 0.5, 0, 1) * round_HW.astype(np.float32)
    size = (box, box)
    return _cropped(
        cv2.warpAffine(photo, matrix_23, size, borderMode=cv2.BORDER_REPLICATE),
        cv2.warpAffine(labels, matrix_23, size, flags=cv2.INTER_NEAREST),
        cv2.warpAffine(cover_HW, matrix_23, size),
        square(np.full(2, middle), side / 2 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])),
    )


def _cropped(photo_HW3: np.ndarray, labels_HW: np.ndarray, cover_HW: np.ndarray, frame: Frame) -> Cutout:
    """The cutout within the box that holds its cover."""
    left, top, width, height = cv2.boundingRect((cover_HW > 0).astype(np.uint8))
    box = slice(top, top + height), slice(left, left + width)
    return Cutout(photo_HW3[box], labels_HW[box], cover_HW[box], _moved(frame, -left, -top))


def _moved(frame: Frame, x: int, y: int) -> Frame:
    """The frame so many pixels further to the right and down."""
    return Frame(frame.matrix_23 + [[0, 0, x], [0, 0, y]])


def _place(cutout: Cutout, owners_HW: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """(top, left) where a cutout fits into a scene; None where none was found."""
    covered_HW = cutout.cover_HW > 0.5
    room = np.array(owners_HW.shape) - covered_HW.shape
    sizes = np.bincount(owners_HW.ravel())
    for _ in range(TRIES if room.min() >= 0 else 0):
        top, left = map(int, rng.integers(0, room + 1))
        behind_HW = owners_HW[top : top + covered_HW.shape[0], left : left + covered_HW.shape[1]]
        hidden = np.bincount(behind_HW[covered_HW], minlength=len(sizes))[1:]
        if (hidden <= OVERLAP * np.minimum(sizes[1:], covered_HW.sum())).all():
            return top, left
    return None


def detection_of(frame: Frame) -> Detection:
    """A detection whose frame (``faces.align.frame_of``) is this one."""
    x_2, y_2, centre_2 = frame.matrix_23.T  # from the centre to the middles of the right and of the lower side
    eyes_2, mouth_2 = centre_2 - y_2 / 18, centre_2 + y_2 / 2
    points_52 = np.array(
        [eyes_2 - x_2 / 4, eyes_2 + x_2 / 4, (eyes_2 + mouth_2) / 2, mouth_2 - x_2 / 5, mouth_2 + x_2 / 5]
    )
    half = side_of(frame) / 2
    left, top = (centre_2 - half).tolist()
    return Detection((left, top, 2 * half, 2 * half), points_52, 1.0)


def side_of(frame: Frame) -> float:
    """Side of a square frame, pixels."""
    return float(2 * np.hypot(*frame.matrix_23[:, 0]))


def shown_faces(owners_HW: np.ndarray, frames: Sequence[Frame]) -> list[int]:
    """The face that lies under the centre of each frame, 0 for none. owners_HW: see ``Scene``."""
    height, width = owners_HW.shape
    centres = [np.rint(frame.matrix_23[:, 2]).astype(int).tolist() for frame in frames]
    return [int(owners_HW[y, x]) if 0 <= x < width and 0 <= y < height else 0 for x, y in centres]


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    model, faces, machine = common.load(args, FaceParser)
    parse = SceneParser(model, Detector(), amp=machine.amp)
    tallies = {row: common.Tally(model.labels) for row in ROWS}
    bar = partial(tqdm, disable=None, leave=False)
    count, false, missed = 0, 0, []
    for k, scene in enumerate(bar(scenes(faces, args.scenes, args.seed), NAME, args.scenes)):
        found = parse.parse([scene.photo_HW3])[0]
        framed = parse.parse_found([scene.photo_HW3], [[detection_of(frame) for frame in scene.frames]])[0]
        for row, parsed in zip(ROWS, (found, framed), strict=True):
            tallies[row].add(parsed.labels_HW, scene.labels_HW)
        hits = shown_faces(scene.owners_HW, [face.frame for face in found.faces])
        count += len(scene.frames)
        false += len(hits) - len(set(hits) - {0})
        for owner, (name, frame) in enumerate(zip(scene.names, scene.frames, strict=True), 1):
            if owner not in hits:
                missed.append({"scene": k, "face": name, "side": round(side_of(frame)), "turned": round(frame.degrees)})
        if args.pictures:
            picture = overlay(scene.photo_HW3, found.labels_HW, model.labels)
            common.save_picture(args.pictures / f"{k:03d}.jpg", np.hstack([picture, scene.photo_HW3]))
    labelled = []
    for name, photo in bar(canvases.faceless(args.empty, args.seed), "without a face", args.empty):
        if pixels := int((parse(photo).labels_HW > 0).sum()):
            labelled.append({"picture": name, "pixels": pixels})
    numbers = {
        "faces": count,
        "scenes": args.scenes,
        "false": false,
        "missed": missed,
        "empty": args.empty,
        "labelled": labelled,
        "rows": [{"frames": row, "scores": tally.scores()} for row, tally in tallies.items()],
    }
    return common.write(NAME, args, argv, numbers, table)


def table(result: Result) -> str:
    """Markdown: what is found, and F1 of both rows."""
    empty, labelled = result["empty"], len(result["labelled"])
    found = [1 - len(result["missed"]) / result["faces"], result["false"], f"{empty - labelled} of {empty}"]
    rows = []
    for row, cells in zip(result["rows"], (found, [None] * 3), strict=True):
        rows.append([row["frames"], result["scenes"], result["faces"], *cells, *headline(row["scores"]).values()])
    header = ["frames", "scenes", "faces", "found", "false faces", "pictures left empty", *common.HEADLINES]
    return markdown(header, rows)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    cli = common.checkpoint_parser(__doc__, random=True)
    cli.add_argument("--scenes", type=int, default=SCENES, metavar="N", help="how many scenes")
    cli.add_argument("--empty", type=int, default=EMPTY, metavar="N", help="how many pictures without a face")
    cli.add_argument("--pictures", type=Path, metavar="DIR", help="also save each scene, with and without labels")
    return common.parse(cli, argv, _check)


def _check(args: argparse.Namespace) -> None:
    for name, least in (("scenes", 1), ("empty", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least {least}")


if __name__ == "__main__":
    sys.exit(run_main(main))
