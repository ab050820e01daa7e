"""Trains and scores the four stages in minutes on small synthetic faces, without downloads: tables and pictures."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import reproduce
from data.loaders import open_faces
from data.source import FaceData
from data.view import Augmentation
from faces import load
from models.loading import SHIPPED_WEIGHTS, load_for_inference
from scoring.pictures import encode, face_pictures, legend, overlay, tile
from tools.portrait import portrait
from utils import files, runtime
from utils.cli import Parser
from utils.runtime import Machine, run_main

DURATION = "about 5 minutes on two slow cores"
# Small sizes: 48 x 48 pixels for the coarse network, crops of 25 samples.
FACE_SIZE, FACES, SHOWN = 128, 800, 8
SIZES = {"coarse_size": 48, "crop_size": 25}
BATCH_SIZE = 8
AUGMENTATION = Augmentation(mirror=0.5)  # no more: in so few steps, turned and dimmed faces are learned too slowly
# Stage -> purpose, epochs, peak learning rates: a quarter to a half of the recipe's, which are for larger batches.
STAGES = {
    "stage1": ("the coarse network learns a rough mask of the whole face", 5, {"coarse": 1e-3}),
    "cropper": ("the localizer learns to place six windows by the rough mask", 3, {"localizer": 1.5e-3}),
    "stage2": ("four part networks learn to label the crops of brows, eyes, nose and mouth", 2, {"parts": 2.5e-3}),
    "end2end": ("all networks learn together, through the crop", 1, {"coarse": 5e-5, "localizer": 5e-5, "parts": 5e-4}),
}


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    cli.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="output folder")
    out = cli.parse_args(argv).out
    print(
        f"This draws {FACES} faces, trains STN-iCNN on them in {len(STAGES)} stages at a small size, scores the\n"
        f"rows of the paper's table on other synthetic faces, and makes pictures: {DURATION}.\n"
        f"Everything goes into {out}.",
        flush=True,
    )
    machine = Machine(runtime.pick_device("auto"))
    setup = reproduce.Setup(FaceData(face_size=FACE_SIZE, max_images=FACES, cache=out / "cache"), machine, sizes=SIZES)
    best: dict[str, Path] = {}
    for number, (name, (purpose, epochs, lr)) in enumerate(STAGES.items(), 1):
        print(f"\nStage {number} of {len(STAGES)}: {purpose}", flush=True)
        recipe = reproduce.STAGES[name].script.RECIPES.best.changed(epochs, BATCH_SIZE, lr)
        recipe = replace(recipe, augmentation=AUGMENTATION)
        plan = reproduce.plan_stage(name, recipe, setup, out / name, best)
        best[name] = reproduce.train_stage(name, plan)
    print("\nScores on the test faces", flush=True)
    reproduce.score_rows(best, setup, "test", out)
    sheet = Image.fromarray(summary(best["end2end"], setup.data))
    files.write_whole(out / "summary.png", partial(sheet.save, format="PNG"))
    pictures = {out / "summary.png": "test faces: photo, parsed, truth"}
    if SHIPPED_WEIGHTS.is_file():
        pictures[parse_portrait(out)] = "a portrait, parsed with the weights of this repository"
    print("Pictures:")
    for path, what in pictures.items():
        print(f"  {path}: {what}")
    return 0


def summary(checkpoint: Path, data: FaceData) -> np.ndarray:
    """Test faces in rows of photo, parsed with the six windows, truth: uint8 (H, W, 3)."""
    parser = load_for_inference([checkpoint], torch.device("cpu"))
    batch = open_faces(data, "test", parser.labels).first(SHOWN)
    with torch.inference_mode():
        parsed = parser.parse(batch)
    pictures = [*batch.photos_BHW3.numpy(), *face_pictures(batch, *parsed), *face_pictures(batch, batch.labels_BHW)]
    sheet, key = tile(pictures, len(batch.photos_BHW3), 192), legend(parser.labels)
    return np.hstack([sheet, np.pad(key, ((0, len(sheet) - len(key)), (0, 0), (0, 0)))])


def parse_portrait(out: Path) -> Path:
    """Parse a real photo with the weights that ship; returns the overlay's path. Raises OSError."""
    photo = np.array(Image.fromarray(portrait()).resize((384, 384), Image.Resampling.BICUBIC))
    scene, path = load(device="cpu")(photo), out / "portrait_overlay.jpg"
    picture = Image.fromarray(overlay(photo, scene.labels_HW, scene.labels))
    files.write_bytes(path, encode(picture, "JPEG", quality=92))
    return path


if __name__ == "__main__":
    sys.exit(run_main(main))
