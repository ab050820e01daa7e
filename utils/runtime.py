"""Where and how a script runs: device, processes, precision, and how it ends."""

import ctypes
import errno
import io
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.distributed import local_rank, local_size
from utils.errors import InputError

LONGEST = 2000  # letters of an error, which may quote a file
INTERRUPTED = "interrupted (a training run continues with --resume)"
_OF_THE_MACHINE = (  # errors of the disk, of rights and of names, which no change of ours would mend
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)
_NO_MEMORY = (  # of torch on CPU and GPU, of cuBLAS and cuDNN, C++, OpenCV and Python's threads
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "bad_alloc",
    "Insufficient memory",
    "can't start new thread",
    "could not create a primitive",  # of oneDNN
)
_WORKERS = {  # what torch says of the processes that load faces: what it means and how to mend it
    "shared memory": "/dev/shm is too small for the processes that load faces: enlarge it (docker run --shm-size=8g), "
    "or say --workers 0",
    "DataLoader worker": "a process that loads faces was killed, as the system does where memory is short: take fewer "
    "--workers, or --workers 0",
}
_ENDS = (signal.SIGTERM, signal.SIGHUP)


def run_main(main: Callable[[], int], interrupted: str = INTERRUPTED) -> int:
    """Run a script's ``main``: bad input, a full disk, too little memory and a failing GPU become one line and exit
    status 2, Ctrl-C, SIGTERM and SIGHUP the line ``interrupted`` and status 130."""
    keep_freed_memory()
    keep_output_clean()
    end_as_by_ctrl_c()
    try:
        return main()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        line = explain(error)
        if not line:
            raise
        print(f"error: {printable(line if len(line) <= LONGEST else line[:LONGEST] + ' …')}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def explain(error: Exception) -> str:
    """The line to tell of an error that input or machine have caused; empty for a defect of ours."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing: pip install -r requirements.txt"
    if is_out_of_memory(error):
        return f"too little memory{first_line(error)}: take smaller batches or faces, or a machine that has more"
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return f"{error.filename2 or error.filename or 'a file'} could not be read or written: {error.strerror}"
    if isinstance(error, RuntimeError) and str(error).startswith("CUDA error"):
        return f"the GPU failed{first_line(error)}: run it again, or with --device cpu"
    if isinstance(error, RuntimeError):
        return next((line for words, line in _WORKERS.items() if words in str(error)), "")
    return ""


def end_as_by_ctrl_c() -> None:
    """Let SIGTERM and SIGHUP (the end of a batch job, a closed terminal) raise KeyboardInterrupt, so that temporary
    files go and processes of ours end. The first of them counts; one that is ignored, as under nohup, stays so."""

    def interrupt(number: int, _: object) -> None:
        for end in _ENDS:
            signal.signal(end, signal.SIG_IGN)
        for stream in (1, 2) if number == signal.SIGHUP else ():
            if stat.S_ISCHR(os.fstat(stream).st_mode):  # a terminal, which has gone: to write there would fail
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for end in _ENDS:
            if signal.getsignal(end) == signal.SIG_DFL:
                signal.signal(end, interrupt)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine or its GPU had too little memory. Faults such as "illegal memory access" are none of it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def first_line(error: Exception) -> str:
    """What an error says, as far as one line goes, in parentheses behind a space; empty where it says nothing."""
    lines = str(error).strip().splitlines()
    return f" ({lines[0][:200]})" if lines else ""


def printable(text: str) -> str:
    """The text in one line: what does not print, such as a line break in a file's name, is written as in Python."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def keep_output_clean() -> None:
    """Print names that are not UTF-8 with escapes, and what Pillow warns of not at all: where a picture cannot be read,
    our own line says so."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


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
    """ "auto", "cpu", "cuda" or "cuda:N". A CUDA device has an index, is the current one from now on, and each of
    torchrun's processes has its own. Raises InputError where there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name}: only cpu and cuda are supported")
    if device.type == "cpu" and device.index:
        raise InputError(f"device {name}: there is one CPU device; use cpu")
    if device.type == "cuda":
        count, sharing = torch.cuda.device_count() if torch.cuda.is_available() else 0, local_size()
        if count == 0:
            raise InputError(f"device {name}: this machine has no usable CUDA device; use cpu or auto")
        if (device.index or 0) >= count:
            raise InputError(f"device {name}: this machine has {count} CUDA device(s), numbered from 0")
        if sharing > 1 and device.index is not None:
            raise InputError(f"device {name}: {sharing} processes would share one device; use cuda")
        if sharing > count:
            raise InputError(
                f"device {name}: {sharing} processes would share {count} CUDA device(s): start at most {count}, "
                "or use cpu"
            )
        if device.index is None:
            device = torch.device("cuda", local_rank() if sharing > 1 else torch.cuda.current_device())
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = True  # convolutions alone: matrix products carry the geometry
    return device


def device_name(device: torch.device) -> str:
    """The device in words, for the records of a run."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


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
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, amp))


def uses_bf16(device: torch.device, amp: str) -> bool:
    """Whether ``autocast`` takes bfloat16."""
    return amp == "bf16" or (amp == "auto" and has_fast_bf16(device))


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one device on the CPU, of CUDA in page-locked memory: one wait for all of them."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if tensors and tensors[0].is_cuda:
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies


@dataclass(frozen=True)
class Machine:
    """Where a script runs. workers: loading processes. amp: "auto", "off" or "bf16" (see ``utils.runtime``)."""

    device: torch.device
    workers: int = 0
    amp: str = "auto"

    @property
    def threads(self) -> int:
        """How many threads decode and write photos."""
        return max(2, self.workers)


@cache
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Plain values as a tensor that is made once for each device: each making is a copy that the host waits for."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def git_revision() -> str:
    """Commit of the code, with "+" where the tree has changes; "unknown" outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        head, dirty = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
            for words in (["rev-parse", "HEAD"], ["--no-optional-locks", "status", "--porcelain"])  # git writes nothing
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
