"""What all measurements share: the options as plain values, both models, and pictures to work on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from data.batch import photo_batch
from data.datasets.synthetic import draw_face
from data.labels import HELEN
from data.source import FaceData
from models.loading import load_for_inference
from models.parser import FaceParser
from models.stn_icnn.model import STNiCNN
from tools.benchmark.reference import Plain, load_plain
from tools.portrait import portrait
from utils import runtime
from utils.errors import InputError
from utils.runtime import Machine

QUICK: dict[str, Any] = {"quick": True, "sizes": [(96, 96)], "batches": [1, 2], "seconds": 0.0}
QUICK |= {"faces": 4, "face_size": 96, "steps": 1}


@dataclass(frozen=True)
class Setup:
    """What is measured, and where.

    scratch: a temporary folder. sizes: photos' (height, width). batches: photos at once. seconds: how long each timing
    lasts. steps: of a training that are timed. faces, face_size: drawn to train on. quick: see ``QUICK``.
    """

    machine: Machine
    checkpoints: list[Path]
    scratch: Path
    sizes: Sequence[tuple[int, int]] = ((256, 256), (512, 512), (1024, 1024), (2000, 3000))
    batches: Sequence[int] = (1, 8)
    seconds: float = 6
    steps: int = 3
    faces: int = 400
    face_size: int = 512
    quick: bool = False

    @property
    def device(self) -> torch.device:
        return self.machine.device

    @property
    def precisions(self) -> Sequence[str]:
        """Of ours."""
        amp = self.machine.amp
        fast = amp == "bf16" or (amp == "auto" and runtime.has_fast_bf16(self.device))
        return ("fp32", "bf16") if fast else ("fp32",)

    def load_ours(self) -> STNiCNN:
        """As predict.py loads it. Raises InputError for checkpoints of another parser."""
        parser = load_for_inference(self.checkpoints, self.device)
        if not isinstance(parser, STNiCNN):
            raise InputError(f"--checkpoint: {parser.kind} cannot be measured; give a checkpoint of {STNiCNN.kind}")
        return parser

    def load_plain(self) -> Plain:
        """The same weights, for the reference."""
        return load_plain(self.checkpoints, self.device)


def parse_photos(parser: FaceParser, photos: list[np.ndarray], device: torch.device, precision: str) -> np.ndarray:
    """Ours: decoded photos of one size, uint8 (H, W, 3), to labels (B, H, W) uint8."""
    batch = photo_batch(photos, parser.labels).to(device)
    with torch.inference_mode(), runtime.autocast(device, "bf16" if precision == "bf16" else "off"):
        return parser.label(batch).cpu().numpy()


def face_photos(count: int, height: int, width: int) -> list[np.ndarray]:
    """A real face at this size, each a little further to the left."""
    short = min(height, width)
    face = cv2.resize(portrait(), (short, short), interpolation=cv2.INTER_CUBIC)
    above, before = (height - short) // 2, (width - short) // 2
    margins = (above, height - short - above, before, width - short - before)
    photo = cv2.copyMakeBorder(face, *margins, cv2.BORDER_REPLICATE)
    return [np.roll(photo, -i * short // 512, 1) for i in range(count)]


def drawn_faces(setup: Setup) -> FaceData:
    """Drawn faces as files, a JPEG and a PNG each, ``setup.faces`` to train on; a few are there many times."""
    root, few = setup.scratch / "faces", min(setup.faces, 16)
    data = FaceData("list", root, cache=setup.scratch / "cache", label_set=HELEN)
    if root.exists():
        return data
    root.mkdir()
    for k in range(few):
        photo, labels = draw_face(3, k, setup.face_size)
        Image.fromarray(photo).save(root / f"{k}.jpg", quality=95)
        Image.fromarray(labels).save(root / f"{k}.png")
    for k in range(few, setup.faces):
        for suffix in ("jpg", "png"):
            os.link(root / f"{k % few}.{suffix}", root / f"{k}.{suffix}")
    for split, count in (("train", setup.faces), ("val", 1), ("test", 1)):
        (root / f"{split}_list.txt").write_text("".join(f"{k}.jpg {k}.png\n" for k in range(count)))
    return data
