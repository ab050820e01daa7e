"""Training: the loop, what it stops at, changes and leaves alone; losses worked by hand; batch normalisation."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.labels import NINE
from models.stn_icnn.icnn import ICNN, ICNNConfig
from tests.conftest import small
from tests.test_resume import log_of
from training import batchnorm
from training.casts import cast_together
from training.engine import Optimisation, Scores, learning_rate_factor
from training.losses import parts_loss, segmentation_loss, theta_loss
from utils.checkpoint import load
from utils.errors import InputError

Fit = Callable[..., Scores]


def test_the_paper_s_rate_is_halved_every_five_epochs_and_an_unknown_schedule_refused():
    with pytest.raises(ValueError, match="no schedule is called 'onecyle'"):
        learning_rate_factor("onecyle", 1, 20)
    rates = [learning_rate_factor("halve", epoch, 25) for epoch in (0, 4.99, 5, 9.9, 10, 24.9)]
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.0625]


def test_one_cycle_warms_up_peaks_and_ends_near_zero():
    rates = [learning_rate_factor("onecycle", epoch, 20) for epoch in np.arange(0, 20, 0.05)]
    peak = int(np.argmax(rates))
    assert (rates[0], rates[peak]) == pytest.approx((0.04, 1), abs=1e-3)
    assert peak == pytest.approx(60, abs=1)  # 15 % of the way
    assert np.array_equal(np.diff(rates) > 0, np.arange(len(rates) - 1) < peak)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate_factor("constant", 17.3, 20) == 1


def test_networks_and_modules_in_them_learn_at_their_own_rates_and_at_rate_zero_keep_every_value(
    tiny_fit: Fit, tmp_path: Path
) -> None:
    networks = {"body": nn.Sequential(small(), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)), "frozen": small()}
    optimisation = Optimisation(6, {"body": 0.02, "frozen": 0.0, "body.0": 0.01, "body.2": 0.0}, schedule="halve")
    before = {key: value.clone() for key, value in nn.ModuleDict(networks).state_dict().items()}
    tiny_fit(tmp_path / "run", optimisation=optimisation, networks=networks)
    state = load(tmp_path / "run" / "last.pt")
    groups = state["optimizer"]["param_groups"]
    assert {group["name"]: group["lr"] for group in groups} == {"body": 0.01, "body.0": 0.005}
    assert [(row["epoch"], row["lr"]) for row in log_of(tmp_path / "run")] == [
        *((k, 0.02) for k in range(1, 6)),
        (6, 0.01),
    ]
    now = {f"{name}.{key}": value for name, held in state["modules"].items() for key, value in held.items()}
    changed = {key for key, value in now.items() if not torch.equal(value, before[key])}
    assert changed == {key for key in now if key.startswith(("body.0.", "body.1."))}  # batch statistics too
    assert not any(parameter.requires_grad for parameter in networks["frozen"].parameters())


def test_what_is_minimised_is_the_sum_of_the_losses_and_each_is_logged(tiny_fit, tmp_path):
    weight = nn.Conv2d(3, 1, 1)
    for losses, logged in (({"three": 3, "four": 4}, {"three": 3, "four": 4, "loss": 7}), ({"three": 3}, {"loss": 3})):

        def forward(batch: Tensor, losses: dict[str, int] = losses) -> dict[str, Tensor]:
            return {name: weight(batch).mean() * 0 + value for name, value in losses.items()}

        run = tmp_path / str(len(losses))
        tiny_fit(run, networks={"body": weight}, forward=forward, validate=lambda: {"miss": 1.0})
        for row in log_of(run):
            assert row.items() >= logged.items()
            assert ("three" in row) == ("three" in logged)  # alone it would only repeat the loss


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tiny_fit, tmp_path):
    steps = []
    weight = nn.Conv2d(3, 1, 1)

    def forward(batch: Tensor) -> dict[str, Tensor]:
        steps.append(1)
        loss = weight(batch).mean() ** 2
        return {"theta": loss, "parts": loss * (math.nan if len(steps) == 5 else 1)}

    networks = {"body": weight}
    message = r"not finite at epoch 2, step 2 \(loss nan, theta \d.*, parts nan\): lower"
    with pytest.raises(InputError, match=message) as caught:
        tiny_fit(tmp_path, forward=forward, networks=networks, validate=lambda: {"miss": 1.0})
    assert "\n" not in str(caught.value)
    assert load(tmp_path / "last.pt")["epoch"] == 0
    saved = load(tmp_path / "last.pt")["modules"]["body"]
    assert all(value.isfinite().all() for value in saved.values())


def test_gradients_are_clipped(tiny_fit, tmp_path):
    norms = []
    weight = nn.Conv2d(3, 1, 1)

    def forward(batch: Tensor) -> dict[str, Tensor]:
        if weight.weight.grad is not None:
            norms.append(float(torch.cat([p.grad.flatten() for p in weight.parameters()]).norm()))
        return {"mean": 1000 * weight(batch).mean()}

    networks = {"body": weight, "frozen": small()}
    tiny_fit(tmp_path, forward=forward, networks=networks, validate=lambda: {"miss": 1.0})
    assert len(norms) == 8
    assert norms == pytest.approx([1.0] * len(norms), rel=1e-3)


def test_the_best_epoch_is_kept_apart_from_the_last(tiny_fit, tmp_path):
    scores = iter([0.3, 0.8, 0.8])
    best = tiny_fit(tmp_path, validate=lambda: {"miss": next(scores)}, maximise=True)
    assert (best["epoch"], best["miss"]) == (2, 0.8)
    assert (load(tmp_path / "best.pt")["epoch"], load(tmp_path / "last.pt")["epoch"]) == (1, 2)
    scores = iter([0.3, 0.8, 0.2])
    assert tiny_fit(tmp_path / "least", validate=lambda: {"miss": next(scores)})["miss"] == 0.2


def test_the_start_is_scored_and_stays_the_best_while_no_epoch_is_better(
    tiny_fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    scores = iter([0.1, 0.3, 0.1, 0.3])
    body = small()
    start = {name: value.clone() for name, value in body.state_dict().items()}
    networks = {"body": body, "frozen": small()}
    best = tiny_fit(tmp_path, networks=networks, validate=lambda: {"miss": next(scores)}, score_start=True)
    assert (best["epoch"], best["miss"]) == (0, 0.1)
    saved = load(tmp_path / "best.pt")["modules"]["body"]
    assert all(torch.equal(value, saved[name]) for name, value in start.items())
    assert [(row["epoch"], row["miss"]) for row in log_of(tmp_path)] == [(0, 0.1), (1, 0.3), (2, 0.1), (3, 0.3)]
    assert "best miss 0.1000 at the start, which no epoch has improved" in capsys.readouterr().out


def test_epochs_between_are_neither_validated_nor_saved(tiny_fit, tmp_path):
    def stopping() -> Scores:
        raise KeyboardInterrupt

    scores = iter([{"miss": 0.5}])
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(tmp_path, epochs=5, every=(3, 2), validate=lambda: next(scores, None) or stopping())
    assert load(tmp_path / "last.pt")["epoch"] == 0  # the second validation was that of epoch 2
    tiny_fit(tmp_path, epochs=5, every=(3, 2), resume=True)
    assert ["miss" in row for row in log_of(tmp_path)] == [True, False, True, False, True]
    assert load(tmp_path / "last.pt")["epoch"] == 4


def test_weights_that_are_cast_together_get_the_gradients_of_autocast():
    network, photos, grads = ICNN(ICNNConfig(3, (8, 12), 5, 5, 1)), torch.rand(2, 3, 24, 24), []
    for how in (nullcontext(), cast_together([network, nn.Linear(2, 2)])):  # also a network without convolutions
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), how:
            loss = network(photos).float().square().mean()
        loss.backward()
        grads.append([value.grad.clone() for value in network.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))
    assert all(value.dtype == torch.float32 for value in network.parameters())


def test_dice_is_averaged_over_the_classes_that_a_face_holds():
    logits = torch.full((3, 3, 1, 2), -50.0)
    logits[0, 1, 0, 0] = logits[0, 0, 0, 1] = 50  # face 0: class 1, then background
    logits[1, 0] = 50  # face 1: all background; face 2 might be anything, and holds no class
    targets = torch.tensor([[[1, 1]], [[0, 2]], [[0, 0]]])
    # face 0, class 1: 2 * 1 / (1 + 2); class 2 is neither there nor predicted. Face 1, class 2: 0.
    with_dice = segmentation_loss(logits, targets, 0.5) - segmentation_loss(logits, targets)
    assert with_dice.item() == pytest.approx(0.5 * ((1 - 2 / 3) + 1) / 3, rel=1e-5)


def test_a_perfect_mask_costs_nothing_and_half_precision_is_raised_first():
    targets = torch.randint(0, 9, (2, 8, 8))
    logits = 60 * torch.nn.functional.one_hot(targets, 9).permute(0, 3, 1, 2).bfloat16()
    loss = segmentation_loss(logits, targets, 0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_the_loss_of_the_parts_is_their_sum():
    logits = [torch.zeros(2, 1 + len(labels), 3, 3) for labels in NINE.part_ids]
    targets = [torch.zeros(2, 3, 3, dtype=torch.long)] * 6
    assert parts_loss(logits, targets).item() == pytest.approx(5 * math.log(2) + math.log(4))


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.5 * 0.4**2), (0.1, 0.4 - 0.05)])
def test_theta_loss_is_smooth_l1_of_the_free_entries_of_parts_that_are_there(beta, expected):
    target = torch.zeros(1, 6, 2, 3)
    theta = target.clone()
    theta[0, 0, 0, 0] = 0.4  # one of four free entries, of one of six parts
    theta[0, 1, 0, 1] = theta[0, 1, 1, 0] = 9  # shear is not taught
    theta[0, 2] = 7  # a part that is not there
    present = torch.tensor([[True, True, False, True, True, True]])
    assert theta_loss(theta, target, present, beta).item() == pytest.approx(expected / 4 / 6)


CPU = torch.device("cpu")


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("channels", [1, 8, 9, 24])
def test_batch_normalisation_equals_that_of_torch_in_double_precision(channels, layout):
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
    torch.testing.assert_close(ours.eval()(one).double(), theirs.eval()(two), rtol=1e-4, atol=2e-5)


def test_batch_normalisation_keeps_bfloat16_under_autocast():
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    batchnorm.prepare(layer, CPU)
    x_BCHW = torch.randn(2, 3, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y_BCHW = layer(x_BCHW)
    y_BCHW.float().square().mean().backward()
    assert y_BCHW.dtype == torch.bfloat16
    assert x_BCHW.grad.isfinite().all()
