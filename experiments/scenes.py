"""Scenes of one to four faces of a data set, small and turned, over pictures without people; and those pictures alone.

Reports how many faces are found and how well the scenes are parsed, compared with faces whose true frames are given.
The data set's photos must be aligned faces with labels of skin and hair, as those of CelebAMask-HQ.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data
from skimage.color import gray2rgb
from skimage.util import img_as_ubyte
from tqdm import tqdm

from data.images import frame_pixels
from data.loaders import Faces
from experiments import common
from experiments.common import Result
from faces.align import Frame, turned_square
from faces.detect import Detection, Detector
from faces.scene import SceneParser
from models.parser import FaceParser
from utils.runtime import run_main
from utils.tables import markdown

NAME = "scenes"
ROWS = ("detected", "true")
CELL = 640  # side of the quarters of a scene, each of which holds a face or none, pixels
SIDES, DEGREES = (140, 440), 60  # of a face's aligned square: pixels from edge to edge; turned either way
# Of scikit-image, all in its package; not astronaut, camera and coins, which show faces
_NAMES = (
    "brick cat cell checkerboard clock coffee colorwheel grass gravel horse hubble_deep_field immunohistochemistry "
    "logo microaneurysms moon page retina rocket shepp_logan_phantom text"
)
PICTURES = tuple(_NAMES.split())


class Scene(NamedTuple):
    """photo_HW3: uint8, RGB. labels_HW: uint8, the true labels. owners_HW: uint8, which face a pixel shows (0: none, k:
    the k-th). frames: of the aligned photos, in pixels of the scene. names: of the faces."""

    photo_HW3: np.ndarray
    labels_HW: np.ndarray
    owners_HW: np.ndarray
    frames: list[Frame]
    names: list[str]


def scenes(faces: Faces, seed: int) -> Iterator[Scene]:
    """Every face once, in scenes of one, two, three, four faces, one, …; the same for the same faces and seed."""
    left = np.random.default_rng(seed).permutation(len(faces)).tolist()
    k = 0
    while left:
        chosen, left = left[: 1 + k % 4], left[1 + k % 4 :]
        cutouts = [(faces.names[i], faces.photo(i), faces.ids(i), faces.label_map(i)) for i in chosen]
        yield compose(picture(PICTURES[k % len(PICTURES)]), cutouts, np.random.default_rng((seed, k)))
        k += 1


def compose(
    background_HW3: np.ndarray,
    faces: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    rng: np.random.Generator,
) -> Scene:
    """Put at most four faces on a background, each at a place, size and angle that are drawn, in a quarter of its own.

    faces: name, photo uint8 (H, W, 3), what belongs to the face (uint8 (H, W), not 0) and its labels uint8 (H, W).
    """
    size = (2 * CELL, 2 * CELL)
    scene_HW3 = cv2.resize(background_HW3, size).astype(np.float32)
    labels_HW, owners_HW = np.zeros((2, *size), np.uint8)
    quarters, frames = rng.permutation(4)[: len(faces)], []
    for k, ((_, photo, shown, labels), quarter) in enumerate(zip(faces, quarters, strict=True), 1):
        side, degrees = rng.uniform(*SIDES), rng.uniform(-DEGREES, DEGREES)
        reach = side / np.sqrt(2)  # the farthest corner from the middle
        middle_2 = CELL * np.array(divmod(int(quarter), 2)) + rng.uniform(reach, CELL - reach, 2)
        frames.append(turned_square(middle_2, side / 2, degrees))
        matrix_23 = frame_pixels(frames[-1].matrix_23, *labels.shape[::-1])
        photo = common.smoothed(photo, side / max(labels.shape))
        cover_HW1 = cv2.warpAffine(_cover(shown), matrix_23, size)[..., None]
        warped_HW3 = cv2.warpAffine(photo, matrix_23, size, borderMode=cv2.BORDER_REPLICATE)
        scene_HW3 += cover_HW1 * (warped_HW3 - scene_HW3)
        covered_HW = cover_HW1[..., 0] > 0.5
        labels_HW[covered_HW] = cv2.warpAffine(labels, matrix_23, size, flags=cv2.INTER_NEAREST)[covered_HW]
        owners_HW[covered_HW] = k
    return Scene(np.rint(scene_HW3).astype(np.uint8), labels_HW, owners_HW, frames, [face[0] for face in faces])


def _cover(shown_HW: np.ndarray) -> np.ndarray:
    """How far a face hides what is behind it, float32 (H, W), 0 to 1: what belongs to it (not 0), with a soft edge, and
    rounded off where that reaches the border of the photo."""
    y_H1, x_W = (np.abs(np.arange(n) - (n - 1) / 2) * 2 / n for n in shown_HW.shape)
    round_HW = np.clip((1 - (x_W**3 + y_H1[:, None] ** 3) ** (1 / 3)) / 0.12, 0, 1)
    cover_HW = cv2.GaussianBlur((shown_HW > 0).astype(np.float32), (0, 0), 0.012 * max(shown_HW.shape))
    return np.clip(2 * cover_HW - 0.5, 0, 1) * round_HW.astype(np.float32)


def picture(name: str) -> np.ndarray:
    """One of ``PICTURES`` as uint8 (H, W, 3), RGB."""
    pixels = img_as_ubyte(getattr(skimage.data, name)())
    return gray2rgb(pixels) if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., :3])


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
    args = common.parse(common.checkpoint_parser(__doc__, random=True), argv)
    model, faces, machine = common.load(args, FaceParser)
    parse = SceneParser(model, Detector(), amp=machine.amp)
    tallies = {row: common.Tally(model.labels) for row in ROWS}
    count, false, missed = 0, 0, []
    for scene in tqdm(scenes(faces, args.seed), NAME, disable=None, leave=False):
        found = parse.parse([scene.photo_HW3])[0]
        framed = parse.parse_found([scene.photo_HW3], [[detection_of(frame) for frame in scene.frames]])[0]
        for row, parsed in zip(ROWS, (found, framed), strict=True):
            tallies[row].add(parsed.labels_HW, scene.labels_HW)
        hits = shown_faces(scene.owners_HW, [face.frame for face in found.faces])
        count += 1
        false += len(hits) - len(set(hits) - {0})
        missed += [name for owner, name in enumerate(scene.names, 1) if owner not in hits]
    numbers = {
        "faces": len(faces),
        "scenes": count,
        "false": false,
        "missed": missed,
        "empty": [name for name in PICTURES if not parse(picture(name)).labels_HW.any()],
        "rows": [{"frames": row, "f1": tally.f1()} for row, tally in tallies.items()],
    }
    return common.write(NAME, args, argv, numbers, table)


def table(result: Result) -> str:
    """Markdown: what is found, and F1 of both rows."""
    share, empty = 1 - len(result["missed"]) / result["faces"], f"{len(result['empty'])} of {len(PICTURES)}"
    found = ([share, result["false"], empty], [None] * 3)
    rows = [
        [row["frames"], result["scenes"], result["faces"], *cells, *row["f1"].values()]
        for row, cells in zip(result["rows"], found, strict=True)
    ]
    header = ["frames", "scenes", "faces", "found", "false faces", "pictures left empty", *common.HEADLINES]
    return markdown(header, rows)


if __name__ == "__main__":
    sys.exit(run_main(main))
