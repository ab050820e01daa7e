"""Several processes, as torchrun starts them; everything here also works in one process alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import InputError

# What gloo says, as a plain RuntimeError, when another process has ended; NCCL raises a DistError.
LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def start_processes(device_name: str) -> None:
    """Join the other processes when started by torchrun; gloo on the CPU, nccl on CUDA."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        cuda = device_name != "cpu" and torch.cuda.is_available()
        with told_when_lost():
            dist.init_process_group("nccl" if cuda else "gloo")


def rank() -> int:
    """Number of this process; 0 leads."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are; before they have joined, as torchrun tells."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's tensor, in place. All processes must call it."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def gather(value: Any) -> list[Any]:
    """Every process's plain value, in the processes' order. All processes must call it."""
    values = [value] * (world_size() if dist.is_initialized() else 1)
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def require_same(description: dict[str, Any]) -> None:
    """Ends all processes where they were started differently: one says so, and none waits for another.

    description: plain values. All processes must call it. Raises InputError in the leading process, naming the first
    difference, and SystemExit with status 2 in the others.
    """
    first, *others = gather(description)
    for number, other in enumerate(others, 1):
        if changed := difference(other, first):
            if rank() > 0:
                with suppress(RuntimeError):
                    barrier()  # the leading process does not come: it ends, once it has told
                raise SystemExit(2)
            raise InputError(f"process {number} has {changed} as process 0: start all with the same data and options")


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first difference between two trees of plain values, in words; empty where all that both have is equal."""
    return next((found for key in other if key in one and (found := _difference(key, one[key], other[key]))), "")


def _difference(name: str, one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((found for key in other if (found := _difference(f"{name}.{key}", one[key], other[key]))), "")
    try:
        same = bool(one == other)
    except (RuntimeError, TypeError, ValueError):  # tensors, in a file that was made by hand
        same = False
    return "" if same else f"{name} {_short(one)}, not {_short(other)}"


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:100]


@contextmanager
def told_when_lost() -> Iterator[None]:
    """Turns what torch raises in here once another process has ended into one line. Raises InputError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(text in str(error) for text in LOST):
            raise
        place = f"process {rank()} of {world_size()}" if dist.is_initialized() else "this process"
        raise InputError(
            f"{place} has lost the others, of which one has ended: see what that one said, then start all of them again"
        ) from error
