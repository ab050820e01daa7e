"""Two gloo processes on the CPU train as one process does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import train_cropper
import train_end2end
import train_stage1
import train_stage2
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from utils import batchnorm, checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {"stage1": train_stage1, "cropper": train_cropper, "stage2": train_stage2, "end2end": train_end2end}

# Every stage, one after another, in the processes that torchrun starts: to start them takes longer than to train.
EVERY_STAGE = """
import importlib, json, sys
from utils.runtime import run_main

def main():
    for script, options in json.loads(sys.argv[1]).items():
        importlib.import_module(script).main(options)
    return 0

sys.exit(run_main(main))
"""


class Both(NamedTuple):
    """The run folders of one process and of two, by stage; what the two wrote; the caches of either."""

    alone: Path
    together: Path
    ended: subprocess.CompletedProcess[str]
    alone_cache: Path
    together_cache: Path


def torchrun(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [*launcher, str(script), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def with_cache(options: list[str], cache: Path) -> list[str]:
    options = list(options)
    options[options.index("--cache") + 1] = str(cache)
    return options


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An end-to-end checkpoint with random weights."""
    config = STNiCNNConfig(coarse_size=32, crop_size=33, window_margin=1.6)
    torch.manual_seed(1)
    model = STNiCNN(config)
    modules = {name: getattr(model, name).state_dict() for name in model.networks}
    about = {"parser": model.kind, "labels": model.labels.name, "config": vars(config)}
    path = tmp_path_factory.mktemp("init") / "init.pt"
    checkpoint.save(path, {"stage": "end2end", **about, "modules": modules})
    return path


@pytest.fixture(scope="module")
def both(init: Path, tiny_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Every stage trained from the same weights, by one process and by two."""
    root = tmp_path_factory.mktemp("both")
    # A seed with which no class of a crop comes and goes by one pixel, which rounding would decide.
    shared = [*tiny_options, "--recipe", "best", "--epochs", "3", "--batch-size", "4", "--seed", "1"]
    own = {
        "stage1": ["--coarse-size", "32", "--lr", "0.001"],
        "cropper": ["--lr-localizer", "0.001"],
        "stage2": ["--crop-size", "33", "--lr", "0.001"],
        "end2end": [],
    }

    def options(stage: str, folder: str) -> list[str]:
        return [*shared, *own[stage], "--init-from", str(init), "--run-dir", str(root / folder / stage)]

    for stage, script in SCRIPTS.items():
        assert script.main(options(stage, "alone")) == 0
    program, cache = root / "every_stage.py", root / "cache"  # both processes find no cache
    program.write_text(EVERY_STAGE)
    arguments = {SCRIPTS[stage].__name__: with_cache(options(stage, "together"), cache) for stage in SCRIPTS}
    ended = torchrun(program, json.dumps(arguments))
    assert ended.returncode == 0, ended.stderr
    alone_cache = Path(tiny_options[tiny_options.index("--cache") + 1])
    return Both(root / "alone", root / "together", ended, alone_cache, cache)


@pytest.mark.parametrize("stage", SCRIPTS)
def test_two_processes_train_and_score_as_one_does(stage: str, both: Both, init: Path) -> None:
    one, two = both.alone / stage, both.together / stage
    rows = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 3
    for alone, together in zip(*rows, strict=True):
        assert alone.keys() == together.keys()
        for key in alone.keys() - {"train_s", "val_s"}:
            rel = 2e-2 if key in ("f1", "strict") else 2e-4  # a pixel more or less on tiny faces
            assert together[key] == pytest.approx(alone[key], rel=rel), key
    begun, alone, together = (checkpoint.load(path)["modules"] for path in (init, one / "last.pt", two / "last.pt"))
    for name, network in alone.items():
        # Batch normalisation cancels the bias before it: its gradient is rounding noise, which Adam makes into steps.
        kept = [key for key in network if not key.endswith(("conv.bias", "running_mean"))]
        steps, apart = (
            torch.cat([(network[key] - other[name][key]).flatten().float() for key in kept])
            for other in (begun, together)
        )
        if stage == "cropper" and name == "coarse":
            assert steps.norm() == apart.norm() == 0  # it is frozen
        else:
            assert apart.norm() < 0.01 * steps.norm(), name


def test_two_processes_write_one_run_and_one_cache_without_a_warning(both: Both) -> None:
    for stage in SCRIPTS:
        assert len(list((both.together / stage / "tensorboard").iterdir())) == 1
        assert json.loads((both.together / stage / "config.json").read_text())["environment"]["processes"] == 2
        assert both.ended.stdout.count(f"{stage} epoch 1/3") == 1
    assert "warn" not in both.ended.stderr.lower(), both.ended.stderr
    built = {path.relative_to(both.together_cache): path for path in both.together_cache.rglob("*.bin")}
    assert len(built) == 8
    for name, path in built.items():
        assert (both.alone_cache / name).stat().st_size == path.stat().st_size


def small() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)))


@pytest.mark.parametrize(
    ("device", "processes", "kind"),
    [
        ("cuda", 2, nn.SyncBatchNorm),
        ("cuda", 1, nn.BatchNorm2d),
        ("cpu", 2, batchnorm.BatchNorm2d),
        ("cpu", 1, batchnorm.BatchNorm2d),
    ],
)
def test_batches_are_normalised_over_all_processes_by_what_the_device_has(
    device: str, processes: int, kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchnorm, "world_size", lambda: processes)
    network = small()
    weights = {name: value.data_ptr() for name, value in network.named_parameters()}
    batchnorm.prepare(network, torch.device(device))
    assert [type(layer) for layer in (network[1], network[2][1])] == [kind] * 2
    assert {name: value.data_ptr() for name, value in network.named_parameters()} == weights
