"""Tiny data that several tests share: eight drawn faces in HELEN's layout, and a training that takes milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.synthetic import draw_face
from tests.fixtures import write_helen
from utils.engine import Optimisation, fit

SIZES = {"train": (72, 80, 96, 80), "val": (80, 72, 80), "test": (80,)}

torch.set_num_threads(1)  # networks this small gain nothing from more, and lose much where cores are shared


@pytest.fixture(scope="session")
def helen_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four faces to train on, three to validate and one to test, of several sizes, in HELEN's layout."""
    root = tmp_path_factory.mktemp("helen") / "faces"
    faces = {
        split: [(f"{split}{i}", *draw_face(7, 100 * k + i, size)) for i, size in enumerate(sizes)]
        for k, (split, sizes) in enumerate(SIZES.items())
    }
    write_helen(root, faces)
    return root


@pytest.fixture(scope="session")
def tiny_options(helen_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that make a script train on those faces, on the CPU and in this process alone."""
    cache = tmp_path_factory.mktemp("cache")
    data = ["--dataset", "helen", "--data", str(helen_root), "--cache", str(cache)]
    return [*data, "--device", "cpu", "--workers", "0", "--amp", "off"]


class _Small(nn.Module):
    """A small network with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.bn(self.conv(x))))


@pytest.fixture
def tiny_fit() -> Callable[..., dict[str, float]]:
    """``utils.engine.fit`` on two tiny modules, "body" and "frozen"; its arguments can be replaced by keyword."""

    def run(run_dir: Path, lr: dict[str, float] | None = None, epochs: int = 3, **changed: Any) -> dict[str, float]:
        torch.manual_seed(0)
        modules = changed.pop("modules", None) or {"body": _Small(), "frozen": _Small()}
        lr = lr or {"body": 0.01, "frozen": 0.0}

        def batches(epoch: int) -> list[torch.Tensor]:
            generator = torch.Generator().manual_seed(epoch)
            return [torch.rand(2, 3, 8, 8, generator=generator) for _ in range(3)]

        def step(batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            error = modules["body"](batch).mean() - 1 + 0 * modules["frozen"](batch).sum()
            return error**2, {"error": error.abs()}

        def validate() -> dict[str, float]:
            return {"miss": float((modules["body"](torch.ones(1, 3, 8, 8)).mean() - 1).abs())}

        arguments: dict[str, Any] = {
            "stage": "stage1",
            "modules": modules,
            "step": step,
            "batches": batches,
            "validate": validate,
            "picture": lambda: np.zeros((8, 8, 3), np.uint8),
            "score": "miss",
            "maximise": False,
            "optimisation": Optimisation(epochs, lr, optimizer="adamw", schedule="onecycle", clip=1.0),
            "amp": "off",
            "device": torch.device("cpu"),
            "run_dir": run_dir,
            "resume": False,
            "description": {"seed": 0, "recipe": {"batch_size": 2, "epochs": epochs}},
        }
        return fit(**{**arguments, **changed})

    return run
