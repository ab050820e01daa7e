"""Several processes, as torchrun starts them; everything here also works in one process alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import InputError

# What gloo says, as a plain RuntimeError, when another process has ended; NCCL raises a DistError.
LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")

# Dataclasses of an older run's description, which may lack fields that newer code gives them.
GROWING = ("config", "recipe", "recipe.augmentation", "recipe.optimisation")

# NCCL does not see that another process has ended: it waits for so long, and then ends the process. Nothing may wait
# that long for it in a training step, therefore: what one process does alone, such as saving, the others await by gloo.
PATIENCE = timedelta(seconds=45)
_cards: Any = None  # the group of all processes, over NCCL


def start_processes(device: torch.device) -> None:
    """Join the other processes when started by torchrun. device: this process's own, see ``utils.runtime.pick_device``.

    Plain values and tensors on the CPU go over gloo, which sees at once when another process ends; tensors on CUDA over
    NCCL.
    """
    global _cards
    if world_size() > 1 and not dist.is_initialized():
        with explain_lost():
            dist.init_process_group("gloo")
            if device.type == "cuda":
                # beyond the time-out it would wait a minute more for a record of its calls, which nobody reads
                os.environ.setdefault("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "1000")
                _cards = dist.new_group(backend="nccl", timeout=PATIENCE)


def group(device: torch.device) -> Any:
    """What exchanges tensors of a device between the processes; None: torch's default."""
    return _cards if device.type == "cuda" else None


def rank() -> int:
    """Number of this process; 0 leads."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are; before they have joined, as torchrun tells."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def local_size() -> int:
    """How many of the processes are on this machine, as far as their launcher tells."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or local_rank() + 1) if world_size() > 1 else 1


def local_rank() -> int:
    """Number of this process among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's tensor, in place. All processes must call it; on CUDA at about the same time, see
    ``PATIENCE``."""
    if dist.is_initialized():
        dist.all_reduce(value, group=group(value.device))
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
                    barrier()  # the leading process does not come: it ends, once it has reported
                raise SystemExit(2)
            raise InputError(f"process {number} has {changed} as process 0: start all with the same data and options")


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first difference between two trees of plain values, in words; empty where all that both have is equal."""
    return next((found for key in other if key in one and (found := _difference(key, one[key], other[key]))), "")


def _difference(name: str, one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict) and (one.keys() == other.keys() or name in GROWING):
        return next((found for key in one if (found := _difference(f"{name}.{key}", one[key], other.get(key)))), "")
    try:
        same = bool(one == other)
    except (RuntimeError, TypeError, ValueError):  # tensors, in a file that was made by hand
        same = False
    return "" if same else f"{name} {_short(one)}, not {_short(other)}"


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:100]


@contextmanager
def explain_lost() -> Iterator[None]:
    """Turns what torch raises in here once another process has ended into one line. Raises InputError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(text in str(error) for text in LOST):
            raise
        place = f"process {rank()} of {world_size()}" if dist.is_initialized() else "this process"
        raise InputError(
            f"{place} lost the other processes, one of which has ended: see its message, then start all of them again"
        ) from error
