"""What all measurements share: the options as plain values, both models, and pictures to work on."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from PIL import Image

from benchmarks.measure import Rounds
from benchmarks.reference import Plain, load_plain
from data.labels import HELEN
from data.loading import photo_batch
from data.synthetic import draw_face
from models.pretrained import load_for_inference
from models.stn_icnn import STNiCNN
from utils import options, runtime
from utils.parsing import label_maps

REPOSITORY = Path(__file__).resolve().parent.parent
DISTINCT_FACES = 16


@dataclass(frozen=True)
class Setup:
    """sizes: photos' (height, width). precisions: of ours, "fp32" first, "bf16" where it is fast or was asked for.
    rounds: how long each timing lasts. limit: seconds beyond which a single call is not tried.
    faces, face_size: training data in HELEN's layout. steps: of an epoch that are timed.
    scratch: a folder for files that nobody keeps.
    """

    device: torch.device
    checkpoints: list[Path]
    precisions: tuple[str, ...]
    sizes: list[tuple[int, int]]
    batches: list[int]
    workers: int
    faces: int
    face_size: int
    steps: int
    batch_size: int
    rounds: Rounds
    limit: float
    quick: bool
    out: Path
    scratch: Path

    @property
    def threads(self) -> int:
        """Those that decode and write photos."""
        return options.threads(self.workers)

    @property
    def few_rounds(self) -> Rounds:
        """For what takes longer."""
        return Rounds(self.rounds.seconds / 2, min(3, self.rounds.least), 10)

    def load_ours(self) -> STNiCNN:
        """As predict.py has it."""
        return load_for_inference(self.checkpoints, self.device)

    def load_plain(self) -> Plain:
        return load_plain(self.checkpoints, self.device)


def parse_photos(model: STNiCNN, photos: list[np.ndarray], device: torch.device, precision: str) -> np.ndarray:
    """Ours: decoded photos of one size, uint8 (H, W, 3), to labels (B, H, W) uint8."""
    batch = photo_batch(photos).to(device)
    fast = runtime.autocast(device, "bf16") if precision == "bf16" else nullcontext()
    with torch.inference_mode(), fast:
        labels_BHW, _ = label_maps(model, batch)
    return labels_BHW.cpu().numpy()


def face_photos(count: int, height: int, width: int) -> list[np.ndarray]:
    """A real face (Eileen Collins, by NASA, in the public domain) at this size, each a little further to the left."""
    top, left, side = 11, 128, 192
    face, short = skimage.data.astronaut()[top : top + side, left : left + side], min(height, width)
    face = cv2.resize(face, (short, short), interpolation=cv2.INTER_CUBIC)
    above, before = (height - short) // 2, (width - short) // 2
    margins = (above, height - short - above, before, width - short - before)
    photo = cv2.copyMakeBorder(face, *margins, cv2.BORDER_REPLICATE)
    return [np.roll(photo, -i * short // 512, 1) for i in range(count)]


def helen_folder(setup: Setup, faces: int) -> Path:
    """Drawn faces with eleven soft masks each in HELEN's layout, ``faces`` to train on; a few are repeated."""
    root = setup.scratch / f"helen{faces}"
    if root.exists():
        return root
    (root / "images").mkdir(parents=True)
    held = {"exemplars.txt": faces, "tuning.txt": min(faces, 8), "testing.txt": 1}
    names = {file: [f"{file[:3]}{i}" for i in range(count)] for file, count in held.items()}
    for file, listed in names.items():
        (root / file).write_text("".join(f"{number} , {name}\n" for number, name in enumerate(listed, 1)))
    every = [name for listed in names.values() for name in listed]
    distinct = every[: min(len(every), DISTINCT_FACES)]

    def write(number: int) -> None:
        photo, labels = draw_face(3, number, setup.face_size)
        Image.fromarray(photo).save(root / "images" / f"{distinct[number]}.jpg", quality=95)
        folder = root / "labels" / distinct[number]
        folder.mkdir(parents=True)
        for label in range(len(HELEN.names)):
            mask = cv2.GaussianBlur(np.where(labels == label, 255, 0).astype(np.uint8), (3, 3), 0)
            Image.fromarray(mask).save(folder / f"{folder.name}_lbl{label:02d}.png")

    with ThreadPoolExecutor(setup.threads) as pool:
        list(pool.map(write, range(len(distinct))))
    for k, name in enumerate(every[len(distinct) :]):
        same = distinct[k % len(distinct)]
        os.link(root / "images" / f"{same}.jpg", root / "images" / f"{name}.jpg")
        (root / "labels" / name).mkdir()
        for label in range(len(HELEN.names)):
            mask = f"_lbl{label:02d}.png"
            os.link(root / "labels" / same / f"{same}{mask}", root / "labels" / name / f"{name}{mask}")
    return root
