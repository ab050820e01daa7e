"""Batch normalisation for training on CPUs: torch's SyncBatchNorm, for several processes, needs CUDA."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from utils.distributed import group, sum_over_processes, world_size


class BatchNorm2d(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` over the batch of all processes, so that their number does not change training.

    In one process too its channels-last gradient takes a quarter of the time of torch's, where channels do not fill a
    vector register (8, 24). Every process holds equally many images. Evaluation is torch's own.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        act = getattr(self, "act", None)  # timm's layers hold the activation behind them
        if not self.training:
            y_BCHW = super().forward(x_BCHW)
            return act(y_BCHW) if act else y_BCHW
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        y_BCHW = _Normalise.apply(
            x_BCHW, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps
        )
        return act(y_BCHW) if act else y_BCHW


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias; moves the running statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        running_mean_C: Tensor,
        running_var_C: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        if dist.is_initialized():
            mean_C, var_C = _global_statistics(x_BCHW)
            count = x_BCHW.numel() // x_BCHW.shape[1] * world_size()
            running_mean_C.lerp_(mean_C, momentum)
            running_var_C.lerp_(var_C * count / max(count - 1, 1), momentum)
            y_BCHW = F.batch_norm(x_BCHW, mean_C, var_C, weight_C, bias_C, eps=eps)
            inverse_std_C = torch.rsqrt(var_C + eps)
        else:
            y_BCHW, mean_C, inverse_std_C = torch.native_batch_norm(
                x_BCHW, weight_C, bias_C, running_mean_C, running_var_C, True, momentum, eps
            )
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, inverse_std_C)
        return y_BCHW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight_C, mean_C, inverse_std_C = ctx.saved_tensors
        x_NC, grad_NC = _rows(x_BCHW), _rows(grads[0])
        with torch.autocast(x_BCHW.device.type, enabled=False):
            bias_grad_C = _sum(grad_NC)
            weight_grad_C = (_sum(x_NC * grad_NC) - mean_C * bias_grad_C) * inverse_std_C
        # What a step learns from is averaged over the processes later; the images' gradients need all of the batch.
        total_2C = sum_over_processes(torch.stack([bias_grad_C, weight_grad_C]))
        mean_bias_C, mean_weight_C = total_2C / (len(x_NC) * world_size())
        scale_C = weight_C * inverse_std_C
        slope_C = scale_C * mean_weight_C * inverse_std_C
        x_grad_NC = torch.addcmul(mean_C * slope_C - scale_C * mean_bias_C, x_NC, -slope_C).addcmul_(grad_NC, scale_C)
        batch, channels, height, width = x_BCHW.shape
        x_grad_BCHW = x_grad_NC.view(batch, height, width, channels).permute(0, 3, 1, 2).to(x_BCHW.dtype)
        return x_grad_BCHW, weight_grad_C, bias_grad_C, None, None, None, None


def _rows(x_BCHW: Tensor) -> Tensor:
    """Channels-last images as a matrix (pixels, channels), float32; a view where they are both."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1]).float()


def _sum(x_NC: Tensor) -> Tensor:
    """Sum over the pixels; a product, which uses all cores and whole registers where a plain sum does not."""
    return (x_NC.new_ones(1, len(x_NC)) @ x_NC)[0]


def _global_statistics(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over the batches of all processes."""
    x_NC = _rows(x_BCHW)
    with torch.autocast(x_BCHW.device.type, enabled=False):
        mean_C = sum_over_processes(_sum(x_NC) / len(x_NC)) / world_size()
        centred_NC = x_NC - mean_C  # mean(x^2) - mean(x)^2 would cancel
        var_C = sum_over_processes(_sum(centred_NC * centred_NC) / len(x_NC)) / world_size()
    return mean_C, var_C


def prepare(module: nn.Module, device: torch.device) -> None:
    """Let every torch.nn.BatchNorm2d of the module, in place, normalise over the batch of all processes; weights are
    kept. On CUDA that is torch's own SyncBatchNorm, on CPUs the one here."""
    acting = [child for child in module.modules() if type(child).__name__ == "BatchNormAct2d"]  # timm's; as fast here
    if device.type == "cuda" and world_size() > 1:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
        if acting:  # torch's would lose their activations
            from timm.layers import convert_sync_batchnorm as convert
        convert(module, group(device))
    for child in module.modules():
        if type(child) is not nn.BatchNorm2d and not (dist.is_initialized() and child in acting):
            continue
        if device.type != "cuda":
            child.__class__ = BatchNorm2d
        elif not dist.is_initialized():
            assert child.num_batches_tracked is not None
            child.num_batches_tracked = child.num_batches_tracked.cpu()  # counted on the host, without a launch
