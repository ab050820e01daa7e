"""bfloat16 weights that are cast all at once, where autocast launches a kernel for each, and one for each gradient."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Cast(torch.autograd.Function):
    """Weights to bfloat16, and their gradients back to float32."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        return _together(weights, torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return _together(grads, torch.float32)


def _together(values: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    made = [torch.empty_like(value, dtype=dtype) for value in values]
    if made:  # a network may have no convolution
        torch._foreach_copy_(made, list(values))
    return tuple(made)


@contextmanager
def cast_together(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, the networks' convolutions compute with bfloat16 weights, as autocast would have them; gradients reach
    the weights themselves. Networks that have ``full_precision`` set are left alone."""
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    for network in networks:
        if hasattr(network, "full_precision"):
            continue
        convs = [child for child in network.modules() if isinstance(child, nn.Conv2d)]
        own = [(conv, name, value) for conv in convs for name, value in conv.named_parameters()]
        for (conv, name, _), cast in zip(own, _Cast.apply(*(value for *_, value in own)), strict=True):
            conv._parameters[name] = cast
        kept += own
    try:
        yield
    finally:
        for module, name, value in kept:
            module._parameters[name] = value
