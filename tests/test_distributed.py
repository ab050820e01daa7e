"""Two gloo processes on the CPU train as one process does with the same global batch."""

import json
import re
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import evaluate
import train_stage1
from tests.damage import refuses
from tests.fixtures import repainted, two_processes
from tests.test_resume import log_of, save_model
from tests.test_stages import SCRIPTS
from training import batchnorm
from utils import checkpoint, distributed
from utils.errors import InputError
from utils.runtime import pick_device

OWN = {
    "stage1": ["--coarse-size", "32", "--lr", "0.001"],
    "cropper": ["--lr-localizer", "0.001"],
    "stage2": ["--crop-size", "17", "--lr", "0.001"],
    "end2end": [],
}

TRAIN = """
import json, sys
from tests.test_stages import SCRIPTS
for stage, options in json.loads(sys.argv[1]).items():
    assert SCRIPTS[stage].main(options) == 0
"""


@pytest.fixture(scope="module")
def both(tiny_options, tmp_path_factory) -> Path:
    """Every stage trained from the weights start.pt by one process, into alone/, and by two, into together/, which also
    print into printed.txt; each with a cache."""
    root = tmp_path_factory.mktemp("both")
    torch.manual_seed(0)
    start = save_model(root / "start.pt")
    # A seed with which no class of a crop comes and goes by one pixel, which rounding would decide.
    shared = [*tiny_options, "--recipe", "best", "--epochs", "2", "--batch-size", "4", "--seed", "2"]

    def options(name, stage):
        folders = ["--cache", str(root / name / "cache"), "--run-dir", str(root / name / stage)]
        return [*shared, *OWN[stage], "--init-from", start, *folders]

    for stage, script in SCRIPTS.items():
        assert script.main(options("alone", stage)) == 0
    all_stages = json.dumps({stage: options("together", stage) for stage in SCRIPTS})
    with open(root / "printed.txt", "a") as file:
        assert two_processes("-c", TRAIN, all_stages, printed=file) == [0, 0]
    return root


