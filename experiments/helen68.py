"""Unaligned photos: eyes, lips and inner mouth against polygons through the 68 usual landmarks of one face, in the
photo as it is, and shrunk to a face of 85 pixels that is out of focus or saved at a low quality.

DIR holds images/NAME.jpg and points/NAME.txt, 68 lines ``x y`` in pixels. Other people in a photo do not count.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from skimage.draw import polygon
from tqdm import tqdm

from data import images
from data.camera import jpeg
from data.labels import NINE
from experiments import common
from experiments.common import Result
from experiments.scenes import detection_of, side_of
from faces.align import Frame, frame_of
from faces.detect import Detector
from faces.scene import Scene, SceneParser
from models.loading import load_for_inference
from scoring import options
from scoring.metrics import f1
from utils import files
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import run_main
from utils.tables import markdown

NAME = "helen68"
ROWS = ("no detection", "detected", "true frames")
GROUPS = {"eyes": ("eye1", "eye2"), "lips": ("upper_lip", "lower_lip"), "inner mouth": ("inner_mouth",)}
EYE1, EYE2, OUTER_LIPS, INNER_LIPS = slice(36, 42), slice(42, 48), slice(48, 60), slice(60, 68)
NOSE_TIP, MOUTH_CORNERS = 30, (48, 54)
FITS = 0.25  # farthest that the centre of a face's frame may lie from the true one's, in sides of that
SMALL = 85  # longer side of the landmarks' box in soft photos, pixels
SOFT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda photo: photo,
    "blurred, σ 1.5 pixels": lambda photo: cv2.GaussianBlur(photo, (0, 0), 1.5),
    "blurred, σ 2 pixels": lambda photo: cv2.GaussianBlur(photo, (0, 0), 2),
    "JPEG of quality 10": lambda photo: jpeg(photo, 10),
}


class Photo(NamedTuple):
    """A photo, uint8 (H, W, 3), with the landmarks of its annotated face: (68, 2), (x, y) in pixels."""

    photo_HW3: np.ndarray
    points_N2: np.ndarray

    @property
    def frame(self) -> Frame:
        """The frame of the annotated face."""
        eyes_22 = [self.points_N2[eye].mean(0) for eye in (EYE1, EYE2)]
        return frame_of(np.array([*eyes_22, self.points_N2[NOSE_TIP], *self.points_N2[list(MOUTH_CORNERS)]]))

    def shrunk(self) -> "Photo":
        """The photo in which the annotated face is ``SMALL`` pixels long."""
        height, width = self.photo_HW3.shape[:2]
        scale = SMALL / np.ptp(self.points_N2, axis=0).max()
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        points_N2 = (self.points_N2 + 0.5) * size / (width, height) - 0.5
        return Photo(cv2.resize(self.photo_HW3, size, interpolation=cv2.INTER_AREA), points_N2)

    def truth(self) -> np.ndarray:
        """uint8 (H, W), ids of ``NINE``: eyes, inner mouth, and both lips as the upper one; of each polygon the pixels
        whose centres lie inside."""
        labels_HW = np.zeros(self.photo_HW3.shape[:2], np.uint8)
        for name, points in (("eye1", EYE1), ("eye2", EYE2), ("upper_lip", OUTER_LIPS), ("inner_mouth", INNER_LIPS)):
            x_N, y_N = self.points_N2[points].T
            labels_HW[polygon(y_N, x_N, labels_HW.shape)] = NINE.names.index(name)
        return labels_HW


def read(folder: Path, most: int | None = None) -> list[tuple[Path, np.ndarray]]:
    """Photo's file and landmarks (68, 2) of each face. Raises InputError."""
    photos = images.list_files(folder / "images", images.PHOTO_SUFFIXES)
    if not photos:
        raise InputError(f"no photos in {folder / 'images'}")
    return [(path, read_points(folder / "points" / f"{name}.txt")) for name, path in list(photos.items())[:most]]


