"""Checkpoint files: whole or not at all, never run, and refused in one line where they do not fit."""

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train_cropper
from data.labels import NINE
from data.source import FaceData
from models.loading import load_parser, read_weights
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.damage import Runs, flipped, little_room, refuses
from tests.fixtures import names, save_parser, state_of
from tests.test_resume import assert_same_run, fit_until
from training.task import Plan
from utils import checkpoint, distributed
from utils.errors import InputError
from utils.runtime import Machine

State = dict[str, Any]
CONFIG = STNiCNNConfig(coarse_size=32, crop_size=33)


@pytest.fixture(scope="module")
def model() -> STNiCNN:
    torch.manual_seed(0)
    return STNiCNN(CONFIG)


@pytest.fixture
def whole(model, tmp_path) -> Path:
    """An end-to-end checkpoint."""
    return save_parser(tmp_path / "whole.pt", model)


def refused(path: Path) -> str:
    """The one line that every reader of checkpoints gives."""
    lines = set()
    for read in (checkpoint.load, read_weights, lambda path: load_parser([path])):
        with refuses(path) as caught:
            read(path)
        lines.add(str(caught.value))
    return " | ".join(sorted(lines))


def legacy(value: Any) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, _use_new_zipfile_serialization=False)
    return made.getvalue()


