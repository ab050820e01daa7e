"""Checkpoint files: whole or not at all, never run, and refused in one line where they do not fit."""

import os
import pickle
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train_cropper
from models.pretrained import load_into, load_model, read_weights
from models.stn_icnn import STNiCNN, STNiCNNConfig
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import run_main

CONFIG = STNiCNNConfig(coarse_size=32, crop_size=33)


@pytest.fixture(scope="module")
def model() -> STNiCNN:
    torch.manual_seed(0)
    return STNiCNN(CONFIG)


def state_of(model: STNiCNN, stage: str, *names: str) -> dict[str, Any]:
    modules = {name: getattr(model, name).state_dict() for name in names}
    return {"stage": stage, "config": vars(model.config), "modules": modules}


@pytest.fixture
def whole(model: STNiCNN, tmp_path: Path) -> Path:
    """An end-to-end checkpoint."""
    checkpoint.save(tmp_path / "whole.pt", state_of(model, "end2end", "coarse", "localizer", "parts"))
    return tmp_path / "whole.pt"


def refused(path: Path) -> str:
    """The one line that every reader of checkpoints gives."""
    lines = set()
    for read in (checkpoint.load, read_weights, lambda path: load_model([path])):
        with pytest.raises(InputError) as caught:
            read(path)
        lines.add(str(caught.value))
    for line in lines:
        assert "\n" not in line
        assert str(path) in line
    return " | ".join(sorted(lines))


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_what_is_saved_comes_back(model: STNiCNN, whole: Path) -> None:
    again = load_model([whole])
    assert again.config == CONFIG
    assert not again.training
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert [path.name for path in whole.parent.iterdir()] == ["whole.pt"]


