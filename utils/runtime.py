"""Where and how a script runs: device, processes, precision, and how it ends."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist

from utils.distributed import world_size
from utils.errors import InputError


def run_main(main: Callable[[], int]) -> int:
    """Run a script's ``main``: bad input becomes one line and exit status 2, Ctrl-C status 130."""
    keep_freed_memory()
    try:
        return main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted (a training run goes on with --resume)", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        print(f"error: {error.filename or 'a file'} could not be read or written: {error.strerror}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Let glibc hand freed memory out again instead of giving it back to the system after every large tensor.

    On the CPU, fetching it anew page by page costs a fifth of a training step. Other C libraries are left alone.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # as in malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**26)


def pick_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N". Raises InputError where there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    elif name.startswith("cuda:") and world_size() > 1:
        raise InputError(f"--device {name}: several processes would share one device; say --device cuda")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(f"--device {name}: this machine has no usable CUDA device; use --device cpu or auto")
        if (device.index or 0) >= count:
            raise InputError(f"--device {name}: this machine has {count} CUDA device(s), numbered from 0")
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = True  # convolutions alone: matrix products carry the geometry
    return device


def device_name(device: torch.device) -> str:
    """The device in words, for the records of a run."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


class Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start; two decimals."""
        started, self.started = self.started, time.monotonic()
        return round(self.started - started, 2)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are faster than float32 ones here.

    On CPUs that takes AMX: with AVX-512's bfloat16 products alone, matrix products ran at half and a training step at
    two thirds of float32's speed; without either, at a tenth.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """amp: "off", "bf16", or "auto" (bf16 where the hardware has it)."""
    enabled = amp == "bf16" or (amp == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def git_revision() -> str:
    """Commit of the code, with "+" where the tree has changes; "unknown" outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
