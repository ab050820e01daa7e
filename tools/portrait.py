"""Pictures of real people that may be used freely, and the first picture of the README: python -m tools.portrait."""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image

from data.datasets.synthetic import draw_face
from faces import load
from scoring.pictures import draw_outlines, encode, overlay
from utils.cli import Parser
from utils.files import write_bytes
from utils.runtime import run_main

# Prints on the table: picture, centre (x, y), longer side in pixels, degrees clockwise.
PRINTS = (
    ("astronaut", (205, 225), 350, -12),
    ("camera", (565, 260), 330, 24),
    ("close", (870, 200), 250, -48),
    ("drawn", (1085, 330), 170, 10),
)


def portrait() -> np.ndarray:
    """Eileen Collins, by NASA, in the public domain; her face as large as those of the training data: uint8 (192, 192,
    3), RGB."""
    top, left, side = 11, 128, 192
    return skimage.data.astronaut()[top : top + side, left : left + side]


def table() -> np.ndarray:
    """Four prints that lie turned on a table: Eileen Collins twice, the photographer (Lav Varshney, CC0) of
    scikit-image, and a drawn face: uint8 (440, 1200, 3), RGB."""
    pictures = {
        "astronaut": skimage.data.astronaut()[:340, 20:400],
        "camera": np.repeat(skimage.data.camera()[30:330, 80:380, None], 3, 2),
        "close": np.ascontiguousarray(portrait()[:, ::-1]),
        "drawn": draw_face(1, 0, 256)[0],
    }
    grain = cv2.resize(skimage.data.brick()[:, :1].astype(np.float32), (1200, 440), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(np.array((96, 78, 64)) + 0.12 * (grain[..., None] - 110), 0, 255).astype(np.uint8)
    for name, centre, length, degrees in PRINTS:
        border = max(2, pictures[name].shape[1] // 30)
        framed = np.full(np.add(pictures[name].shape, (2 * border, 2 * border, 0)), (245, 243, 238), np.uint8)
        framed[border:-border, border:-border] = pictures[name]
        scale = length / max(framed.shape[:2])
        to_table_23 = cv2.getRotationMatrix2D((framed.shape[1] / 2, framed.shape[0] / 2), -degrees, scale)
        to_table_23[:, 2] += np.array(centre) - (framed.shape[1] / 2, framed.shape[0] / 2)
        if scale < 1:  # shrink over areas, then turn
            size = round(framed.shape[1] * scale), round(framed.shape[0] * scale)
            framed = cv2.resize(framed, size, interpolation=cv2.INTER_AREA)
            to_table_23[:, :2] = to_table_23[:, :2] / scale
        size = picture.shape[1], picture.shape[0]
        cover = cv2.warpAffine(np.full(framed.shape[:2], 1, np.float32), to_table_23, size, flags=cv2.INTER_LINEAR)
        print_ = cv2.warpAffine(framed, to_table_23, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        moved = cv2.warpAffine(cover, np.array([[1.0, 0, 4], [0, 1, 5]]), size)
        shadow = cv2.GaussianBlur(moved, (0, 0), 5)[..., None]
        picture = (picture * (1 - 0.5 * shadow)).astype(np.uint8)
        picture = np.rint(picture + cover[..., None] * (print_.astype(np.float32) - picture)).astype(np.uint8)
    return picture


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    photo = table()
    scene = load()(photo)
    shown = overlay(photo, scene.labels_HW, scene.labels, alpha=0.6)
    for face in scene.faces:
        shown = draw_outlines(shown, face.frame.corners()[None], scene.labels)
    write_bytes(args.out, encode(Image.fromarray(shown), "JPEG", quality=88))
    print(f"{args.out}: {len(scene.faces)} faces")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    cli = Parser(__doc__)
    cli.add_argument("--out", type=Path, default=Path("docs/faces.jpg"), metavar="FILE.jpg", help="the picture")
    return cli.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_main(main))
