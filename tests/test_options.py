"""What a user can get wrong on the command line: one line each, exit status 2, and nothing written."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import train_cropper
import train_end2end
import train_stage1
import train_stage2
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.fixtures import draw_faces, write_challenge
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import run_main

SCRIPTS = (train_stage1, train_cropper, train_stage2, train_end2end)
Refusal = Callable[..., str]


@pytest.fixture
def refusal(tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> Refusal:
    """Runs a script with the tiny data's options and others, and gives the one line that it ends with."""

    def run(*options: str, script: ModuleType = train_stage1, common: list[str] | None = None) -> str:
        own = list(tiny_options if common is None else common)
        arguments = [*own, "--run-dir", str(tmp_path / "run"), *options]
        assert run_main(lambda: script.main(arguments)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert not (tmp_path / "run").exists()
        return line

    return run


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--max-images", ("0", "-3")),
        ("--workers", ("-1", "257")),
        ("--batch-size", ("0", "-2", "65537")),
        ("--seed", ("-1", str(2**63))),
        ("--epochs", ("0", "-1")),
        ("--lr", ("-0.1", "100", "inf", "nan")),
    ],
)
def test_numbers_out_of_range_name_the_option_the_value_and_the_range(
    flag: str, values: tuple[str, ...], refusal: Refusal
) -> None:
    for value in values:
        line = refusal(f"{flag}={value}")
        assert line.startswith(f"error: {flag} {value}")
        assert "must be " in line


@pytest.mark.parametrize("size", ["0", "-5", "15"])
def test_sizes_out_of_range_are_refused(size: str, refusal: Refusal) -> None:
    assert f"--coarse-size {size}" in refusal(f"--coarse-size={size}")
    if int(size) < 8:
        assert f"--crop-size {size}" in refusal(f"--crop-size={size}", script=train_stage2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--epochs", "many"], "--epochs"),
        (["--batch-size", "2.5"], "--batch-size"),
        (["--recipe", "secret"], "--recipe"),
        (["--dataset", "lfw"], "--dataset"),
        (["--amp", "fp16"], "--amp"),
        (["--partition", "thirds"], "--partition"),
        (["--speed", "9"], "--speed"),
        (["--epoch", "9"], "--epoch"),
        (["stray"], "stray"),
    ],
)
def test_unknown_options_and_values_are_named(options: list[str], told: str, refusal: Refusal) -> None:
    assert told in refusal(*options)


def test_all_problems_are_told_at_once(refusal: Refusal) -> None:
    line = refusal("--epochs", "0", "--batch-size", "0", "--lr=-1", "--workers", "999")
    for flag in ("--epochs 0", "--batch-size 0", "--lr -1", "--workers 999"):
        assert flag in line
    line = refusal("--lr-localizer=-2", "--epochs=0", script=train_cropper)
    for told in ("--lr-localizer -2", "--epochs 0", "--init-from is needed"):
        assert told in line


def test_the_run_folder_is_asked_for(tiny_options: list[str], capsys: pytest.CaptureFixture) -> None:
    assert run_main(lambda: train_stage1.main(tiny_options)) == 2
    assert "--run-dir" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["helen", "celebamask"])
def test_a_data_set_on_disk_needs_its_folder(dataset: str, refusal: Refusal) -> None:
    line = refusal(common=["--dataset", dataset])
    assert line == f"error: --data is needed for --dataset {dataset}: name its folder"


