"""An interrupted run, resumed, ends bit for bit where an uninterrupted one does."""

import json
import operator
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

import train_stage1
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.damage import refuses
from tests.fixtures import contents, names, python, repainted, save_parser, status_of
from utils import checkpoint

TIMES = ("train_s", "val_s")
THIN = ["--coarse-size", "32", "--coarse-channels", "4", "4", "4", "4"]


def values_of(file: Path) -> dict[str, Any]:
    """What a checkpoint holds, times aside, by its place."""
    values, _ = tree_flatten_with_path(checkpoint.read_tensors(file))
    return {keystr(place): value for place, value in values if not keystr(place).endswith(("train_s']", "val_s']"))}


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same_run(one: Path, two: Path) -> None:
    """Both runs left the same, bit for bit."""
    for name in ("last.pt", "best.pt"):
        held, others = values_of(one / name), values_of(two / name)
        assert held.keys() == others.keys()
        for place, value in held.items():
            same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
            assert same(value, others[place]), (name, place)
    assert log_of(one) == log_of(two)


@pytest.fixture(scope="module")
def stage1(tiny_options, tmp_path_factory) -> list[str]:
    """Options of a run that has ended; the last one is its folder."""
    small = ["--recipe", "best", "--batch-size", "2", "--lr", "0.003", "--epochs", "3", *THIN]
    options = [*tiny_options, *small, "--run-dir", str(tmp_path_factory.mktemp("whole") / "run")]
    assert train_stage1.main(options) == 0
    state = checkpoint.load(Path(options[-1], "last.pt"))
    assert (state["epoch"], {entry["step"].item() for entry in state["optimizer"]["state"].values()}) == (2, {6})
    assert len({row["loss"] for row in log_of(Path(options[-1]))}) == 3  # it learns: equality says something
    return options


def save_model(path: Path) -> str:
    widths = {"coarse_channels": (4, 4, 4, 4), "part_channels": (4, 4, 4, 4)}
    return str(save_parser(path, STNiCNN(STNiCNNConfig(coarse_size=32, crop_size=17, **widths))))


@pytest.fixture
def tiny_run(tiny_fit, tmp_path) -> Path:
    """A finished run of the tiny task."""
    tiny_fit(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)])
def test_a_run_that_a_signal_ends_in_its_second_epoch_resumes_bit_for_bit(number, status, stage1, tmp_path, capfd):
    options = [*stage1[:-1], str(tmp_path / "run")]
    assert status_of(python("-m", "tests.stopped", str(number.value), *options)) == status
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert ("interrupted (a training run continues" in printed) == (status == 130)
    assert len(log_of(tmp_path / "run")) == 1
    assert train_stage1.main([*options, "--resume"]) == 0
    assert_same_run(tmp_path / "run", Path(stage1[-1]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modules": {}}, "not a state dict"),
        ({"modules": None}, "are of another model"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "are of another model"),
        ({"recipe": None}, "trained with recipe"),
        ({"optimizer": ...}, "cannot be resumed: it lacks optimizer"),
    ],
)
def test_a_last_checkpoint_of_another_kind_is_refused_in_one_line(changed, message, tiny_run, tiny_fit):
    path = tiny_run / "last.pt"
    state = {**checkpoint.read_tensors(path), **changed}
    torch.save({key: value for key, value in state.items() if value is not ...}, path)
    before = contents(tiny_run)
    with refuses(message):
        tiny_fit(tiny_run, resume=True)
    assert contents(tiny_run) == before


@pytest.mark.parametrize("text", ["[]\n1\n", '{"epoch": "x"}\n\n'])
def test_a_damaged_log_is_refused_in_one_line(text, tiny_fit, tmp_path):
    fit_until("last.pt", lambda: tiny_fit(tmp_path))
    (tmp_path / "log.jsonl").write_text(text)
    before = contents(tmp_path)
    with refuses("log.jsonl", "remove it"):
        tiny_fit(tmp_path, resume=True)
    assert contents(tmp_path) == before


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def fit_until(moment: str, fit: Callable[[], Any]) -> None:
    """Train until the second epoch's writing is interrupted: before a file is written, or before it gets its name."""
    save, rename = checkpoint.save, os.replace

    def save_or_stop(path: Path, state: dict[str, Any]) -> None:
        interrupt() if state.get("epoch") == 1 and path.name == moment else save(path, state)

    def rename_or_stop(old: Path, new: Path) -> None:
        interrupt() if new.suffix == ".pt" and checkpoint.read_tensors(old)["epoch"] == 1 else rename(old, new)

    with pytest.MonkeyPatch.context() as patch:
        if moment == "renaming":
            patch.setattr(os, "replace", rename_or_stop)
        else:
            patch.setattr(checkpoint, "save", save_or_stop)
        with pytest.raises(KeyboardInterrupt):
            fit()


MOMENTS = ("best.pt", "last.pt", "half of the log's line", "renaming")
KINDS = ({"maximise": True}, {"score_start": True})


@pytest.mark.parametrize(("moment", "kind"), [*((moment, {}) for moment in MOMENTS), *(("last.pt", k) for k in KINDS)])
def test_a_run_interrupted_between_two_writes_resumes_bit_for_bit(moment, kind, tiny_fit, tmp_path):
    run_dir, log, best = tmp_path / "run", tmp_path / "run" / "log.jsonl", 1 if "maximise" in kind else 3
    assert tiny_fit(tmp_path / "whole", **kind)["epoch"] == best  # the score falls
    fit_until("last.pt" if "log" in moment else moment, lambda: tiny_fit(run_dir, **kind))
    if "log" in moment:
        log.write_text(log.read_text()[:-20])
    assert tiny_fit(run_dir, resume=True, **kind)["epoch"] == best
    assert_same_run(run_dir, tmp_path / "whole")
    assert names(run_dir) == ["best.pt", "config.json", "last.pt", "log.jsonl", "tensorboard"]


def test_a_finished_run_resumes_to_nothing_and_none_at_all_from_the_beginning(tiny_fit, tiny_run, tmp_path, capsys):
    before = contents(tiny_run)
    tiny_fit(tiny_run, resume=True)
    assert contents(tiny_run) == before
    assert "finished already" in capsys.readouterr().out
    tiny_fit(tmp_path / "two", resume=True)
    assert_same_run(tiny_run, tmp_path / "two")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--seed 1", "seed 0, not 1"),
        ("--max-images 3", "images 4, not 3"),
        ("--epochs 4", "epochs 3, not 4: repeat its options and data, or start a new --run-dir with --init-from "),
        ("--lr 0.002", "lr.coarse 0.003, not 0.002"),
        ("--coarse-size 48", "coarse_size 32, not 48"),
        ("--data {other}", "data.train "),  # of equal count
    ],
)
def test_a_run_resumed_with_other_options_or_faces_is_refused(changed, message, stage1, helen_root, tmp_path):
    other, run_dir = repainted(helen_root, tmp_path / "faces", "train0"), Path(stage1[-1])
    before = contents(run_dir)
    with refuses(f"{run_dir / 'last.pt'} was trained with ", message):
        train_stage1.main([*stage1, "--resume", *changed.format(other=other).split()])
    assert contents(run_dir) == before


def test_a_used_run_folder_is_refused_and_left_as_it_is(tiny_fit, tiny_run):
    for name in ("nothing", "last.pt"):  # a lone best checkpoint is not overwritten either
        (tiny_run / name).unlink(missing_ok=True)
        before = contents(tiny_run)
        with refuses("already holds a run: continue it with --resume, or choose another --run-dir"):
            tiny_fit(tiny_run)
        assert contents(tiny_run) == before
