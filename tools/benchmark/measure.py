"""What the benchmark and the GPU check share: options as plain values, photos to work on, the clock, and tables."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.benchmark import Timer

from data.batch import photo_batch
from models.parser import FaceParser
from tools.portrait import portrait
from utils import files, runtime, tables
from utils.runtime import Machine

Row = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parent.parent.parent
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
    faces: int = 64
    face_size: int = 512
    quick: bool = False

    @property
    def device(self) -> torch.device:
        return self.machine.device

    @property
    def precisions(self) -> Sequence[str]:
        """In which ours is measured."""
        return ("fp32", "bf16") if runtime.uses_bf16(self.device, self.machine.amp) else ("fp32",)


def parse_photos(parser: FaceParser, photos: list[np.ndarray], device: torch.device, precision: str) -> np.ndarray:
    """Ours: decoded photos of one size, uint8 (H, W, 3), to labels (B, H, W) uint8."""
    batch = photo_batch(photos, parser.labels).to(device)
    with torch.inference_mode(), runtime.autocast(device, "bf16" if precision == "bf16" else "off"):
        return parser.parse(batch).labels_BHW.cpu().numpy()


def face_photos(count: int, height: int, width: int) -> list[np.ndarray]:
    """A real face at this size, each a little further to the left."""
    short = min(height, width)
    face = cv2.resize(portrait(), (short, short), interpolation=cv2.INTER_CUBIC)
    above, before = (height - short) // 2, (width - short) // 2
    margins = (above, height - short - above, before, width - short - before)
    photo = cv2.copyMakeBorder(face, *margins, cv2.BORDER_REPLICATE)
    return [np.roll(photo, -i * short // 512, 1) for i in range(count)]


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_in_turns(functions: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of a call: median, quartiles, and of how many calls.

    Each function is timed for about ``seconds``, in two turns with the others, so that whatever else the machine does
    hits all of them alike; 0: as few calls as can be.
    """
    found: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(2 if seconds else 1):
        for name in list(functions)[:: -1 if turn % 2 else 1]:
            timer = Timer("call()", globals={"call": functions[name]}, num_threads=torch.get_num_threads())
            found[name] += timer.blocked_autorange(min_run_time=seconds / 2).times
    spreads = {}
    for name, times in found.items():
        q1, median, q3 = (1e3 * np.percentile(times, (25, 50, 75))).tolist()
        spreads[name] = {"median": median, "q1": q1, "q3": q3, "count": len(times)}
    return spreads


def agreement(one: np.ndarray, two: np.ndarray) -> float:
    """Percentage of pixels with equal labels."""
    return 100 * float((one == two).mean())


class Table(NamedTuple):
    """What a measurement found: rows of plain values, of which a spread (see ``time_in_turns``) is one."""

    title: str
    rows: list[Row]
    note: str = ""


def describe(device: torch.device) -> Row:
    """The machine, for the head of the results."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "device": runtime.device_name(device),
        "torch": torch.__version__,
        "git": runtime.git_revision(),
    }


def write(out: Path, title: str, about: Row, found: Iterable[Table]) -> str:
    """benchmark.json and benchmark.md, whose text is returned: one table for each measurement."""
    held = [table._asdict() for table in found]
    files.write_text(out / "benchmark.json", json.dumps({"about": about, "tables": held}, indent=1) + "\n")
    lines = [f"# {title}", "", ", ".join(f"{key}: {value}" for key, value in about.items())]
    for table in found:
        lines += ["", f"## {table.title}", ""]
        columns = list(dict.fromkeys(key for row in table.rows for key in row))
        if columns:
            rows = [[cell(row.get(column)) for column in columns] for row in table.rows]
            lines += [tables.markdown(columns, rows).rstrip("\n"), *([""] if table.note else [])]
        lines += [table.note] if table.note else []
    text = "\n".join(lines) + "\n"
    files.write_text(out / "benchmark.md", text)
    return text


def cell(value: Any) -> str | None:
    """A value in few digits; a spread as its median (quartiles)."""
    if isinstance(value, dict):
        return f"{cell(value['median'])} ({cell(value['q1'])}–{cell(value['q3'])})"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return None if value is None else str(value)
