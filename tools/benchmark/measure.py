"""Clock, arithmetic and tables: what the benchmark and the GPU check measure with."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from utils import files, runtime, tables

Row = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parent.parent.parent


class Table(NamedTuple):
    """What a measurement found: rows of plain values, of which a spread (see ``spread``) is one."""

    title: str
    rows: list[Row]
    note: str = ""


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_in_turns(functions: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of single calls. Each function is timed for about ``seconds``, in two turns with the others, so that
    whatever else the machine does hits all of them alike; 0: as few calls as can be."""
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        for name, call in functions.items()
    }
    found: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(2 if seconds else 1):
        for name in list(functions)[:: -1 if turn % 2 else 1]:
            found[name] += timers[name].blocked_autorange(min_run_time=seconds / 2).times
    return found


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and quartiles of ``values`` times ``scale``, and how many there were."""
    q1, median, q3 = np.percentile(np.asarray(values) * scale, (25, 50, 75)).tolist()
    return {"median": median, "q1": q1, "q3": q3, "count": len(values)}


def peak_flops(device: torch.device, precision: str, size: int) -> float:
    """FLOP/s of a large square matrix product: what the machine reaches at best. precision: "bf16", or "fp32", which on
    CUDA is TF32, as in the convolutions of ours."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return 2 * size**3 / min(time_in_turns({"product": lambda: left @ right}, 0.5)["product"])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def count_flops(function: Callable[[], Any]) -> int:
    """Arithmetic of the convolutions and matrix products in one call, 2 for each multiply-add."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def agreement(one: np.ndarray, two: np.ndarray) -> float:
    """Percentage of pixels with equal labels."""
    return 100 * float((one == two).mean())


def describe(device: torch.device) -> Row:
    """The machine, for the head of the results."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
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
    """A value in few digits; a spread as its median (quartiles); counts as "2 a.py:1, 1 b.py:7"."""
    if isinstance(value, dict) and "median" in value:
        return f"{cell(value['median'])} ({cell(value['q1'])}–{cell(value['q3'])})"
    if isinstance(value, dict):
        return ", ".join(f"{cell(count)} {name}" for name, count in value.items())
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return None if value is None else str(value)