def test_missing_empty_and_foreign_data_folders_are_named(refusal: Refusal, tmp_path: Path) -> None:
    common = ["--cache", str(tmp_path / "cache"), "--device", "cpu"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.txt").write_text("no faces")
    for dataset in ("helen", "celebamask"):
        for name, told in (("none", "does not exist"), ("empty", "is empty"), ("odd", "odd")):
            line = refusal("--dataset", dataset, "--data", str(tmp_path / name), common=common)
            assert str(tmp_path / name) in line
            assert told in line
    assert not (tmp_path / "cache").exists()


def test_synthetic_faces_take_no_folder(refusal: Refusal, tmp_path: Path) -> None:
    assert "leave --data out" in refusal(common=["--dataset", "synthetic", "--data", str(tmp_path)])


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_is_refused_where_there_is_none(device: str, refusal: Refusal) -> None:
    line = refusal("--device", device)
    assert line == f"error: --device {device}: this machine has no usable CUDA device; use --device cpu or auto"


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "", "meta", "cpu:x", "cpu:99"])
def test_names_that_are_no_device_are_refused(device: str, refusal: Refusal) -> None:
    assert f"--device {device}" in refusal(f"--device={device}")


def test_a_partition_is_refused_where_there_is_but_one_way_to_split(refusal: Refusal) -> None:
    for common in (None, ["--dataset", "synthetic"]):
        assert "error: --partition paper: there is but one way" in refusal("--partition", "paper", common=common)


def test_faces_to_train_on_without_any_label_are_told_before_the_first_epoch(tmp_path: Path) -> None:
    faces = draw_faces(train=2, val=1)
    bare = {split: [(name, photo, 0 * labels) for name, photo, labels in group] for split, group in faces.items()}
    write_challenge(tmp_path / "faces", {**bare, "val": faces["val"]})
    options = ["--dataset", "celebamask", "--data", str(tmp_path / "faces"), "--cache", str(tmp_path / "cache")]
    with pytest.raises(InputError, match="the 2 faces to train on have no label but background in label set nine"):
        train_stage1.main([*options, "--device", "cpu", "--run-dir", str(tmp_path / "run"), "--batch-size", "2"])
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data_is_refused(tiny_options: list[str], tmp_path: Path) -> None:
    options = [*tiny_options, "--recipe", "best", "--batch-size", "5", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match="--batch-size 5 is larger than the 4 faces of an epoch"):
        train_stage1.main(options)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_batch_that_the_processes_cannot_share_is_refused(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "error: --batch-size 3: must be a multiple of the 2 processes" in refusal("--batch-size", "3")


def test_learning_rates_that_are_all_zero_are_refused(refusal: Refusal) -> None:
    assert "every learning rate is 0" in refusal("--lr", "0")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_missing_checkpoint_to_start_from_is_named(script: ModuleType, refusal: Refusal, tmp_path: Path) -> None:
    line = refusal("--init-from", str(tmp_path / "none.pt"), script=script)
    assert line == f"error: {tmp_path / 'none.pt'}: no such checkpoint file"


@pytest.mark.parametrize(
    "given", [[], ["--init-from-cropper"], ["--init-from-stage2"], ["--init-from", "--init-from-cropper"]]
)
def test_end_to_end_starts_from_both_stages_or_from_one_checkpoint(given: list[str], refusal: Refusal) -> None:
    options = [word for flag in given for word in (flag, "some.pt")]
    assert "start from --init-from-cropper and --init-from-stage2 together" in refusal(*options, script=train_end2end)


def test_the_released_localizer_needs_its_own_size(refusal: Refusal, tmp_path: Path) -> None:
    model = STNiCNN(STNiCNNConfig(coarse_size=32))
    state = {"parser": model.kind, "labels": model.labels.name, "config": vars(model.config)}
    state["modules"] = {"coarse": model.coarse.state_dict()}
    checkpoint.save(tmp_path / "stage1.pt", {"stage": "stage1", **state})
    line = refusal("--init-from", str(tmp_path / "stage1.pt"), "--localizer", "released", script=train_cropper)
    assert "128" in line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_names_every_option_in_groups(script: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for flag in ("--dataset", "--data", "--device", "--seed", "--workers", "--batch-size", "--recipe", "--epochs"):
        assert flag in told
    for flag in ("--run-dir", "--resume", "--amp", "--max-images", "--init-from", "--lr"):
        assert flag in told
