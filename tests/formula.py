"""The weights, pictures and features from which the golden numbers were computed, and how they are compared."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def formula_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A state dict of these keys and shapes, float32: sines, by the place of a key in the sorted list of all keys."""
    state = {}
    for j, (key, shape) in enumerate(sorted(shapes.items())):
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(tuple(shape), dtype=torch.long)
            continue
        wave = torch.sin(1 + 0.37 * j + 0.013 * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(*shape)
        if key.endswith("running_var"):
            wave = 1 + 0.1 * wave**2
        elif len(shape) >= 2:
            wave = wave * math.sqrt(2 / math.prod(shape[1:]))
        elif key.endswith("weight"):
            wave = 1 + 0.1 * wave
        else:
            wave = 0.1 * wave
        state[key] = wave.float()
    return state


def formula_image(*shape: int) -> Tensor:
    """Pictures of this shape (B, K, H, W), float32 in [0, 1]."""
    b, k, y, x = indices(*shape)
    return (0.5 + 0.5 * torch.sin(0.05 * x + 0.07 * y + k + 2 * b)).float()


def wave(*shape: int) -> Tensor:
    """Logits of this shape (B, K, H, W), float64."""
    b, k, y, x = indices(*shape)
    return 2 * torch.sin(0.31 * x + 0.17 * y + 0.9 * k + 1.3 * b)


def indices(*shape: int) -> list[Tensor]:
    """The index along each axis, float64, each of the whole shape."""
    return list(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"))


def assert_golden(value: Tensor, entry: Mapping[str, Any], tolerance: float = 1e-4) -> None:
    """Shape, some values, mean and standard deviation, relative to the largest of these values or to the deviation."""
    assert list(value.shape) == entry["shape"]
    flat = value.flatten().double()
    wanted = torch.tensor(entry["value"], dtype=torch.float64)
    scale = max(wanted.abs().max().item(), entry["std"])
    assert (flat[entry["index"]] - wanted).abs().max() < tolerance * scale
    assert abs(flat.mean().item() - entry["mean"]) < tolerance * entry["std"]
    assert abs(flat.std().item() - entry["std"]) < tolerance * entry["std"]