@pytest.mark.parametrize("kind", ["torch", "pickle", "old torch", "inside a good one"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(kind: str, model: STNiCNN, tmp_path: Path) -> None:
    trace, path = tmp_path / "it_ran", tmp_path / "hostile.pt"
    bad: Any = {"format": 1, "stage": "stage1", "modules": Hostile(trace)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bad, protocol=2))
    elif kind == "inside a good one":
        torch.save({"format": 1, **state_of(model, "stage1", "coarse"), "extra": Hostile(trace)}, path)
    else:
        torch.save(bad, path, _use_new_zipfile_serialization=kind == "torch")
    line = refused(path)
    assert "objects other than weights, which are not run" in line
    assert not trace.exists()
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()  # the file would have run, had it been let


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share: float, whole: Path) -> None:
    data = whole.read_bytes()
    whole.write_bytes(data[: int(share * len(data))])
    assert "damaged or not a checkpoint" in refused(whole)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    path.write_bytes(b"\xff\xd8\xff\xe0 a photo")
    refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    assert "not a checkpoint" in refused(path)
    torch.save([1, 2], path)
    assert "holds a list" in refused(path)
    torch.save({"backbone.weight": torch.zeros(3)}, path)
    assert "is not a checkpoint of this repository" in refused(path)
    torch.save({"format": 2, "stage": "stage1"}, path)
    assert "format 2" in refused(path)
    torch.save({"format": 1, "stage": "stage9"}, path)
    assert "stage 'stage9'" in refused(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "no such checkpoint file" in refused(tmp_path / "none.pt")
    assert "no such checkpoint file" in refused(tmp_path)


def test_without_a_localizer_the_part_networks_decide_about_the_windows(model: STNiCNN, tmp_path: Path) -> None:
    coarse, parts = tmp_path / "stage1.pt", tmp_path / "stage2.pt"
    following = replace(model.config, window_margin=1.6, window_aspect=0.5)
    checkpoint.save(coarse, state_of(model, "stage1", "coarse"))
    checkpoint.save(parts, {**state_of(model, "stage2", "parts"), "config": asdict(following)})
    for paths in ([coarse, parts], [parts, coarse]):
        assert load_model(paths, ("coarse", "parts")).config.windows == following.windows


@pytest.mark.parametrize(
    "config", [None, {"coarse_size": "large"}, {"coarse_size": 1}, {"localizer": "huge"}, {"new_field": 1}]
)
def test_an_unusable_config_is_refused(config: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "odd.pt", {"stage": "stage1", "config": config, "modules": {}})
    with pytest.raises(InputError, match=r"odd.pt.*config"):
        read_weights(tmp_path / "odd.pt")


def test_a_checkpoint_of_another_stage_names_what_it_lacks(model: STNiCNN, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "stage2.pt", state_of(model, "stage2", "parts"))
    with pytest.raises(InputError, match=r"stage2.pt comes from stage 'stage2'; needed here: stage1"):
        checkpoint.load(tmp_path / "stage2.pt", ("stage1",))
    with pytest.raises(InputError, match=r"stage2.pt holds parts, but its coarse weights are needed here"):
        load_into(model, read_weights(tmp_path / "stage2.pt"), ("coarse",))
    with pytest.raises(InputError, match="no coarse or localizer weights"):
        load_model([tmp_path / "stage2.pt"])


def test_a_script_tells_a_checkpoint_of_another_stage_in_one_line(
    model: STNiCNN, tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint.save(tmp_path / "stage2.pt", state_of(model, "stage2", "parts"))
    options = [*tiny_options, "--init-from", str(tmp_path / "stage2.pt"), "--run-dir", str(tmp_path / "run")]
    assert run_main(lambda: train_cropper.main(options)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path / 'stage2.pt'} holds parts, but its coarse weights are needed here"
    assert not (tmp_path / "run").exists()


def test_another_class_count_and_another_architecture_are_refused(model: STNiCNN, tmp_path: Path) -> None:
    state = state_of(model, "stage1", "coarse")
    other = dict(state["modules"]["coarse"])
    last = "head.2.weight"
    checkpoint.save(tmp_path / "c.pt", {**state, "modules": {"coarse": {**other, last: other[last][:7]}}})
    with pytest.raises(InputError, match=r"c.pt: coarse.head.2.weight is \(7, .*another class count"):
        load_into(model, read_weights(tmp_path / "c.pt"), ("coarse",))
    renamed = {("new." + key if key == last else key): value for key, value in other.items()}
    checkpoint.save(tmp_path / "a.pt", {**state, "modules": {"coarse": renamed}})
    with pytest.raises(
        InputError, match=r"a.pt: .*another architecture \(lacks head.2.weight, has an unknown new.head"
    ):
        load_into(model, read_weights(tmp_path / "a.pt"), ("coarse",))
    resnet = STNiCNN(STNiCNNConfig(coarse_size=32, localizer="resnet18"))
    checkpoint.save(tmp_path / "r.pt", state_of(resnet, "cropper", "coarse", "localizer"))
    with pytest.raises(InputError, match=r"r.pt: its localizer weights are of another architecture"):
        load_into(model, read_weights(tmp_path / "r.pt"), ("localizer",))


def test_a_refused_module_leaves_the_model_as_it_was(model: STNiCNN, tmp_path: Path) -> None:
    state = state_of(STNiCNN(CONFIG), "stage1", "coarse")
    state["modules"]["coarse"]["head.2.bias"] = torch.zeros(4)
    checkpoint.save(tmp_path / "c.pt", state)
    before = {key: value.clone() for key, value in model.coarse.state_dict().items()}
    with pytest.raises(InputError):
        load_into(model, read_weights(tmp_path / "c.pt"), ("coarse",))
    assert all(torch.equal(before[key], value) for key, value in model.coarse.state_dict().items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_leaves_the_old_checkpoint_whole_and_no_litter(model: STNiCNN, whole: Path) -> None:
    before = whole.read_bytes()
    (whole.parent / "whole.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"whole.pt could not be saved \(.*\); an older checkpoint there is untouched"):
        checkpoint.save(whole, state_of(model, "stage1", "coarse"))
    assert whole.read_bytes() == before
    assert [path.name for path in whole.parent.iterdir()] == ["whole.pt"]


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not be saved \(No such file or directory\)"):
        checkpoint.save(tmp_path / "none" / "last.pt", {"stage": "stage1"})
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match=r"folder.pt could not be saved \(Is a directory\)"):
        checkpoint.save(tmp_path / "folder.pt", {"stage": "stage1"})
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt"]
