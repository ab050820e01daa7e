"""Two gloo processes on the CPU train as one process does with the same global batch."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

import evaluate
import train_cropper
import train_end2end
import train_stage1
import train_stage2
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.fixtures import state_of
from training import batchnorm
from utils import checkpoint, distributed
from utils.errors import InputError
from utils.runtime import pick_device

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {"stage1": train_stage1, "cropper": train_cropper, "stage2": train_stage2, "end2end": train_end2end}

# Every stage, one after another, in the processes that torchrun starts: to start them takes longer than to train.
# Scripts, one after another, in the processes that torchrun starts: to start them takes longer than to train. Where
# each process has options of its own, the second one may die by its own hand in its second step.
PROGRAM = """
import importlib, json, os, signal, sys
import train_stage1
from utils.runtime import run_main

scripts, own, dies = json.loads(sys.argv[1])
steps, forward = [], train_stage1.Stage1.forward

def forward_or_die(task, batch):
    steps.append(1)
    if dies and len(steps) == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(task, batch)

def main():
    for script, options in scripts.items():
        importlib.import_module(script).main([*options, *own[int(os.environ["RANK"])]])
    return 0

train_stage1.Stage1.forward = forward_or_die
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


def run_two(
    folder: Path, scripts: dict[str, list[str]], own: Any = ((), ()), dies: bool = False
) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    return torchrun(folder / "program.py", json.dumps([scripts, own, dies]))


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An end-to-end checkpoint with random weights."""
    torch.manual_seed(1)
    model = STNiCNN(STNiCNNConfig(coarse_size=32, crop_size=33, window_margin=1.6))
    path = tmp_path_factory.mktemp("init") / "init.pt"
    checkpoint.save(path, state_of(model, "end2end"))
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
    cache = root / "cache"  # both processes find no cache
    arguments = {SCRIPTS[stage].__name__: [*options(stage, "together"), "--cache", str(cache)] for stage in SCRIPTS}
    ended = run_two(root, arguments)
    assert ended.returncode == 0, ended.stderr
    alone_cache = Path(tiny_options[tiny_options.index("--cache") + 1])
    return Both(root / "alone", root / "together", ended, alone_cache, cache)


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Lets torch see CUDA devices, and tells which became the current one. torch.cuda.set_device is torch's own, with
    its check of the index; only what it asks of the driver is a stand-in."""

    def run(count: int, current: int = 0, **environment: str) -> list[int]:
        chosen = [current]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
        monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
        return chosen

    return run


