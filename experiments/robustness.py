"""Photos as other collections have them: turned, off-centre, small, dark, blurred, compressed. F1 under each condition,
with the photo taken as the face, and behind the detector."""

import sys
from collections.abc import Callable

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


def moved(degrees: float = 0.0, shift: float = 0.0, scale: float = 1.0) -> Change:
    """Turned and shifted (share of each side) either way, scaled about the middle; the border's pixels are repeated."""

    def change(face: LabelledFace, rng: np.random.Generator) -> LabelledFace:
        photo, labels = face
        height, width = labels.shape
        sign_3 = rng.choice([-1, 1], 3)
        middle = ((width - 1) / 2, (height - 1) / 2)
        matrix_23 = np.asarray(cv2.getRotationMatrix2D(middle, float(sign_3[0] * degrees), scale), np.float64)
        matrix_23[:, 2] += shift * sign_3[1:] * (width, height)
        new = cv2.warpAffine(common.smoothed(photo, scale), matrix_23, (width, height), borderMode=cv2.BORDER_REPLICATE)
        return new, cv2.warpAffine(labels, matrix_23, (width, height), flags=cv2.INTER_NEAREST)

    return change


def cut(height: float = 1.0, width: float = 1.0) -> Change:
    """The middle of the photo. height, width: share of each side."""

    def change(face: LabelledFace, rng: np.random.Generator) -> LabelledFace:
        rows, columns = (
            slice(round((1 - share) / 2 * length), length - round((1 - share) / 2 * length))
            for share, length in zip((height, width), face[1].shape, strict=True)
        )
        return face[0][rows, columns], face[1][rows, columns]

    return change


def small(side: int) -> Change:
    """Photo and labels resized. side: the longer one, pixels."""

    def change(face: LabelledFace, rng: np.random.Generator) -> LabelledFace:
        photo, labels = face
        height, width = (max(1, round(length * side / max(labels.shape))) for length in labels.shape)
        return resize_photo(photo, height, width), resize_labels(labels, height, width)

    return change


def toned(gain: float, gamma: float) -> Change:
    """gain * photo ** gamma, photo in [0, 1]."""
    table = np.clip(gain * (np.arange(256) / 255) ** gamma * 255, 0, 255).round().astype(np.uint8)
    return lambda face, rng: (table[face[0]], face[1])


def blurred(sigma: float) -> Change:
    """Gaussian blur. sigma: standard deviation, pixels."""
    return lambda face, rng: (cv2.GaussianBlur(face[0], (0, 0), sigma), face[1])


def compressed(side: int, quality: int) -> Change:
    """Resized to ``side`` pixels, saved as a JPEG of this quality, read again."""

    def change(face: LabelledFace, rng: np.random.Generator) -> LabelledFace:
        photo, labels = small(side)(face, rng)
        return jpeg(photo, quality), labels

    return change


def grainy(sigma: float) -> Change:
    """Gaussian noise. sigma: standard deviation, photo in [0, 1]."""
    return lambda face, rng: (
        np.clip(face[0] + rng.normal(0, 255 * sigma, face[0].shape), 0, 255).round().astype(np.uint8),
        face[1],
    )


CONDITIONS: dict[str, Change] = {
    "unchanged": lambda face, rng: face,
    "rotated by 20°": moved(degrees=20),
    "rotated by 40°": moved(degrees=40),
    "shifted by 15 %": moved(shift=0.15),
    "scaled by 0.6": moved(scale=0.6),
    "scaled by 1.4": moved(scale=1.4),
    "3:4": cut(width=0.75),
    "4:3": cut(height=0.75),
    "128 pixels": small(128),
    "64 pixels": small(64),
    "dark": toned(0.5, 1.6),
    "bright": toned(1.3, 0.6),
    "blurred, σ 4 pixels": blurred(4),
    "128 pixels, blurred, σ 1.5 pixels": lambda face, rng: blurred(1.5)(small(128)(face, rng), rng),
    "128 pixels, JPEG of quality 10": compressed(128, 10),
    "noise, σ 0.1": grainy(0.1),
    "grey": lambda face, rng: (cv2.cvtColor(cv2.cvtColor(face[0], cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), face[1]),
    "rotated, shifted, small, dark": lambda face, rng: toned(0.6, 1.4)(
        small(160)(moved(20, 0.1, 0.75)(face, rng), rng), rng
    ),
}


def main(argv: list[str] | None = None) -> int:
    args = common.parse(common.checkpoint_parser(__doc__, random=True), argv)
    model, faces, machine = common.load(args, FaceParser)
    parse = SceneParser(model, Detector(), amp=machine.amp)
    tallies = {name: (common.Tally(model.labels), common.Tally(model.labels)) for name in CONDITIONS}
    with common.inference(machine):
        for k in tqdm(range(len(faces)), disable=None, leave=False):
            for name, change in CONDITIONS.items():
                rng = np.random.default_rng((args.seed, k))
                photo, true = change((faces.photo(k).copy(), faces.label_map(k)), rng)
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
