"""An interrupted run, resumed, ends bit for bit where an uninterrupted one does."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import train_end2end
import train_stage1
from data.batch import Batch
from data.view import Augmentation, View
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.damage import SPECIAL, line_of
from training.engine import Scores
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import run_main

REPOSITORY = Path(__file__).resolve().parent.parent
TIMES = ("train_s", "val_s")
RUN_FILES = {"best.pt", "last.pt", "config.json", "log.jsonl", "tensorboard"}

DAMAGED = "weights, epoch or best row are damaged"

Fit = Callable[..., Scores]

# A script that ends its own process, by the signal given, in the middle of a training epoch.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
import train_stage1
from utils.runtime import run_main

number, last_step, *options = sys.argv[1:]
steps, forward = [], train_stage1.Stage1.forward

def forward_and_die(task, batch):
    steps.append(1)
    if len(steps) == int(last_step):
        os.kill(os.getpid(), int(number))
    return forward(task, batch)

train_stage1.Stage1.forward = forward_and_die
sys.exit(run_main(lambda: train_stage1.main(options)))
"""


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Two checkpoints' contents are equal bit for bit, times aside."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one.keys() - TIMES:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for k, pair in enumerate(zip(one, two, strict=True)):
            assert_same(*pair, f"{where}[{k}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    else:
        assert one == two, where


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same_run(one: Path, two: Path) -> None:
    for name in ("last.pt", "best.pt"):
        assert_same(checkpoint.read_tensors(one / name), checkpoint.read_tensors(two / name), name)
    assert log_of(one) == log_of(two)


def interrupted_in_the_second_epoch(main: Callable[[], int]) -> bool:
    """Whether a training ends as Ctrl-C ends it, when its second epoch begins."""
    view = Augmentation.view

    def view_or_stop(augmentation: Augmentation, batch: Batch) -> View:
        return interrupt() if batch.keys_B3[0, 1] == 1 else view(augmentation, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Augmentation, "view", view_or_stop)
        return run_main(main) == 130


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def stage1_options(tiny_options: list[str]) -> list[str]:
    small = ["--recipe", "best", "--batch-size", "2", "--coarse-size", "32", "--lr", "0.003"]
    return [*tiny_options, *small, "--epochs", "3"]


@pytest.fixture(scope="module")
def uninterrupted(stage1_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train_stage1.main([*stage1_options, "--run-dir", str(run_dir)]) == 0
    return run_dir


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 130)]
)
def test_a_run_killed_in_its_second_epoch_resumes_bit_for_bit(number, status, stage1_options, uninterrupted, tmp_path):
    options = [*stage1_options, "--run-dir", str(tmp_path / "run")]
    command = [sys.executable, "-c", INTERRUPTED, str(int(number)), "4", *options]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(log_of(tmp_path / "run")) == 1
    if number != signal.SIGKILL:
        assert ended.stderr.splitlines()[-1].startswith("interrupted")
    assert train_stage1.main([*options, "--resume"]) == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_the_run_learns_so_that_equality_says_something(uninterrupted):
    state = checkpoint.load(uninterrupted / "last.pt")
    assert state["epoch"] == 2
    assert len({row["loss"] for row in log_of(uninterrupted)}) == 3
    assert all(entry["step"] == 6 for entry in state["optimizer"]["state"].values())


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An end-to-end checkpoint with random weights."""
    torch.manual_seed(1)
    return save_model(tmp_path_factory.mktemp("init") / "init.pt")


def save_model(path: Path) -> Path:
    model = STNiCNN(STNiCNNConfig(coarse_size=32, crop_size=17))
    modules = {name: getattr(model, name).state_dict() for name in model.networks}
    about = {"parser": model.kind, "labels": model.labels.name, "config": vars(model.config)}
    checkpoint.save(path, {"stage": "end2end", **about, "modules": modules})
    return path


def end2end_options(tiny_options: list[str], start: Path) -> list[str]:
    small = ["--recipe", "best", "--batch-size", "2", "--max-images", "2", "--epochs", "2"]
    return [*tiny_options, *small, "--init-from", str(start)]


def test_end_to_end_resumes_bit_for_bit(tiny_options, whole_model, tmp_path):
    options = end2end_options(tiny_options, whole_model)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_end2end.main([*options, "--run-dir", str(whole)]) == 0
    assert interrupted_in_the_second_epoch(lambda: train_end2end.main([*options, "--run-dir", str(broken)]))
    assert log_of(broken) == log_of(whole)[:1]
    assert train_end2end.main([*options, "--run-dir", str(broken), "--resume"]) == 0
    assert_same_run(whole, broken)


def test_a_run_resumed_from_another_checkpoint_is_refused_in_one_line(tiny_options, whole_model, tmp_path, capsys):
    run = ["--epochs", "1", "--run-dir", str(tmp_path / "run")]
    assert train_end2end.main([*end2end_options(tiny_options, whole_model), *run]) == 0
    before = contents(tmp_path / "run")
    options = [*end2end_options(tiny_options, save_model(tmp_path / "other.pt")), *run, "--resume"]
    capsys.readouterr()
    assert run_main(lambda: train_end2end.main(options)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"was trained with started_from\.init_from [0-9a-f]{64}, not [0-9a-f]{64}: ", line)
    assert contents(tmp_path / "run") == before


def test_a_run_resumed_on_other_faces_of_equal_count_is_refused(
    stage1_options, uninterrupted, helen_root, tmp_path, capsys
):
    shutil.copytree(helen_root, tmp_path / "faces")
    images = tmp_path / "faces" / "images"
    (images / "train0.jpg").write_bytes((images / "train1.jpg").read_bytes())
    for mask in (tmp_path / "faces" / "labels" / "train1").iterdir():
        shutil.copy(mask, tmp_path / "faces" / "labels" / "train0" / mask.name.replace("train1", "train0"))
    options = [*stage1_options, "--run-dir", str(uninterrupted), "--resume"]
    options[options.index("--data") + 1] = str(tmp_path / "faces")
    before = contents(uninterrupted)
    capsys.readouterr()
    assert run_main(lambda: train_stage1.main(options)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"was trained with data\.train [0-9a-f]{64}, not [0-9a-f]{64}: repeat its options and data", line)
    assert contents(uninterrupted) == before


# Holds the lock of a run folder, as another run would, until its standard input is closed.
HOLDER = """
import fcntl, os, sys
number = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(number, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_run(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has a run in the folder."""
    command = [sys.executable, "-c", HOLDER, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_run_in_a_folder_is_refused_while_the_first_one_lives(tiny_fit, tmp_path):
    tiny_fit(tmp_path / "whole")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with another_run(run_dir) as other:
        for resume in (False, True):
            with pytest.raises(InputError, match=r"^--run-dir .*run is in use by another run: wait for its end"):
                tiny_fit(run_dir, resume=resume)
        assert [path.name for path in run_dir.iterdir()] == [".lock"]
        other.kill()
        other.wait()
        tiny_fit(run_dir)  # the file that the killed run has left locks nothing
    assert_same_run(run_dir, tmp_path / "whole")
    assert {path.name for path in run_dir.iterdir()} == RUN_FILES


def test_a_link_in_place_of_the_lock_is_not_followed(tiny_fit, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="--run-dir"):
        tiny_fit(tmp_path / "run")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        *(({"epoch": epoch}, DAMAGED) for epoch in ("2", -1, 0.5, float("nan"), None)),
        *(({"best": best}, DAMAGED) for best in (None, [1], {}, {"epoch": 0}, {"epoch": 0, "miss": "low"})),
        *(({"modules": modules}, DAMAGED) for modules in (None, 3)),
        ({"modules": {}}, "no state dict"),
        ({"epoch": 7}, "was trained for 8 epochs, not 3"),
        ({"stage": "stage2"}, "comes from stage 'stage2'"),
        ({"stage": torch.ones(2)}, "comes from stage a Tensor"),
        ({"seed": torch.zeros(3)}, "trained with seed"),
        ({"recipe": {"batch_size": torch.zeros(3), "epochs": 3}}, "trained with recipe.batch_size"),
        ({"recipe": None}, "trained with recipe"),
        *(
            ({"optimizer": state}, "optimizer state is damaged")
            for state in (
                7,
                [],
                {},
                {"state": {}},
                {"state": {}, "param_groups": []},
                {"state": [1], "param_groups": "x"},
            )
        ),
    ],
)
def test_a_last_checkpoint_of_absurd_values_is_refused_in_one_line(changed, told, tiny_fit, tmp_path):
    tiny_fit(tmp_path)
    path = tmp_path / "last.pt"
    torch.save({**checkpoint.read_tensors(path), **changed}, path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=told) as caught:
        tiny_fit(tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", ["shape", "lacks", "nan"])
def test_a_damaged_optimizer_state_is_refused_in_one_line(damage, tiny_fit, tmp_path):
    tiny_fit(tmp_path)
    path = tmp_path / "last.pt"
    state = checkpoint.read_tensors(path)
    entry = state["optimizer"]["state"][0]
    if damage == "lacks":
        del entry["exp_avg"]
    else:
        entry["exp_avg"] = torch.zeros(5) if damage == "shape" else entry["exp_avg"] * float("nan")
    torch.save(state, path)
    with pytest.raises(InputError, match="its optimizer state is damaged or of another model"):
        tiny_fit(tmp_path, resume=True)


@pytest.mark.parametrize(
    "text",
    [
        *("{}\n{}\n", "[]\n1\n", "\0\0\n\0\n", '{"epoch": "x"}\n\n', '{"epoch": 1e999}\n{}\n', "hello}\n\n"),
        *('{"loss": 1}\n\n', '{"epoch": ' + "[" * 100_000 + "}\n\n", '{"epoch": 0, "\udcff": 1}\n\n'),
    ],
)
def test_a_damaged_log_is_refused_in_one_line(text, tiny_fit, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at("last.pt", patch)
        with pytest.raises(KeyboardInterrupt):
            tiny_fit(tmp_path)
    (tmp_path / "log.jsonl").write_text(text, errors="surrogateescape")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"log\.jsonl, line 1: no row of a log; remove the line"):
        tiny_fit(tmp_path, resume=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("file", ["last.pt", "log.jsonl", "config.json", "tensorboard"])
def test_what_is_no_file_in_the_place_of_a_run_s_file_is_one_line_or_does_no_harm(file, tiny_fit, tmp_path):
    tiny_fit(tmp_path / "run")
    for kind in ("folder", "pipe", "endless device", "link to itself"):
        folder = tmp_path / kind
        shutil.copytree(tmp_path / "run", folder)
        shutil.rmtree(folder / file) if file == "tensorboard" else (folder / file).unlink()
        SPECIAL[kind](folder / file)
        line = line_of(lambda folder=folder: tiny_fit(folder, resume=True))
        assert "\n" not in line
        assert file in line or (not line and file != "last.pt")


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def interrupt_at(moment: str, patch: pytest.MonkeyPatch) -> None:
    """Let the second epoch's writing end in a KeyboardInterrupt."""
    save, torch_save, replace = checkpoint.save, torch.save, os.replace

    def save_or_stop(path: Path, state: dict[str, Any]) -> None:
        interrupt() if state["epoch"] == 1 and path.name == moment else save(path, state)

    def save_half(state: dict[str, Any], file: Any) -> None:
        torch_save(state, file)
        if state["epoch"] == 1 and "optimizer" in state:
            file.truncate(1000)
            interrupt()

    def replace_or_stop(old: Path, new: Path) -> None:
        interrupt() if new.suffix == ".pt" and checkpoint.read_tensors(old)["epoch"] == 1 else replace(old, new)

    if moment == "half of last.pt":
        patch.setattr(torch, "save", save_half)
    elif moment == "renaming":
        patch.setattr(os, "replace", replace_or_stop)
    else:
        patch.setattr(checkpoint, "save", save_or_stop)


@pytest.mark.parametrize("moment", ["best.pt", "last.pt", "half of the log's line", "half of last.pt", "renaming"])
def test_a_run_interrupted_between_two_writes_resumes_bit_for_bit(moment, tiny_fit, tmp_path, monkeypatch):
    best, run_dir = tiny_fit(tmp_path / "whole"), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at("last.pt" if "log" in moment else moment, patch)
        with pytest.raises(KeyboardInterrupt):
            tiny_fit(run_dir)
    log = run_dir / "log.jsonl"
    if "log" in moment:
        log.write_text(log.read_text()[:-20])
    assert tiny_fit(run_dir, resume=True)["epoch"] == best["epoch"]
    assert_same_run(run_dir, tmp_path / "whole")
    assert {path.name for path in run_dir.iterdir()} == RUN_FILES


def test_the_best_epoch_survives_a_resume(tiny_fit, tmp_path, monkeypatch):
    assert tiny_fit(tmp_path / "whole", maximise=True)["epoch"] == 0  # the score falls
    with monkeypatch.context() as patch:
        interrupt_at("last.pt", patch)
        with pytest.raises(KeyboardInterrupt):
            tiny_fit(tmp_path / "run", maximise=True)
    assert tiny_fit(tmp_path / "run", maximise=True, resume=True)["epoch"] == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_resumes_to_nothing(stage1_options, uninterrupted, capsys):
    before = contents(uninterrupted)
    assert run_main(lambda: train_stage1.main([*stage1_options, "--run-dir", str(uninterrupted), "--resume"])) == 0
    assert contents(uninterrupted) == before
    assert "finished already" in capsys.readouterr().out


def test_resume_with_nothing_there_starts_from_the_beginning(tiny_fit, tmp_path):
    tiny_fit(tmp_path / "one")
    tiny_fit(tmp_path / "two", resume=True)
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--seed", "1"], "seed 0, not 1"),
        (["--recipe", "paper"], "not"),
        (["--max-images", "3"], "images 4, not 3"),
        (["--epochs", "4"], "epochs 3, not 4"),
        (["--lr", "0.002"], "lr.coarse 0.003, not 0.002"),
        (["--batch-size", "1"], "batch_size 2, not 1"),
        (["--coarse-size", "48"], "coarse_size 32, not 48"),
    ],
)
def test_a_run_resumed_with_other_options_is_refused_in_one_line(changed, told, stage1_options, uninterrupted, capsys):
    before = contents(uninterrupted)
    options = [*stage1_options, "--run-dir", str(uninterrupted), "--resume", *changed]
    assert run_main(lambda: train_stage1.main(options)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {uninterrupted / 'last.pt'} was trained with ")
    assert told in line
    assert len(line) < 400
    assert contents(uninterrupted) == before


def test_a_used_run_folder_is_refused_and_left_as_it_is(stage1_options, uninterrupted, capsys):
    before = contents(uninterrupted)
    assert run_main(lambda: train_stage1.main([*stage1_options, "--run-dir", str(uninterrupted)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {uninterrupted} already holds a run: go on with --resume, or name another --run-dir"
    assert contents(uninterrupted) == before


def test_a_lone_best_checkpoint_is_not_overwritten_either(tiny_fit, tmp_path):
    tiny_fit(tmp_path)
    (tmp_path / "last.pt").unlink()
    before = contents(tmp_path)
    with pytest.raises(InputError, match="already holds a run"):
        tiny_fit(tmp_path)
    assert contents(tmp_path) == before


def test_best_weights_posing_as_the_last_are_refused(tiny_fit, tmp_path):
    tiny_fit(tmp_path)
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(InputError, match=r"last.pt cannot be resumed: it lacks optimizer"):
        tiny_fit(tmp_path, resume=True)


def test_a_checkpoint_of_another_stage_is_not_resumed(tiny_fit, tmp_path):
    tiny_fit(tmp_path, stage="cropper")
    with pytest.raises(InputError, match="comes from stage 'cropper'; needed here: stage1"):
        tiny_fit(tmp_path, resume=True)


def test_a_disk_that_fills_up_while_saving_leaves_a_run_that_resumes(tiny_fit, tmp_path, monkeypatch):
    tiny_fit(tmp_path / "whole")
    torch_save = torch.save

    def save(state: dict[str, Any], file: Any) -> None:
        if state["epoch"] == 1 and "optimizer" in state:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        torch_save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(InputError, match=r"last.pt could not be saved \(No space left on device\)"):
            tiny_fit(tmp_path / "run")
    tiny_fit(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