def second_of(processes: int, here: int | None = None) -> dict[str, str]:
    """torchrun's environment of the second process. here: how many run on this machine, all by default."""
    return {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(here or processes), "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("name", "plugged", "environment", "device"),
    [
        ("auto", 0, {}, "cpu"),
        ("auto", 1, {}, "cuda:0"),
        ("cuda", 1, {}, "cuda:0"),
        ("cuda:0", 1, {}, "cuda:0"),
        ("auto", 4, {}, "cuda:0"),
        ("cuda", (4, 2), {}, "cuda:2"),  # the caller's current device
        ("cuda:3", 4, {}, "cuda:3"),
        ("cpu", 4, {}, "cpu"),
        ("auto", 2, second_of(2), "cuda:1"),
        ("cuda", 2, second_of(2), "cuda:1"),
        ("cuda", 2, second_of(4, here=2), "cuda:1"),
        ("cuda:1", 2, {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "cuda:1"),
        ("cpu", 1, second_of(2), "cpu"),
        ("auto", 0, second_of(2), "cpu"),
        ("cuda", 0, {}, "--device cuda: this machine has no usable CUDA device; use --device cpu or auto"),
        ("cuda:1", 1, {}, "--device cuda:1: this machine has 1 CUDA device(s), numbered from 0"),
        ("cuda:0", 2, second_of(2), "--device cuda:0: 2 processes would share one device; say --device cuda"),
        ("auto", 1, second_of(2), "2 processes would share 1 CUDA device(s): start at most 1, or say --device cpu"),
        ("cuda", 1, {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "2 processes would share 1 CUDA device(s)"),
    ],
)
def test_each_process_has_a_device_of_its_own(name, plugged, environment, device, plug_in):
    chosen = plug_in(*(plugged if isinstance(plugged, tuple) else (plugged,)), **environment)
    if " " in device:
        with pytest.raises(InputError) as caught:
            pick_device(name)
        assert device in str(caught.value)
        return
    assert str(pick_device(name)) == device
    assert chosen[1:] == ([] if device == "cpu" else [torch.device(device).index])


@pytest.mark.parametrize(
    ("device", "processes", "joined"),
    [("cuda:0", 1, []), ("cpu", 2, ["gloo"]), ("cuda:1", 2, ["gloo", "nccl"])],
)
def test_nccl_carries_what_lies_on_cards_and_gives_up_within_a_minute(device, processes, joined, monkeypatch):
    groups = []

    def new_group(backend: str, timeout: timedelta) -> str:
        groups.append(backend)
        assert timeout < timedelta(minutes=1)
        return "cards"

    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(dist, "init_process_group", groups.append)
    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(distributed, "_cards", None)
    distributed.start_processes(torch.device(device))
    assert groups == joined
    assert distributed.group(torch.device(device)) == ("cards" if "nccl" in joined else None)
    assert distributed.group(torch.device("cpu")) is None


# Its child would hold the pipe of the output open.
DYING_PARENT = """
import multiprocessing, os, signal, time
from utils.runtime import end_with_parent

def work():
    end_with_parent()
    ready.set()
    time.sleep(600)

context = multiprocessing.get_context("fork")
ready = context.Event()
context.Process(target=work).start()
ready.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_of_a_pool_ends_with_its_parent_even_if_that_is_killed():
    command = [sys.executable, "-c", DYING_PARENT]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize("stage", SCRIPTS)
def test_two_processes_train_and_score_as_one_does(stage, both, init):
    one, two = both.alone / stage, both.together / stage
    rows = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 3
    for alone, together in zip(*rows, strict=True):
        assert alone.keys() == together.keys()
        for key in alone.keys() - {"train_s", "val_s"}:
            apart = 1e-2 if key in ("f1", "strict") else 0  # a pixel more or less on tiny faces
            assert together[key] == pytest.approx(alone[key], rel=2e-4, abs=apart), key
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


def test_two_processes_write_one_run_and_one_cache_without_a_warning(both):
    for stage in SCRIPTS:
        assert len(list((both.together / stage / "tensorboard").iterdir())) == 1
        assert json.loads((both.together / stage / "config.json").read_text())["environment"]["processes"] == 2
        assert both.ended.stdout.count(f"{stage} epoch 1/3") == 1
    assert "warn" not in both.ended.stderr.lower(), both.ended.stderr
    built = {path.relative_to(both.together_cache): path for path in both.together_cache.rglob("*.bin")}
    assert len(built) == 8
    for name, path in built.items():
        assert (both.alone_cache / name).stat().st_size == path.stat().st_size


def own_lines(stderr: str) -> list[str]:
    """The lines that the scripts have written; torchrun adds a report of its own."""
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def with_other_faces(root: Path, folder: Path) -> list[str]:
    """Options for data of equal count and names, of which one face to train on, and one to test, is another."""
    shutil.copytree(root, folder)
    for split, source in (("train0", "train1"), ("test0", "val0")):
        shutil.copy(folder / "images" / f"{source}.jpg", folder / "images" / f"{split}.jpg")
        for mask in (folder / "labels" / source).iterdir():
            shutil.copy(mask, folder / "labels" / split / mask.name.replace(source, split))
    return ["--data", str(folder)]


SMALL = ["--recipe", "best", "--batch-size", "2", "--coarse-size", "32", "--epochs", "3", "--run-dir"]


def test_processes_with_other_faces_of_equal_count_are_refused(tiny_options, helen_root, tmp_path):
    own = ([], with_other_faces(helen_root, tmp_path / "faces"))
    ended = run_two(tmp_path, {"train_stage1": [*tiny_options, *SMALL, str(tmp_path / "run")]}, own)
    assert ended.returncode != 0
    (line,) = own_lines(ended.stderr)
    told = r"error: process 1 has data\.train [0-9a-f]{64}, not [0-9a-f]{64} as process 0: start all with the same data"
    assert re.match(told, line)
    assert not (tmp_path / "run").exists()


def test_faces_to_score_that_are_others_are_refused(tiny_options, helen_root, init, tmp_path, monkeypatch):
    argv = [*tiny_options, "--checkpoint", str(init), "--out", str(tmp_path / "out")]
    held, gather = [], distributed.gather

    def gather_before(value):  # as if this process were the second one, and the first call that of the first
        if not (isinstance(value, dict) and "data" in value):
            return gather(value)
        held.append(value)
        return [held[0], value]

    monkeypatch.setattr(distributed, "gather", gather_before)
    assert evaluate.main(argv) == 0
    with pytest.raises(InputError, match=r"process 1 has data [0-9a-f]{64}, not [0-9a-f]{64} as process 0"):
        evaluate.main([*argv, "--overwrite", *with_other_faces(helen_root, tmp_path / "faces")])


def test_when_one_process_is_killed_the_other_ends_without_a_traceback(tiny_options, tmp_path):
    ended = run_two(tmp_path, {"train_stage1": [*tiny_options, *SMALL, str(tmp_path / "run")]}, dies=True)
    assert ended.returncode != 0
    assert "RuntimeError" not in ended.stderr, ended.stderr
    lines = own_lines(ended.stderr)
    assert len(lines) <= 1  # none where torchrun was faster
    assert all("process 0 of 2 has lost the others, of which one has ended" in line for line in lines)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"face_size": 32}, "process 1 has face_size 32, not None as process 0"),
        ({"images": 3}, "process 1 has images 3, not 4 as process 0"),
        ({"recipe": {"batch_size": 4}}, "process 1 has recipe.batch_size 4, not 2 as process 0"),
        ({"resume": True}, "process 1 has resume True, not False as process 0"),
    ],
)
def test_what_differs_between_processes_is_named(changed, told, monkeypatch):
    own = {"face_size": None, "images": 4, "recipe": {"batch_size": 2}, "resume": False}
    distributed.require_same(own)
    monkeypatch.setattr(distributed, "gather", lambda value: [value, {**own, **changed}])
    with pytest.raises(InputError, match=told):
        distributed.require_same(own)
    monkeypatch.setattr(distributed, "gather", lambda value: [own, value])
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with pytest.raises(SystemExit) as ended:  # without a line of its own
        distributed.require_same({**own, **changed})
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL error"),
        dist.DistNetworkError("The client socket has timed out"),
        RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:123"),
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1000ms for recv"),
    ],
)
def test_the_end_of_another_process_is_told_in_one_line(error):
    with (
        pytest.raises(InputError, match="has lost the others, of which one has ended") as caught,
        distributed.told_when_lost(),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes differ"), distributed.told_when_lost():
        raise RuntimeError("shapes differ")


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
def test_batches_are_normalised_over_all_processes_by_what_the_device_has(device, processes, kind, monkeypatch):
    monkeypatch.setattr(batchnorm, "world_size", lambda: processes)
    network = small()
    weights = {name: value.data_ptr() for name, value in network.named_parameters()}
    batchnorm.prepare(network, torch.device(device))
    assert [type(layer) for layer in (network[1], network[2][1])] == [kind] * 2
    assert {name: value.data_ptr() for name, value in network.named_parameters()} == weights
