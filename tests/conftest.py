"""Tiny data that several tests share: eight drawn faces in HELEN's layout, and a training that takes milliseconds."""

import os
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import predict
from data.datasets.synthetic import draw_face
from data.labels import HELEN, NINE
from data.loaders import Faces, open_faces
from data.source import FaceData
from models.loading import KINDS, load_for_inference
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.fixtures import save_parser, write_helen
from tests.tiny_parser import TinyConfig, TinyParser
from tools import check
from training.engine import Optimisation, Run, Scores, Task, fit

SIZES = {"train": (72, 80, 96, 80), "val": (80, 72, 80), "test": (80,)}

GPU = Path(__file__).parent / "gpu"

# tests of a single feature are left out where its package is missing
PACKAGES = {"test_download.py": "pooch", "test_video.py": "av", "test_whole.py": "segmentation_models_pytorch"}
collect_ignore = [file for file, package in PACKAGES.items() if find_spec(package) is None]

KINDS[TinyParser.kind] = TinyParser  # among those that checkpoints may hold
torch.set_num_threads(1)  # networks this small gain nothing from more, and lose much where cores are shared
os.environ["OMP_NUM_THREADS"] = "1"  # the same for the processes that tests start


def pytest_configure(config: pytest.Config) -> None:
    """Hide CUDA devices from all tests and the processes that they start, unless only those of tests/gpu are run."""
    if not all(GPU in (path := Path(word.split("::")[0]).resolve()).parents or path == GPU for word in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


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


@pytest.fixture(scope="module")
def val_faces(helen_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Faces:
    """The faces to validate, in nine labels."""
    return open_faces(FaceData("helen", helen_root, cache=tmp_path_factory.mktemp("cache")), "val", NINE)


@pytest.fixture(scope="session")
def tiny_options(helen_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that make a script train on those faces, on the CPU and in this process alone."""
    cache = tmp_path_factory.mktemp("cache")
    data = ["--dataset", "helen", "--data", str(helen_root), "--cache", str(cache)]
    return [*data, "--device", "cpu", "--workers", "0", "--amp", "off"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An end-to-end checkpoint of STN-iCNN with random weights."""
    torch.manual_seed(0)
    model = STNiCNN(STNiCNNConfig(coarse_size=32, crop_size=33, window_margin=1.6))
    return save_parser(tmp_path_factory.mktemp("weights") / "best.pt", model)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers each time."""
    torch.manual_seed(0)


_loaded = cache(load_for_inference)


@pytest.fixture
def loading_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts load each checkpoint once in all tests: that takes longer than labelling a small photo."""
    for script in (predict, check):
        monkeypatch.setattr(script, "load_for_inference", lambda paths, *more: _loaded((*paths,), *more))


@pytest.fixture
def other_parser(tmp_path: Path) -> Path:
    """A checkpoint of a parser that has HELEN's labels and no windows."""
    return save_parser(tmp_path / "tiny.pt", TinyParser(TinyConfig(), HELEN), "tiny")


def small() -> nn.Module:
    """A small network with batch normalisation: images (B, 3, H, W) to one channel."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 1, 1))


class TinyTask(Task):
    """Two tiny networks, "body" and "frozen", of which the first learns to give 1."""

    stage = "stage1"
    score = "miss"
    maximise = False

    def batches(self, epoch: int) -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        return [torch.rand(2, 3, 8, 8, generator=generator) for _ in range(3)]

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        error = self.networks["body"](batch).mean() - 1 + 0 * self.networks["frozen"](batch).sum()
        return {"square": error**2, "nothing": 0 * error.abs()}

    def validate(self) -> Scores:
        return {"miss": float((self.networks["body"](torch.ones(1, 3, 8, 8)).mean() - 1).abs())}

    def picture(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def tiny_fit() -> Callable[..., Scores]:
    """``training.engine.fit`` on a TinyTask; what the task is and does can be replaced by keyword."""

    def run(folder: Path, epochs: int = 3, resume: bool = False, every: tuple[int, ...] = (), **changed: Any) -> Scores:
        torch.manual_seed(0)
        networks = changed.pop("networks", None) or {"body": small(), "frozen": small()}
        optimisation = Optimisation(epochs, {"body": 0.01, "frozen": 0.0}, "adamw", "onecycle", clip=1.0)
        task = TinyTask(networks, changed.pop("optimisation", optimisation))
        start = changed.pop("score_start", False)
        for name, value in changed.items():
            setattr(task, name, value)
        description = {"seed": 0, "recipe": {"batch_size": 2, "epochs": epochs}}
        return fit(task, Run(folder, resume, torch.device("cpu"), "off", description, *every, score_start=start))

    return run
