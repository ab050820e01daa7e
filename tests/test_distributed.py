"""Two gloo processes on the CPU train as one process does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import train_end2end
import train_stage1
from models.stn_icnn import STNiCNN, STNiCNNConfig
from utils import checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent


def torchrun(script: str, options: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, script, *options], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )


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
    modules = {name: getattr(model, name).state_dict() for name in ("coarse", "localizer", "parts")}
    path = tmp_path_factory.mktemp("init") / "init.pt"
    checkpoint.save(path, {"stage": "end2end", "config": vars(config), "modules": modules})
    return path


@pytest.mark.parametrize("script", [train_stage1, train_end2end], ids=lambda script: script.__name__)
def test_two_processes_train_and_score_as_one_does(
    script: ModuleType, init: Path, tiny_options: list[str], tmp_path: Path
) -> None:
    # A seed with which no class of a crop comes and goes by one pixel, which rounding would decide.
    options = [*tiny_options, "--recipe", "best", "--epochs", "3", "--batch-size", "4", "--init-from", str(init)]
    options += ["--seed", "1", *(["--coarse-size", "32", "--lr", "0.001"] if script is train_stage1 else [])]
    one, two = tmp_path / "one", tmp_path / "two"
    assert script.main([*options, "--run-dir", str(one)]) == 0
    ended = torchrun(
        f"{script.__name__}.py", [*with_cache(options, tmp_path / "cache"), "--run-dir", str(two)]
    )  # both processes find no cache
    assert ended.returncode == 0, ended.stderr

    rows = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 3
    for alone, together in zip(*rows, strict=True):
        assert alone.keys() == together.keys()
        for key in alone.keys() - {"train_s", "val_s"}:
            rel = 2e-2 if key in ("f1", "strict") else 2e-4  # a pixel more or less on tiny faces
            assert together[key] == pytest.approx(alone[key], rel=rel), key
    begun, alone, together = (checkpoint.load(path)["modules"] for path in (init, one / "last.pt", two / "last.pt"))
    for name, module in alone.items():
        # Batch normalisation cancels the bias before it: its gradient is rounding noise, which Adam makes into steps.
        kept = [key for key in module if not key.endswith(("conv.bias", "running_mean"))]
        steps, apart = (
            torch.cat([(module[key] - other[name][key]).flatten().float() for key in kept])
            for other in (begun, together)
        )
        assert apart.norm() < 0.01 * steps.norm(), name

    assert len(list((two / "tensorboard").iterdir())) == 1
    assert json.loads((two / "config.json").read_text())["environment"]["processes"] == 2
    assert ended.stdout.count("epoch 1/3") == 1
    built = {path.relative_to(tmp_path / "cache"): path.stat().st_size for path in (tmp_path / "cache").rglob("*.bin")}
    assert len(built) == 8
    alone_cache = Path(tiny_options[tiny_options.index("--cache") + 1])
    for path, size in built.items():
        assert (alone_cache / path).stat().st_size == size
