"""F1 on photos that are rotated, off-centre, small, dark, blurred or compressed, without and with the face detector."""

import sys
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from data.camera import jpeg
from data.images import resize_labels, resize_photo
from experiments import common
from experiments.common import Result
from faces.detect import Detector
from faces.scene import SceneParser
from models.parser import FaceParser
from utils.runtime import run_main
from utils.tables import markdown

NAME = "robustness"
LabelledFace = tuple[np.ndarray, np.ndarray]  # photo uint8 (H, W, 3), labels uint8 (H, W)
Change = Callable[[LabelledFace, np.random.Generator], LabelledFace]


def moved(
    face: LabelledFace, rng: np.random.Generator, degrees: float = 0.0, shift: float = 0.0, scale: float = 1.0
) -> LabelledFace:
    """Turned and shifted (share of each side) either way, scaled about the middle; the border's pixels are repeated."""
    photo, labels = face
    height, width = labels.shape
    sign_3 = rng.choice([-1, 1], 3)
    middle = ((width - 1) / 2, (height - 1) / 2)
    matrix_23 = np.asarray(cv2.getRotationMatrix2D(middle, float(sign_3[0] * degrees), scale), np.float64)
    matrix_23[:, 2] += shift * sign_3[1:] * (width, height)
    new = cv2.warpAffine(common.smoothed(photo, scale), matrix_23, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return new, cv2.warpAffine(labels, matrix_23, (width, height), flags=cv2.INTER_NEAREST)


def cut(face: LabelledFace, rng: np.random.Generator, height: float = 1.0, width: float = 1.0) -> LabelledFace:
    """The middle of the photo. height, width: share of each side."""
    rows, columns = (
        slice(round((1 - share) / 2 * length), length - round((1 - share) / 2 * length))
        for share, length in zip((height, width), face[1].shape, strict=True)
    )
    return face[0][rows, columns], face[1][rows, columns]


def small(face: LabelledFace, rng: np.random.Generator, side: int) -> LabelledFace:
    """Photo and labels resized. side: the longer one, pixels."""
    photo, labels = face
    height, width = (max(1, round(length * side / max(labels.shape))) for length in labels.shape)
    return resize_photo(photo, height, width), resize_labels(labels, height, width)


def pixels(change: Callable[..., np.ndarray], *values: Any) -> Change:
    """``change(photo, *values)``, after which the labels are the same."""
    return lambda face, rng: (change(face[0], *values), face[1])


def toned(photo: np.ndarray, gain: float, gamma: float) -> np.ndarray:
    """gain * photo ** gamma, photo in [0, 1]."""
    table = np.clip(gain * (np.arange(256) / 255) ** gamma * 255, 0, 255).round().astype(np.uint8)
    return table[photo]


def grainy(face: LabelledFace, rng: np.random.Generator, sigma: float) -> LabelledFace:
    """Gaussian noise. sigma: standard deviation, photo in [0, 1]."""
    photo = face[0] + rng.normal(0, 255 * sigma, face[0].shape)
    return np.clip(photo, 0, 255).round().astype(np.uint8), face[1]


def grey(photo: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


CONDITIONS: dict[str, list[Change]] = {  # one after the other
    "unchanged": [],
    "rotated by 20°": [partial(moved, degrees=20)],
    "rotated by 40°": [partial(moved, degrees=40)],
    "shifted by 15 %": [partial(moved, shift=0.15)],
    "scaled by 0.6": [partial(moved, scale=0.6)],
    "scaled by 1.4": [partial(moved, scale=1.4)],
    "3:4": [partial(cut, width=0.75)],
    "4:3": [partial(cut, height=0.75)],
    "128 pixels": [partial(small, side=128)],
    "64 pixels": [partial(small, side=64)],
    "dark": [pixels(toned, 0.5, 1.6)],
    "bright": [pixels(toned, 1.3, 0.6)],
    "blurred, σ 4 pixels": [pixels(cv2.GaussianBlur, (0, 0), 4)],
    "128 pixels, blurred, σ 1.5 pixels": [partial(small, side=128), pixels(cv2.GaussianBlur, (0, 0), 1.5)],
    "128 pixels, JPEG of quality 10": [partial(small, side=128), pixels(jpeg, 10)],
    "noise, σ 0.1": [partial(grainy, sigma=0.1)],
    "grey": [pixels(grey)],
    "rotated, shifted, small, dark": [
        partial(moved, degrees=20, shift=0.1, scale=0.75),
        partial(small, side=160),
        pixels(toned, 0.6, 1.4),
    ],
}


def changed(face: LabelledFace, rng: np.random.Generator, condition: str) -> LabelledFace:
    """The face under one of ``CONDITIONS``."""
    return reduce(lambda face, change: change(face, rng), CONDITIONS[condition], face)


def main(argv: list[str] | None = None) -> int:
    args = common.parse(common.checkpoint_parser(__doc__, random=True), argv)
    model, faces, machine = common.load(args, FaceParser)
    parse = SceneParser(model, Detector(), amp=machine.amp)
    tallies = {name: (common.Tally(model.labels), common.Tally(model.labels)) for name in CONDITIONS}
    with common.inference(machine):
        for k in tqdm(range(len(faces)), disable=None, leave=False):
            for name in CONDITIONS:
                face = faces.photo(k).copy(), faces.label_map(k)
                photo, true = changed(face, np.random.default_rng((args.seed, k)), name)
                tallies[name][0].add(model.label_photos([photo])[0], true)
                tallies[name][1].add(parse.parse([photo])[0].labels_HW, true)
    rows = [{"condition": name, "f1": alone.f1(), "found": found.f1()} for name, (alone, found) in tallies.items()]
    return common.write(NAME, args, argv, {"faces": len(faces), "rows": rows}, table)


def table(result: Result) -> str:
    """Markdown: one line for each condition."""
    titles = [*common.HEADLINES, *(f"detector: {name}" for name in common.HEADLINES)]
    rows = [[row["condition"], *row["f1"].values(), *row["found"].values()] for row in result["rows"]]
    return markdown(["photo", *titles], rows, 3)


if __name__ == "__main__":
    sys.exit(run_main(main))
