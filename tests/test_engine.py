"""The training loop: what it stops at, what it changes, what it leaves alone, and that it learns."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.icnn import ICNN, ICNNConfig
from utils.checkpoint import load
from utils.engine import Optimisation, evaluate, fit, learning_rate_factor
from utils.errors import InputError
from utils.losses import segmentation_loss

Fit = Callable[..., dict[str, float]]


def test_the_paper_s_rate_is_halved_every_five_epochs() -> None:
    rates = [learning_rate_factor("halve", epoch, 25) for epoch in (0, 4.99, 5, 9.9, 10, 24.9)]
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.0625]


def test_one_cycle_warms_up_peaks_and_ends_near_zero() -> None:
    rates = [learning_rate_factor("onecycle", epoch, 20) for epoch in np.arange(0, 20, 0.05)]
    peak = int(np.argmax(rates))
    assert rates[0] == pytest.approx(0.04)
    assert rates[peak] == pytest.approx(1, abs=1e-3)
    assert peak == pytest.approx(60, abs=1)  # 15 % of the way
    assert all(np.diff(rates[:peak]) > 0)
    assert all(np.diff(rates[peak:]) < 0)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate_factor("constant", 17.3, 20) == 1


def test_each_module_is_trained_at_its_own_rate_of_the_schedule(tiny_fit: Fit, tmp_path: Path) -> None:
    optimisation = Optimisation(6, {"body": 0.01, "frozen": 0.02}, schedule="halve")
    tiny_fit(tmp_path, optimisation=optimisation)
    groups = load(tmp_path / "last.pt")["optimizer"]["param_groups"]
    assert {group["name"]: group["lr"] for group in groups} == {"body": 0.005, "frozen": 0.01}
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [0.01] * 5 + [0.005]
    assert [row["epoch"] for row in rows] == list(range(6))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 1, 1))


def test_a_module_at_rate_zero_keeps_weights_and_batch_statistics(tiny_fit: Fit, tmp_path: Path) -> None:
    torch.manual_seed(5)
    modules = {"body": small(), "frozen": small()}
    before = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()}
    tiny_fit(tmp_path, modules=modules)
    for key, value in modules["frozen"].state_dict().items():
        assert torch.equal(value, before["frozen"][key]), key
    changed = {k for k, value in modules["body"].state_dict().items() if not torch.equal(value, before["body"][k])}
    assert changed == set(before["body"])
    assert not any(parameter.requires_grad for parameter in modules["frozen"].parameters())


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tiny_fit: Fit, tmp_path: Path) -> None:
    steps = []
    weight = nn.Conv2d(3, 1, 1)

    def step(batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        steps.append(1)
        loss = weight(batch).mean() ** 2
        return loss * (math.nan if len(steps) == 5 else 1), {"theta": loss}

    with pytest.raises(InputError, match=r"not finite at epoch 2, step 2 \(loss nan, theta \d.*\): lower") as caught:
        tiny_fit(tmp_path, step=step, modules={"body": weight, "frozen": small()}, validate=lambda: {"miss": 1.0})
    assert "\n" not in str(caught.value)
    assert load(tmp_path / "last.pt")["epoch"] == 0
    saved = load(tmp_path / "last.pt")["modules"]["body"]
    assert all(value.isfinite().all() for value in saved.values())


def test_gradients_are_clipped(tiny_fit: Fit, tmp_path: Path) -> None:
    norms = []
    weight = nn.Conv2d(3, 1, 1)

    def step(batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if weight.weight.grad is not None:
            norms.append(float(torch.cat([p.grad.flatten() for p in weight.parameters()]).norm()))
        return 1000 * weight(batch).mean(), {}

    tiny_fit(tmp_path, step=step, modules={"body": weight, "frozen": small()}, validate=lambda: {"miss": 1.0})
    assert norms == pytest.approx([1.0] * len(norms), rel=1e-3)


def test_the_best_epoch_is_kept_apart_from_the_last(tiny_fit: Fit, tmp_path: Path) -> None:
    scores = iter([0.3, 0.8, 0.5])
    best = tiny_fit(tmp_path, validate=lambda: {"miss": next(scores)}, maximise=True)
    assert (best["epoch"], best["miss"]) == (1, 0.8)
    assert (load(tmp_path / "best.pt")["epoch"], load(tmp_path / "last.pt")["epoch"]) == (1, 2)
    scores = iter([0.3, 0.8, 0.2])
    assert tiny_fit(tmp_path / "least", validate=lambda: {"miss": next(scores)})["miss"] == 0.2


def test_a_run_folder_that_cannot_be_made_is_told_in_one_line(tiny_fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"--run-dir .*file.* cannot be made \(File exists\)"):
        tiny_fit(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot be made \(Not a directory\)"):
        tiny_fit(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_one_batch_can_be_learnt_by_heart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    icnn = ICNN(ICNNConfig(num_labels=3, channels=(8, 12), interlinks=1, head_kernel=5))
    labels = torch.zeros(2, 24, 24, dtype=torch.long)
    labels[0, 4:12, 5:15], labels[1, 10:20, 8:16] = 1, 2
    photos = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2) * 0.5 + 0.3 * torch.rand(2, 3, 24, 24)

    def step(batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return segmentation_loss(icnn(batch), labels, 0.5), {}

    fit(
        stage="stage1",
        modules={"coarse": icnn},
        step=step,
        batches=lambda epoch: [photos] * 20,
        validate=lambda: {"f1": 0.0},
        picture=lambda: np.zeros((4, 4, 3), np.uint8),
        score="f1",
        maximise=True,
        optimisation=Optimisation(3, {"coarse": 0.01}, "adamw", "onecycle", 1e-2, 1.0),
        amp="off",
        device=torch.device("cpu"),
        run_dir=tmp_path,
        resume=False,
        description={},
    )
    with torch.no_grad():
        icnn.train()
        end = float(segmentation_loss(icnn(photos), labels, 0.5))
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["loss"]
    assert end < first / 5


def test_evaluation_counts_each_face_on_its_own_grid() -> None:
    class Two:
        sizes_B2 = torch.tensor([[2, 3], [3, 2]])
        labels_BHW = torch.tensor([[[1, 1, 0], [0, 0, 0], [9, 9, 9]], [[2, 2, 9], [0, 0, 9], [0, 1, 9]]])
        index_B = torch.tensor([4, 7])

        def to(self, _: torch.device) -> "Two":
            return self

    index, matrices = evaluate(lambda batch: torch.ones(2, 3, 3, dtype=torch.uint8), [Two()], torch.device("cpu"), 3)
    assert index.tolist() == [4, 7]
    assert matrices[0].tolist() == [[0, 4, 0], [0, 2, 0], [0, 0, 0]]
    assert matrices[1].tolist() == [[0, 3, 0], [0, 1, 0], [0, 2, 0]]
    index, matrices = evaluate(lambda batch: batch, [], torch.device("cpu"), 3)
    assert index.shape == (0,)
    assert matrices.shape == (0, 3, 3)
