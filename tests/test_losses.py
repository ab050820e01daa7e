"""The losses, against values worked by hand; batch normalisation while training, beside torch's own."""

import copy
import math

import pytest
import torch
from torch import nn

from data.labels import NINE
from training import batchnorm
from training.losses import parts_loss, segmentation_loss, theta_loss


def test_cross_entropy_is_the_mean_over_pixels():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 0] = math.log(3)  # class 1 has probability 3/4 there, 1/2 beside
    targets = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    assert segmentation_loss(logits, targets).item() == pytest.approx(expected)


def test_dice_is_averaged_over_the_classes_that_a_face_holds():
    logits = torch.full((2, 3, 1, 2), -50.0)
    logits[0, 1, 0, 0] = logits[0, 0, 0, 1] = 50  # face 0: class 1, then background
    logits[1, 0] = 50  # face 1: all background
    targets = torch.tensor([[[1, 1]], [[0, 2]]])
    # face 0, class 1: 2 * 1 / (1 + 2); class 2 is neither there nor predicted. Face 1, class 2: 0.
    with_dice = segmentation_loss(logits, targets, 0.5) - segmentation_loss(logits, targets)
    assert with_dice.item() == pytest.approx(0.5 * ((1 - 2 / 3) + 1) / 2, rel=1e-5)


def test_a_face_without_foreground_has_no_dice():
    logits, targets = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    assert segmentation_loss(logits, targets, 0.7) == segmentation_loss(logits, targets)


def test_a_perfect_mask_costs_nothing_and_half_precision_is_raised_first():
    targets = torch.randint(0, 9, (2, 8, 8))
    logits = 60 * torch.nn.functional.one_hot(targets, 9).permute(0, 3, 1, 2).bfloat16()
    loss = segmentation_loss(logits, targets, 0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_the_parts_are_summed():
    logits = [torch.zeros(2, 1 + len(labels), 3, 3) for labels in NINE.part_ids]
    targets = [torch.zeros(2, 3, 3, dtype=torch.long)] * 6
    assert parts_loss(logits, targets).item() == pytest.approx(5 * math.log(2) + math.log(4))


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.5 * 0.4**2), (0.1, 0.4 - 0.05)])
def test_theta_loss_is_smooth_l1_of_the_free_entries(beta, expected):
    target = torch.zeros(1, 6, 2, 3)
    theta = target.clone()
    theta[0, 0, 0, 0] = 0.4  # one of four free entries, of one of six parts
    theta[0, 1, 0, 1] = theta[0, 1, 1, 0] = 9  # shear is not taught
    present = torch.ones(1, 6, dtype=torch.bool)
    assert theta_loss(theta, target, present, beta).item() == pytest.approx(expected / 4 / 6)


def test_theta_loss_does_not_depend_on_how_a_batch_is_shared_out():
    theta, target = torch.randn(4, 6, 2, 3), torch.randn(4, 6, 2, 3)
    present = torch.tensor([[True] * 6, [True] * 6, [False] * 6, [True] + [False] * 5])
    halves = [theta_loss(theta[s], target[s], present[s]) for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(theta_loss(theta, target, present), sum(halves) / 2)


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
