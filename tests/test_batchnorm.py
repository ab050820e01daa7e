"""Batch normalisation while training, beside torch's own."""

import copy

import pytest
import torch
from torch import nn

from training import batchnorm

CPU = torch.device("cpu")


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("channels", [1, 8, 9, 24])
def test_output_gradients_and_running_statistics_are_those_of_torch_in_double_precision(channels, layout):
    torch.manual_seed(0)
    ours, theirs = nn.Sequential(nn.BatchNorm2d(channels)), nn.BatchNorm2d(channels).double()
    batchnorm.prepare(ours, CPU)
    assert type(ours[0]) is batchnorm.BatchNorm2d
    x_BCHW = (3 + 2 * torch.randn(4, channels, 7, 5)).contiguous(memory_format=layout)
    upstream_BCHW = torch.randn_like(x_BCHW)
    one, two = x_BCHW.clone().requires_grad_(), x_BCHW.double().requires_grad_()
    with torch.no_grad():
        ours[0].weight.uniform_(0.5, 2)
        ours[0].bias.uniform_(-1, 1)
        theirs.weight.copy_(ours[0].weight)
        theirs.bias.copy_(ours[0].bias)
    found, expected = ours(one), theirs(two)
    found.backward(upstream_BCHW)
    expected.backward(upstream_BCHW.double())
    pairs = [(found, expected), (one.grad, two.grad)]
    pairs += [(ours[0].weight.grad, theirs.weight.grad), (ours[0].bias.grad, theirs.bias.grad)]
    pairs += [(ours[0].running_mean, theirs.running_mean), (ours[0].running_var, theirs.running_var)]
    for single, double in pairs:
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=2e-5)
    assert ours[0].num_batches_tracked == 1


def test_evaluation_uses_the_running_statistics():
    ours = nn.BatchNorm2d(3)
    theirs = copy.deepcopy(ours)
    batchnorm.prepare(ours, CPU)
    x_BCHW = torch.randn(2, 3, 4, 4)
    assert torch.equal(ours.eval()(x_BCHW), theirs.eval()(x_BCHW))


def test_bfloat16_images_keep_their_dtype_under_autocast():
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    batchnorm.prepare(layer, CPU)
    x_BCHW = torch.randn(2, 3, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y_BCHW = layer(x_BCHW)
    y_BCHW.float().square().mean().backward()
    assert y_BCHW.dtype == torch.bfloat16
    assert x_BCHW.grad.isfinite().all()
