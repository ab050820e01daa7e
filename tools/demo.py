"""The whole method in minutes, without any download: drawn faces, small sizes, all four stages, tables and pictures."""

import sys
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

import predict
import reproduce
from data.loading import open_faces
from models.pretrained import load_for_inference
from utils import options
from utils.parsing import face_pictures, first_batch, label_maps
from utils.runtime import run_main
from utils.visualize import legend, tile

# Half the method's sizes cost a quarter: 64 x 64 for the coarse look, crops of 41 samples.
FACE_SIZE, FACES, SHOWN = 128, 320, 8
SMALL = ["--face-size", str(FACE_SIZE), "--max-images", str(FACES), "--coarse-size", "64", "--crop-size", "41"]
SCHEDULE = ["--recipe", "best", "--batch-size", "8", "--epochs", "14", "5", "4", "1"]


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="where everything goes")
    args = parser.parse_args(argv)
    cache = args.out / "cache"
    status = reproduce.main(
        ["--dataset", "synthetic", *SMALL, *SCHEDULE, "--workers", "1", "--cache", str(cache), "--out", str(args.out)]
    )
    picture = args.out / "summary.png"
    Image.fromarray(summary(args.out / "end2end" / "best.pt", cache)).save(picture)
    print(f"\nphoto | parsed, with its six windows | truth: {picture}")
    if options.SHIPPED_WEIGHTS.is_file():
        status |= parse_portrait(args.out)
    return status


def parse_portrait(out: Path) -> int:
    """Parse a real photo with the weights that ship: Eileen Collins, by NASA, in the public domain."""
    top, left, side = 11, 128, 192  # her face as large as the faces of the training data
    portrait = skimage.data.astronaut()[top : top + side, left : left + side]
    photo = out / "portrait.png"
    Image.fromarray(portrait).resize((2 * side, 2 * side), Image.Resampling.BICUBIC).save(photo)
    return predict.main([str(photo), "--out", str(out / "parsed"), "--windows", "--overwrite"])


def summary(checkpoint: Path, cache: Path) -> np.ndarray:
    """Test faces in rows of photo, parsed, truth: uint8 (H, W, 3)."""
    faces = open_faces("synthetic", None, "test", cache, FACES, size=FACE_SIZE)
    model = load_for_inference([checkpoint], torch.device("cpu"))
    batch = first_batch(faces, SHOWN, torch.device("cpu"))
    with torch.no_grad():
        labels_BHW, theta_BP23 = label_maps(model, batch)
    photos = list(batch.photos_BHW3.numpy())
    parsed = list(face_pictures(batch, labels_BHW, theta_BP23))
    true = list(face_pictures(batch, batch.labels_BHW))
    sheet = tile([*photos, *parsed, *true], SHOWN, 192)
    key = legend()
    margin = np.zeros((len(sheet), key.shape[1], 3), np.uint8)
    margin[: len(key)] = key
    return np.hstack([sheet, margin])


if __name__ == "__main__":
    sys.exit(run_main(main))