def second_of(processes, here=None):
    """torchrun's environment of the second process. here: how many run on this machine, all by default."""
    return {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(here or processes), "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("name", "plugged", "environment", "device"),
    [
        ("auto", 0, {}, "cpu"),
        ("auto", 1, {}, "cuda:0"),
        ("cuda", (4, 2), {}, "cuda:2"),  # the caller's current device
        ("cuda:3", 4, {}, "cuda:3"),
        ("cpu", 4, {}, "cpu"),
        ("auto", 2, second_of(2), "cuda:1"),
        ("cuda", 2, second_of(4, here=2), "cuda:1"),
        ("cuda:1", 2, {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "cuda:1"),
        ("auto", 0, second_of(2), "cpu"),
        ("cuda", 0, {}, "device cuda: this machine has no usable CUDA device; use cpu or auto"),
        ("cuda:1", 1, {}, "device cuda:1: this machine has 1 CUDA device(s), numbered from 0"),
        ("cuda:0", 2, second_of(2), "device cuda:0: 2 processes would share one device; use cuda"),
        ("cuda", 1, {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "2 processes would share 1 CUDA device(s): start at most"),
    ],
)
def test_each_process_has_a_device_of_its_own(name, plugged, environment, device, monkeypatch):
    count, current = plugged if isinstance(plugged, tuple) else (plugged, 0)
    chosen = [current]  # by torch's own set_device, with its check of the index: only the driver is a stand-in
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    if " " in device:
        with pytest.raises(InputError, match=re.escape(device)):
            pick_device(name)
        return
    assert str(pick_device(name)) == device
    assert chosen[1:] == ([] if device == "cpu" else [torch.device(device).index])


@pytest.mark.parametrize(
    ("device", "processes", "joined"), [("cuda:0", 1, []), ("cpu", 2, ["gloo"]), ("cuda:1", 2, ["gloo", "nccl"])]
)
def test_nccl_carries_what_lies_on_cards_and_gives_up_within_a_minute(device, processes, joined, monkeypatch):
    groups: dict[str, timedelta | None] = {}
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(dist, "init_process_group", lambda backend: groups.update({backend: None}))
    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: groups.update({backend: timeout}) or "cards")
    monkeypatch.setattr(distributed, "_cards", None)
    distributed.start_processes(torch.device(device))
    assert [*groups] == joined
    assert groups.get("nccl", timedelta()) < timedelta(minutes=1)
    assert distributed.group(torch.device(device)) == ("cards" if "nccl" in joined else None)
    assert distributed.group(torch.device("cpu")) is None


@pytest.mark.parametrize("stage", SCRIPTS)
def test_two_processes_train_and_score_as_one_does(stage, both):
    one, two = both / "alone" / stage, both / "together" / stage
    rows = [log_of(run) for run in (one, two)]
    assert len(rows[0]) == len(rows[1]) == (2 if stage == "cropper" else 3)  # with the scores of the start
    for alone, together in zip(*rows, strict=True):
        assert alone.keys() == together.keys()
        for key in alone:
            apart = 1e-2 if key in ("f1", "strict") else 0  # a pixel more or less on tiny faces
            assert together[key] == pytest.approx(alone[key], rel=2e-4, abs=apart), key
    paths = both / "start.pt", one / "last.pt", two / "last.pt"
    begun, alone, together = (checkpoint.load(path)["modules"] for path in paths)
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
    printed = (both / "printed.txt").read_text()
    assert "warn" not in printed.lower()
    for stage in SCRIPTS:
        run = both / "together" / stage
        assert len(list((run / "tensorboard").iterdir())) == 1
        assert json.loads((run / "config.json").read_text())["environment"]["processes"] == 2
        assert printed.count(f"{stage} epoch 1/2") == 1
    alone, together = (
        {path.relative_to(cache): path.stat().st_size for path in cache.rglob("*.bin")}
        for cache in (both / "alone" / "cache", both / "together" / "cache")
    )
    assert alone == together
    assert len(together) == 8


def own_lines(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]


SMALL = ["--recipe", "best", "--batch-size", "2", "--coarse-size", "32", "--epochs", "3", "--run-dir"]


@pytest.mark.parametrize("script", [train_stage1, evaluate])
def test_processes_with_other_faces_of_equal_count_are_refused(
    script, tiny_options, helen_root, weights, tmp_path, capfd
):
    others = repainted(helen_root, tmp_path / "faces", "train0", "test0")
    training = script is train_stage1
    options = [*SMALL, str(tmp_path / "run")] if training else ["--checkpoint", str(weights), "--out", str(tmp_path)]

    both = [f"{script.__name__}.py", *tiny_options, *options]
    assert 0 not in two_processes(*both, second=["--data", str(others)])
    (line,) = own_lines(capfd)
    name, digest = "data.train" if training else "data", "[0-9a-f]{64}"
    assert re.match(f"error: process 1 has {name} {digest}, not {digest} as process 0: start all with the same", line)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_a_batch_that_the_processes_cannot_share_is_refused(tiny_options, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refuses("--batch-size 3: must be a multiple of the 2 processes"):
        train_stage1.main([*tiny_options, *SMALL, str(tmp_path / "run"), "--batch-size", "3"])


def test_when_one_process_is_killed_the_other_ends_in_one_line(tiny_options, tmp_path, capfd):
    options = [*tiny_options, *SMALL, str(tmp_path / "run")]
    assert two_processes("-m", "tests.stopped", str(signal.SIGKILL.value), *options) == [2, -signal.SIGKILL]
    (line,) = own_lines(capfd)
    assert "process 0 of 2 lost the other processes, one of which has ended" in line


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (dist.DistBackendError("NCCL error"), "lost the other processes"),
        (dist.DistNetworkError("The client socket has timed out"), "lost the other processes"),
        (RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:123"), "lost the other processes"),
        (RuntimeError("[gloo/unbound_buffer.cc:81] Timed out waiting 1000ms for recv"), "lost the other processes"),
        (RuntimeError("shapes differ"), "shapes differ"),  # keeps its traceback
    ],
)
def test_the_end_of_another_process_is_reported_in_one_line(error, message):
    with pytest.raises(RuntimeError if "shapes" in message else InputError, match=message), distributed.explain_lost():
        raise error


@pytest.mark.parametrize(
    ("device", "processes", "kind"),
    [("cuda", 2, nn.SyncBatchNorm), ("cuda", 1, nn.BatchNorm2d), ("cpu", 2, batchnorm.BatchNorm2d)],
)
def test_batches_are_normalised_over_all_processes_by_what_the_device_has(device, processes, kind, monkeypatch):
    monkeypatch.setattr(batchnorm, "world_size", lambda: processes)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)))
    weights = {name: value.data_ptr() for name, value in network.named_parameters()}
    batchnorm.prepare(network, torch.device(device))
    assert [type(layer) for layer in (network[1], network[2][1])] == [kind] * 2
    assert {name: value.data_ptr() for name, value in network.named_parameters()} == weights
