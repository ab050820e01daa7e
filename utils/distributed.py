"""Several processes, as torchrun starts them; everything here also works in one process alone."""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def start_processes(device_name: str) -> None:
    """Join the other processes when started by torchrun; gloo on the CPU, nccl on CUDA."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        cuda = device_name != "cpu" and torch.cuda.is_available()
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