def zipped(entries: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return made.getvalue()


def repacked(good: bytes, name: str, change: Callable[[bytes], bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    """The zip archive with another content of the entry whose name ends so."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    assert sum(entry.endswith(name) for entry in entries) == 1
    return zipped({entry: change(data) if entry.endswith(name) else data for entry, data in entries.items()}, how)


CODE = "holds objects other than weights, which are not run"
OTHER = "damaged or not a checkpoint: give one that training wrote"
ZIP, FAR = zipfile.ZIP_DEFLATED, "far more than its size promises"
ENDLESS = b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."  # {((..., ...), (..., ...)): 1}
RUNS = {"format": 2, "stage": Runs()}
SCRIPTED = {"m/data.pkl": b"\x80\x02}.", "m/constants.pkl": b"\x80\x02).", "m/version": b"3\n"}  # TorchScript
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"
BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda good: b"", OTHER),
    "a pointer of Git LFS": (lambda good: POINTER, "git lfs pull"),
    "safetensors": (lambda good: b"\x02\0\0\0\0\0\0\0{}", OTHER),
    "tar": (lambda good: b"weights.pt".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), OTHER),
    "zip of a checkpoint": (lambda good: zipped({"weights.pt": good}), OTHER),
    "TorchScript": (lambda good: zipped(SCRIPTED), OTHER),
    "plain pickle": (lambda good: pickle.dumps({"format": 2}), OTHER),
    "pickle nested deeply": (lambda good: b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", OTHER),
    "a key whose hash takes for ever": (lambda good: repacked(good, "/data.pkl", lambda _: ENDLESS), OTHER),
    "old format, such a key": (lambda good: legacy({}).replace(b"\x80\x02}q\x00.", ENDLESS), OTHER),
    "pickle with code": (lambda good: pickle.dumps(RUNS, protocol=2), CODE),
    "old format, code": (lambda good: legacy(RUNS), CODE),
    "authors' layout, code beside weights": (lambda good: legacy({"model1": {"a": torch.ones(2)}, "b": Runs()}), CODE),
    "archive with code": (lambda good: repacked(good, "/data.pkl", lambda _: pickle.dumps(RUNS, 2)), CODE),
    "old format, a list": (lambda good: legacy([1, 2]), "holds a list"),
    "old format, cut": (lambda good: legacy({"format": 2, "modules": {"coarse": torch.ones(99)}})[:-200], OTHER),
    "archive of an unknown version": (lambda good: repacked(good, "/version", lambda _: b"999\n"), OTHER),
    "a storage too short": (lambda good: repacked(good, "/data/0", lambda _: b"1234"), OTHER),
    "archive that unpacks to far more": (lambda good: repacked(good, "/data/0", lambda _: bytes(40 << 20), ZIP), FAR),
    "cut in the middle": (lambda good: good[: len(good) // 2], OTHER),
    "a bit turned over in its middle": (lambda good: flipped(good, len(good) // 2), OTHER),
    "a bit turned over in its table": (lambda good: flipped(good, len(good) * 9999 // 10_000), OTHER),
}


@pytest.mark.parametrize("kind", BYTES)
def test_damaged_and_foreign_files_are_refused_in_one_line_and_never_run(kind, model, tmp_path, monkeypatch):
    change, message = BYTES[kind]
    path = save_parser(tmp_path / "some.pt", model, "stage1", ("coarse",))
    path.write_bytes(change(path.read_bytes()))
    monkeypatch.chdir(tmp_path)  # where the code in it would make a folder
    assert message in refused(path)
    assert names(tmp_path) == ["some.pt"]


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "odd.pt")
    assert "is a pipe or a device, not a file" in refused(tmp_path / "odd.pt")


def nested(times: int) -> list[Any]:
    """A list of as many lists in one another, two in each; of none: one that holds itself."""
    made: list[Any] = []
    if not times:
        made.append(made)
    for _ in range(times):
        made = [made or 1, made or 1]
    return made


def coarse(change: Callable[[Any], Any], key: str = "head.2.weight") -> Callable[[State], State]:
    """Changes some weights."""

    def apply(state: State) -> State:
        weights = {**state["modules"]["coarse"], key: change(state["modules"]["coarse"][key])}
        return {**state, "modules": {**state["modules"], "coarse": weights}}

    return apply


def changed(message: str, inner: str = "", **values: Any) -> dict[str, tuple[Callable[[State], Any], str]]:
    """A case for each value that an entry may be changed to. inner: the entry is one of this entry's."""

    def change(key: str, value: Any) -> Callable[[State], State]:
        return lambda state: {**state, inner: {**state[inner], key: value}} if inner else {**state, key: value}

    cases = [(key, value) for key, several in values.items() for value in several]
    return {f"{key} {n}: {message}": (change(key, value), message) for n, (key, value) in enumerate(cases)}


NAN, ONES = float("nan"), torch.ones(2)
DENSE = "is not a dense tensor of real numbers"
STATES: dict[str, tuple[Callable[[State], Any], str]] = {
    **changed("is not a checkpoint of this repository", format=("2", 2.0, 0, 3, 10**30, True, ONES, None, [2])),
    **changed("comes from stage", stage=(None, ONES)),
    **changed("holds an unknown parser", parser=(None, "other\ny", ["stn_icnn"], ONES)),
    **changed("label set", labels=(7, "other", None, ONES)),
    **changed("lacks its config or weights", config=(None, [], ONES, {"other": 1}, {1: 2}), modules=(None, [], ONES)),
    "networks without names": (lambda state: {**state, "modules": {1: {}}}, "its networks' names are not plain text"),
    **changed(
        "config",
        inner="config",
        crop_size=(81.0, "81", -5, 0, 10**30, NAN, None, ONES, [17]),
        coarse_size=(10**12, True),
        window_margin=(NAN, float("inf"), 10**400),
        localizer=(["paper"], "other"),
        paste=([], "x" * 5000),
        canvas=(1e308,),
    ),
    "a list": (lambda state: [state], "holds a list"),
    "a tensor": (lambda state: ONES, "holds a Tensor"),
    "an empty dict": (lambda state: {}, "not a checkpoint"),
    **changed("an entry of extra has no plain name", extra=({(1, 2): 3}, {"a" * 1000: 3})),
    **changed("nested deeper", extra=(nested(0),)),
    **changed("holds more values", extra=(nested(12) * 10,)),
    **changed("extra is a ", extra=(1j, {1}, ONES.untyped_storage())),
    "sparse": (coarse(lambda w: w.to_sparse()), DENSE),
    "nested": (coarse(lambda w: torch.nested.nested_tensor([w[0], w[1]])), DENSE),
    "without data": (coarse(lambda w: w.to("meta")), DENSE),
    "complex": (coarse(lambda w: w.to(torch.complex64)), DENSE),
    "one number shown as 4 TB": (coarse(lambda w: torch.zeros(1).expand(10**6, 10**6)), "far more than the file's"),
    "whole numbers": (coarse(lambda w: w.long()), "holds int64, this model needs float32"),
    "NaN": (coarse(lambda w: w.clone().fill_(NAN)), "holds NaN or infinity"),
    "beyond float32": (coarse(lambda w: w.double().fill_(1e300)), "holds NaN or infinity"),
    "half of the channels": (coarse(lambda w: w[: len(w) // 2].clone()), "another class count"),
    "a network without weights": (lambda state: {**state, "modules": {name: {} for name in state["modules"]}}, "lacks"),
    **changed("not a state dict", inner="modules", coarse=(None,)),
    "a lost weight": (lambda state: {**state, "modules": {"coarse": {"a": ONES}}}, "architecture"),
    "a name that is a number": (lambda state: {**state, "modules": {"coarse": {7: ONES}}}, "lacks"),
    "EAGRNet's": (lambda state: {"edge_layer.x": ONES, "layer6.conv4.bias": torch.tensor(1.0)}, "has 0 classes"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STATES)
def test_a_checkpoint_of_absurd_values_is_refused_in_one_line(kind, model, tmp_path):
    change, message = STATES[kind]
    path = tmp_path / "odd.pt"
    state = {"format": 2, **state_of(model, "stage1", "coarse")}
    torch.save(change(state), path)
    before = {key: value.clone() for key, value in model.coarse.state_dict().items()}
    with pytest.raises(InputError, match=rf"^\S*odd\.pt.*{re.escape(message)}.*$") as caught:
        model.load(read_weights(path), ("coarse",))
    line = str(caught.value)
    assert line.isprintable()
    assert len(line.replace(str(path), "")) < 300
    assert all(torch.equal(before[key], value) for key, value in model.coarse.state_dict().items())


def test_without_a_localizer_the_part_networks_decide_about_the_windows(model, tmp_path):
    following = replace(model.config, window_margin=1.6, window_aspect=0.5)
    coarse = save_parser(tmp_path / "stage1.pt", model, "stage1", ("coarse",))
    parts = save(tmp_path / "stage2.pt", model, following, "parts")
    for paths in ([coarse, parts], [parts, coarse]):
        assert load_parser(paths, "baseline").config.windows == following.windows


def test_weights_that_do_not_fit_are_refused_by_what_they_lack(model, whole, tmp_path):
    path = save_parser(tmp_path / "stage2.pt", model, "stage2", ("parts",))
    with refuses("stage2.pt comes from stage 'stage2'; needed here: stage1"):
        checkpoint.load(path, ("stage1",))
    with refuses("stage2.pt holds parts, but its coarse weights are needed here"):
        model.load(read_weights(path), ("coarse",))
    with refuses("no coarse or localizer weights"):
        load_parser([path])
    checkpoint.save(whole, {**checkpoint.load(whole), "labels": "celebamask"})
    with refuses("whole.pt is of the label set celebamask, not nine"):
        load_parser([whole])


def test_each_network_s_checkpoint_decides_about_its_widths_and_older_ones_have_the_paper_s(tmp_path):
    coarse, parts = {"coarse_channels": (4, 6, 8, 10)}, {"part_channels": (5, 7, 9, 11)}
    other = STNiCNN(replace(CONFIG, **coarse, **parts))
    cropper = save(tmp_path / "cropper.pt", other, replace(CONFIG, **coarse), "coarse", "localizer")
    stage2 = save(tmp_path / "stage2.pt", other, replace(CONFIG, **parts), "parts")
    assert load_parser([cropper, stage2]).config == replace(CONFIG, **coarse, **parts)
    torch.save(in_format_1(checkpoint.read_tensors(stage2)), stage2)
    assert read_weights(stage2).config == CONFIG
    with refuses("stage2.pt: parts.nets.brows.", "is (5,", "this model needs (8,", "or other widths?"):
        load_parser([cropper, stage2])
    own = STNiCNN.from_weights([read_weights(cropper), read_weights(stage2)], **parts)
    assert own.config == replace(CONFIG, **coarse, **parts)


def test_an_older_run_may_lack_fields_of_its_config_but_no_checkpoint_that_it_started_from():
    assert not distributed.difference({"config": {"a": 1}}, {"config": {"a": 1, "b": 2}})
    assert distributed.difference({"config": {"a": 1}}, {"config": {"a": 2, "b": 2}}) == "config.a 1, not 2"
    assert distributed.difference({"started_from": {}}, {"started_from": {"init_from": "b"}})


def test_a_checkpoint_that_cannot_be_saved_is_one_line_and_the_old_one_stays_whole_without_litter(model, whole):
    before, folder = whole.read_bytes(), whole.parent
    with little_room(100_000), refuses("whole.pt could not be saved (", "); an older checkpoint there is untouched"):
        checkpoint.save(whole, state_of(model, "stage1", "coarse"))
    assert whole.read_bytes() == before
    (folder / "folder.pt").mkdir()
    for name, why in (("none/last.pt", "No such file or directory"), ("folder.pt", "Is a directory")):
        with refuses(f"{name} could not be saved ({why})"):
            checkpoint.save(folder / name, {"stage": "stage1"})
    assert names(folder) == ["folder.pt", "whole.pt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("DataLoader worker (pid 7) is killed")])
def test_what_ends_a_run_while_it_saves_is_not_reported_as_a_full_disk(error, monkeypatch, tmp_path):
    class Failing(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell():
                raise error
            return super().write(data)

    monkeypatch.setattr(checkpoint.files, "write_whole", lambda path, write: write(Failing()))
    with pytest.raises(type(error)) as caught:
        checkpoint.save(tmp_path / "last.pt", {"stage": "stage1", "weights": torch.zeros(9)})
    assert caught.value is error


def in_format_1(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as it was written before it named its parser, its labels, the files that it started from and the
    networks' widths."""
    later = ("format", "parser", "labels", "started_from", "config")
    config = {key: value for key, value in state.get("config", {}).items() if "channels" not in key}
    return {"format": 1, "config": config, **{key: value for key, value in state.items() if key not in later}}


def test_a_checkpoint_of_format_1_is_an_stn_icnn_of_nine_labels(model, whole):
    torch.save(in_format_1(checkpoint.read_tensors(whole)), whole)
    parser = load_parser([whole])
    assert (parser.kind, parser.labels, parser.config) == ("stn_icnn", NINE, CONFIG)
    pairs = zip(parser.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_run_of_format_1_resumes_bit_for_bit(tiny_fit, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tiny_fit(whole)
    fit_until("best.pt", lambda: tiny_fit(broken))
    for name in ("last.pt", "best.pt"):
        torch.save(in_format_1(checkpoint.read_tensors(broken / name)), broken / name)
    tiny_fit(broken, resume=True)
    assert_same_run(broken, whole)


@pytest.fixture(scope="module")
def cropper_config(helen_root, tmp_path_factory) -> Callable[..., STNiCNNConfig]:
    """Of the cropper that our own recipe trains from some checkpoints; what options set is given by keyword."""
    data = FaceData("helen", helen_root, cache=tmp_path_factory.mktemp("cache"))

    def build(start: dict[str, Path], **options: Any) -> STNiCNNConfig:
        machine, folder = Machine(torch.device("cpu")), Path("none")
        plan = Plan(data, train_cropper.RECIPES.best, machine, folder, start=start, model=options)
        return train_cropper.build(plan).model.config

    return build


def save(path: Path, model: STNiCNN, config: STNiCNNConfig, *networks: str) -> Path:
    """The model's networks, as if they had been trained with this config."""
    return save_parser(path, model, "cropper", networks or ("coarse", "localizer"), config=asdict(config))


FURTHER = {
    "the authors' canvas": replace(CONFIG, frame="canvas", canvas=256),
    "windows of 81 pixels": replace(CONFIG, crop_size=81),
    "square windows that follow the part": replace(CONFIG, window_margin=2.0),
    "oblong windows of another margin": replace(CONFIG, window_margin=1.8, window_aspect=0.7),
}


@pytest.mark.parametrize("kind", FURTHER)
def test_a_localizer_that_is_trained_further_keeps_its_frame_and_its_windows(kind, model, cropper_config, tmp_path):
    config = FURTHER[kind]
    held = save(tmp_path / "held.pt", model, config)
    start = {"init_from": held}
    if "windows" in kind:
        start = {"init_from": save(tmp_path / "stage1.pt", model, CONFIG, "coarse"), "init_from_cropper": held}
    assert cropper_config(start) == replace(config, paste="bilinear")
    if config.window_margin:  # another crop size only where windows have no fixed pixels
        assert cropper_config(start, crop_size=33).crop_size == 33
        return
    with refuses(f"--crop-size 35: the localizer of {held} places windows of {config.crop_size} "):
        cropper_config(start, crop_size=35)


@pytest.mark.parametrize("networks", [("coarse",), ("coarse", "localizer")])
def test_a_new_localizer_takes_the_recipe_s_windows(networks, model, cropper_config, tmp_path):
    start = save(tmp_path / "start.pt", model, replace(CONFIG, frame="canvas", canvas=256, crop_size=127), *networks)
    other = {"localizer": "resnet18"} if "localizer" in networks else {}  # not the one that the file holds
    expected = STNiCNNConfig(coarse_size=32, **train_cropper.RECIPES.best.model, **other)
    assert cropper_config({"init_from": start}, **other) == expected
