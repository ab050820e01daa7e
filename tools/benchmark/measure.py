"""Clock, work, memory and fits: what every measurement of the benchmark is made with."""

import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

Row = dict[str, Any]


class Table(NamedTuple):
    """What a measurement found: rows of plain values, of which a spread (see ``spread``) is one."""

    title: str
    rows: list[Row]
    note: str = ""


class Times(NamedTuple):
    """Seconds of the first call, start-up included, and of each later one."""

    first: float
    seconds: list[float]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Rounds:
    """How long to measure: rounds of alternating calls until ``seconds`` are spent, within ``least`` and ``most``."""

    seconds: float
    least: int
    most: int


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device's queue emptied before and after."""
    synchronise(device)
    started = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - started


def alternate(functions: dict[str, Callable[[], Any]], device: torch.device, rounds: Rounds) -> dict[str, Times]:
    """Time the functions in turns, so that whatever else the machine does hits all of them alike."""
    first = {name: clock(function, device) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    begun = time.perf_counter()
    for done in range(rounds.most):
        if done >= rounds.least and time.perf_counter() - begun > rounds.seconds:
            break
        for name in list(functions)[:: -1 if done % 2 else 1]:
            seconds[name].append(clock(functions[name], device))
    return {name: Times(first[name], seconds[name]) for name in functions}


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and quartiles of ``values`` times ``scale``, and how many there were."""
    q1, median, q3 = np.percentile(np.asarray(values) * scale, (25, 50, 75)).tolist()
    return {"median": median, "q1": q1, "q3": q3, "count": len(values)}


def peak_flops(device: torch.device, dtype: torch.dtype, quick: bool) -> float:
    """FLOP/s of a large square matrix product in this precision: what the machine reaches at best."""
    size = 256 if quick else 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rounds = Rounds(1.0, 3, 20)
    return 2 * size**3 / min(alternate({"product": lambda: left @ right}, device, rounds)["product"].seconds)


def count_flops(function: Callable[[], Any]) -> int:
    """Arithmetic of the convolutions and matrix products in one call, 2 for each multiply-add."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size that the time grows with: slope of the least squares line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def free_bytes(device: torch.device) -> int:
    """Memory that is left on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return 1024 * _field(Path("/proc/meminfo"), "MemAvailable:")
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def peak_resident_bytes() -> int:
    """Largest resident set of this process so far."""
    try:  # ru_maxrss of a process also remembers the one that started it
        return 1024 * _field(Path("/proc/self/status"), "VmHWM:")
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def shared_out_bytes(process: int) -> int:
    """Memory of a process and of those that it started, what they share counted once; 0 where nobody can tell."""
    try:
        own = 1024 * _field(Path(f"/proc/{process}/smaps_rollup"), "Pss:")
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, StopIteration):
        return 0
    return own + sum(shared_out_bytes(int(child)) for child in children)


def _field(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))


def agreement(one: np.ndarray, two: np.ndarray) -> float:
    """Percentage of pixels with equal labels."""
    return 100 * float((one == two).mean())
