"""What all measurements share: the options as plain values, both models, and pictures to work on."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from data.batch import photo_batch
from data.datasets.synthetic import draw_face
from data.labels import HELEN
from models.loading import load_for_inference, load_parser
from models.parser import FaceParser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tools.benchmark.measure import Rounds
from tools.benchmark.reference import Plain, load_plain
from tools.portrait import portrait
from utils import runtime
from utils.errors import InputError
from utils.runtime import Machine

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DISTINCT_FACES = 16


@dataclass(frozen=True)
class Setup:
    """What is measured, and where.

    sizes: photos' (height, width). precisions: of ours, "fp32" first, "bf16" where it is fast or was asked for.
    rounds: how long each timing lasts. limit: seconds beyond which a single call is not tried.
    faces, face_size: training data in HELEN's layout. steps: of an epoch that are timed.
    scratch: a temporary folder.
    """

    machine: Machine
    checkpoints: list[Path]
    precisions: tuple[str, ...]
    sizes: list[tuple[int, int]]
    batches: list[int]
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
    def device(self) -> torch.device:
        return self.machine.device

    @cached_property
    def config(self) -> STNiCNNConfig:
        """The shape of the networks. Raises InputError for checkpoints of another parser."""
        return _stn_icnn(load_parser(self.checkpoints)).config

    @property
    def few_rounds(self) -> Rounds:
        """For what takes longer."""
        return Rounds(self.rounds.seconds / 2, min(3, self.rounds.least), 10)

    def load_ours(self) -> STNiCNN:
        """As predict.py loads it."""
        return _stn_icnn(load_for_inference(self.checkpoints, self.device))

    def load_plain(self) -> Plain:
        """The same weights, for the reference."""
        return load_plain(self.checkpoints, self.device)


def _stn_icnn(parser: FaceParser) -> STNiCNN:
    if not isinstance(parser, STNiCNN):
        raise InputError(f"--checkpoint: {parser.kind} cannot be measured; name a checkpoint of {STNiCNN.kind}")
    return parser


def parse_photos(parser: FaceParser, photos: list[np.ndarray], device: torch.device, precision: str) -> np.ndarray:
    """Ours: decoded photos of one size, uint8 (H, W, 3), to labels (B, H, W) uint8."""
    batch = photo_batch(photos, parser.labels).to(device)
    fast = runtime.autocast(device, "bf16") if precision == "bf16" else nullcontext()
    with torch.inference_mode(), fast:
        return parser.label(batch).cpu().numpy()


def face_photos(count: int, height: int, width: int) -> list[np.ndarray]:
    """A real face at this size, each a little further to the left."""
    short = min(height, width)
    face = cv2.resize(portrait(), (short, short), interpolation=cv2.INTER_CUBIC)
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

    with ThreadPoolExecutor(setup.machine.threads) as pool:
        list(pool.map(write, range(len(distinct))))
    for k, name in enumerate(every[len(distinct) :]):
        same = distinct[k % len(distinct)]
        os.link(root / "images" / f"{same}.jpg", root / "images" / f"{name}.jpg")
        (root / "labels" / name).mkdir()
        for label in range(len(HELEN.names)):
            mask = f"_lbl{label:02d}.png"
            os.link(root / "labels" / same / f"{same}{mask}", root / "labels" / name / f"{name}{mask}")
    return root