def read_points(path: Path) -> np.ndarray:
    """68 landmarks, float64 (68, 2). Raises InputError for another file."""
    try:
        points_N2 = np.array([line.split() for line in files.read_text(path, "landmarks").splitlines()], np.float64)
    except ValueError:
        points_N2 = np.empty(0)
    if points_N2.shape != (68, 2) or not np.isfinite(points_N2).all():
        raise InputError(f"{path}: expected 68 lines of two numbers, x y")
    return points_N2


def fitting(scene: Scene, frame: Frame) -> int:
    """The owner's number of the face in the scene that lies where this frame does; 0 for none."""
    distances = [np.linalg.norm((face.frame.matrix_23 - frame.matrix_23)[:, 2]) for face in scene.faces]
    return int(np.argmin(distances)) + 1 if distances and min(distances) < FITS * side_of(frame) else 0


def lost_eyes(labels_HW: np.ndarray, truth_HW: np.ndarray) -> int:
    """How many of the two eyes lack every pixel of their label."""
    eyes = map(NINE.names.index, GROUPS["eyes"])
    return sum(not (labels_HW[truth_HW == eye] == eye).any() for eye in eyes)


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    cli.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of photos and landmarks")
    cli.add_argument("--max-images", type=int, metavar="N", help="use the first N photos")
    options.add_machine_options(cli, common.BATCH_SIZE)
    options.add_checkpoint_option(cli)
    options.add_mirror_option(cli)
    common.add_out_option(cli)
    args = common.parse(cli, argv)
    machine = options.machine(args)
    model = load_for_inference(options.checkpoints(args), machine.device, mirror=args.mirror)
    to_nine = model.labels.map_to(NINE)
    parse = SceneParser(model, Detector(), amp=machine.amp)
    faces, found = read(args.data, args.max_images), 0
    tallies = {row: common.Tally(NINE) for row in (*ROWS, *SOFT)}
    lost = dict.fromkeys(SOFT, 0)
    for path, points_N2 in tqdm(faces, NAME, disable=None, leave=False):
        face = Photo(images.read_photo(path), points_N2)
        scene, (whole_HW,) = parse.parse([face.photo_HW3])[0], model.label_photos([face.photo_HW3])
        framed = parse.parse_found([face.photo_HW3], [[detection_of(face.frame)]])[0]
        owner = fitting(scene, face.frame)
        found += owner > 0
        parsed = (whole_HW, np.where(scene.owners_HW == owner, scene.labels_HW, 0), framed.labels_HW)
        for row, labels_HW in zip(ROWS, parsed, strict=True):
            tallies[row].add(to_nine[labels_HW], face.truth())
        small = face.shrunk()
        truth_HW = small.truth()
        for row, change in SOFT.items():
            labels_HW = to_nine[parse.parse([change(small.photo_HW3)])[0].labels_HW]
            tallies[row].add(labels_HW, truth_HW)
            lost[row] += lost_eyes(labels_HW, truth_HW)
    rows = [{"way": row, "f1": _scores(tallies[row])} for row in ROWS]
    soft = [{"photo": row, "lost_eyes": lost[row] / (2 * len(faces)), "f1": _scores(tallies[row])} for row in SOFT]
    return common.write(NAME, args, argv, {"faces": len(faces), "found": found, "rows": rows, "soft": soft}, table)


def _scores(tally: common.Tally) -> dict[str, float | None]:
    """F1 of each group."""
    return {group: f1(tally.matrix_KK, [NINE.names.index(name) for name in names]) for group, names in GROUPS.items()}


def table(result: Result) -> str:
    """Markdown: F1 of each way to the face; then, in soft photos, the share of eyes without a label, and F1."""
    found = dict.fromkeys(ROWS) | {ROWS[1]: f"{result['found']} of {result['faces']}"}
    rows = [[row["way"], found[row["way"]], *row["f1"].values()] for row in result["rows"]]
    soft = [[row["photo"], f"{row['lost_eyes']:.1%}", *row["f1"].values()] for row in result["soft"]]
    tables = (["faces", "found", *GROUPS], rows), ([f"faces of {SMALL} pixels", "eyes without label", *GROUPS], soft)
    return "\n".join(markdown(header, lines) for header, lines in tables)


if __name__ == "__main__":
    sys.exit(run_main(main))
