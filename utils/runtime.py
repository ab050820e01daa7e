"""Where and how a script runs: device, processes, precision, and how it ends."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn

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


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run in hardware here; in software they are ten times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """amp: "off", "bf16", or "auto" (bf16 where the hardware has it)."""
    enabled = amp == "bf16" or (amp == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def start_processes(device_name: str) -> None:
    """Join the other processes when started by torchrun; gloo on the CPU, nccl on CUDA."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        cuda = device_name != "cpu" and torch.cuda.is_available()
        dist.init_process_group("nccl" if cuda else "gloo")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over the processes, in one message."""
    if not dist.is_initialized():
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def sum_over_processes(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the global batch of all processes, so that their number does not change training.

    torch.nn.SyncBatchNorm does the same but refuses tensors on the CPU. Every process holds equally many images.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x_BCHW)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        x32_BCHW = x_BCHW.float()
        mean_C = dist_nn.all_reduce(x32_BCHW.mean((0, 2, 3))) / world_size()
        centred_BCHW = x32_BCHW - mean_C[:, None, None]  # mean(x^2) - mean(x)^2 would cancel
        var_C = dist_nn.all_reduce((centred_BCHW**2).mean((0, 2, 3))) / world_size()
        count = x_BCHW.numel() // x_BCHW.shape[1] * world_size()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(var_C * count / max(count - 1, 1), self.momentum)
        scale_C = self.weight * torch.rsqrt(var_C + self.eps)
        return (centred_BCHW * scale_C[:, None, None] + self.bias[:, None, None]).to(x_BCHW.dtype)


def synchronise_batchnorm(module: nn.Module) -> None:
    """Turn every BatchNorm2d of the module, in place, into a GlobalBatchNorm2d; weights are kept."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = GlobalBatchNorm2d


def git_revision() -> str:
    """Commit of the code, with "+" where the tree has changes; "unknown" outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
