"""Checkpoint files: whole or not at all, never run, and refused in one line where they do not fit."""

import io
import os
import pickle
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train_cropper
import train_stage1
from data.batch import Batch
from data.labels import NINE
from data.source import FaceData
from data.view import Augmentation, View
from models.loading import KINDS, load_parser, read_weights
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.test_resume import assert_same, interrupt, log_of
from tests.tiny_parser import TinyParser
from training.task import Plan
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import Machine, run_main

CONFIG = STNiCNNConfig(coarse_size=32, crop_size=33)


@pytest.fixture(scope="module")
def model() -> STNiCNN:
    torch.manual_seed(0)
    return STNiCNN(CONFIG)


def state_of(model: STNiCNN, stage: str, *names: str) -> dict[str, Any]:
    modules = {name: getattr(model, name).state_dict() for name in names}
    about = {"parser": model.kind, "labels": model.labels.name, "config": vars(model.config)}
    return {"stage": stage, **about, "modules": modules}


@pytest.fixture
def whole(model: STNiCNN, tmp_path: Path) -> Path:
    """An end-to-end checkpoint."""
    checkpoint.save(tmp_path / "whole.pt", state_of(model, "end2end", "coarse", "localizer", "parts"))
    return tmp_path / "whole.pt"


def refused(path: Path) -> str:
    """The one line that every reader of checkpoints gives."""
    lines = set()
    for read in (checkpoint.load, read_weights, lambda path: load_parser([path])):
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
    again = load_parser([whole])
    assert again.config == CONFIG
    assert not again.training
    held = again.state_dict()
    assert all(torch.equal(held[key], value) for key, value in model.state_dict().items())
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
    assert ("damaged or not a checkpoint" if share else "damaged, it is empty") in refused(whole)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    path.write_bytes(b"\0\1 nobody knows")
    assert "damaged or not a checkpoint" in refused(path)
    torch.save([1, 2], path)
    assert "holds a list" in refused(path)
    torch.save({"backbone.weight": torch.zeros(3)}, path)
    assert "is not a checkpoint of this repository" in refused(path)
    for number, told in ((0, "0"), (3, "3"), ("2", "'2'"), (True, "True"), (2.0, "2.0"), (torch.ones(2), "a Tensor")):
        torch.save({"format": number, "stage": "stage1"}, path)
        assert f"format {told})" in refused(path)


FOREIGN = {
    "a text": b"These are no weights.\n" * 500 + "–".encode(),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
    "a JPEG picture": b"\xff\xd8\xff\xe0 a photo",
    "a PNG picture": b"\x89PNG\r\n\x1a\n",
    "a WebP picture": b"RIFF\x10\0\0\0WEBPVP8 ",
    "a safetensors file": b"\x02\0\0\0\0\0\0\0{}",
    "a gzip archive": b"\x1f\x8b\x08\0",
    "a tar archive": b"weights.pt".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"),
    "a zip archive": {"readme.txt": b"no weights", "weights.pt": b"weights"},
    "a TorchScript archive": {"m/data.pkl": b"\x80\x02}.", "m/constants.pkl": b"\x80\x02).", "m/version": b"3"},
    "a program of torch.export": {"m/archive_format": b"pt2"},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_named(kind: str, tmp_path: Path) -> None:
    path, content = tmp_path / "some.safetensors", FOREIGN[kind]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, entry in content.items():
                archive.writestr(name, entry)
    line = refused(path)
    assert f"{path}: this is {kind}" in line
    assert "name one that training wrote" in line


def repacked(path: Path, name: str, change: Callable[[bytes], bytes], how: int) -> None:
    """Write the zip archive again with another content of the entry whose name ends so."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w", how) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, change(content) if entry.endswith(name) else content)


def test_a_file_that_would_unpack_to_far_more_than_its_size_is_not_unpacked(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repacked(whole, "/data/0", lambda content: content + bytes(40 << 20), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("it was unpacked"))
    assert "far more than a checkpoint of its size" in refused(whole)


def test_flipped_bits_are_found(whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 1
    whole.write_bytes(data)
    assert "damaged" in refused(whole)


def test_a_storage_that_lacks_bytes_is_refused(whole: Path) -> None:
    repacked(whole, "/data/0", lambda content: content[:8], zipfile.ZIP_STORED)
    assert "damaged" in refused(whole)


STRANGE: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "sparse": (lambda w: w.to_sparse(), "is a sparse_coo, cpu tensor, which no checkpoint holds"),
    "quantised": (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "is a qint8 tensor"),
    "nested": (lambda w: torch.nested.nested_tensor([w[0], w[1]]), "is a nested tensor"),
    "without data": (lambda w: w.to("meta"), "is a strided, meta tensor"),
    "complex": (lambda w: w.to(torch.complex64), "is a complex64 tensor"),
    "expanded": (lambda w: torch.zeros(1).expand(10**6, 10**6), "unpacks to far more than the file's size"),
    "a storage": (lambda w: w.untyped_storage(), "is an? .*torage"),
    "complex number": (lambda w: 1j, "is a complex, which"),
    "a set": (lambda w: {1}, "is a set, which"),
    "whole numbers": (lambda w: w.long(), "holds int64, this model needs float32"),
    "booleans": (lambda w: w > 0, "holds bool, this model needs float32"),
    "NaN": (lambda w: w.clone().fill_(torch.nan), "holds NaN or infinity"),
    "infinity in half precision": (lambda w: w.half().fill_(-torch.inf), "holds NaN or infinity"),
    "beyond float32": (lambda w: w.double().fill_(1e300), "holds NaN or infinity"),
    "a list": (lambda w: w.tolist(), "its coarse weights are no state dict of tensors"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STRANGE)
def test_weights_that_are_no_dense_finite_floats_are_refused_by_name(kind: str, model: STNiCNN, tmp_path: Path) -> None:
    change, said = STRANGE[kind]
    state = state_of(model, "stage1", "coarse")
    last = "head.2.weight"
    weights = {**state["modules"]["coarse"], last: change(state["modules"]["coarse"][last])}
    checkpoint.save(tmp_path / "odd.pt", {**state, "modules": {"coarse": weights}})
    with pytest.raises(InputError, match=said) as caught:
        model.load(read_weights(tmp_path / "odd.pt"), ("coarse",))
    line = str(caught.value)
    assert "\n" not in line
    assert str(tmp_path / "odd.pt") in line
    assert kind == "a list" or f"coarse.{last}" in line


def endless() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def doubling(times: int) -> list[Any]:
    made: list[Any] = [1]
    for _ in range(times):
        made = [made, made]
    return made


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (endless(), "nested deeper"),
        (doubling(12) * 10, "holds more values"),
        ({(1, 2): 3}, "an entry of extra has no plain name"),
        ({"a\nb": 3}, "an entry of extra has no plain name"),
        ({"a" * 1000: 3}, "an entry of extra has no plain name"),
    ],
)
def test_values_without_end_and_names_that_cannot_be_shown_are_refused(value: Any, said: str, whole: Path) -> None:
    torch.save({**checkpoint.read_tensors(whole), "extra": value}, whole)
    assert said in refused(whole)


def test_dicts_and_tensors_that_are_more_than_they_seem_become_plain_or_are_refused(
    model: STNiCNN, tmp_path: Path
) -> None:
    state = state_of(model, "stage1", "coarse")
    path = tmp_path / "odd.pt"
    state["modules"]["coarse"].keys = 5  # an attribute, which OrderedDict keeps in files
    checkpoint.save(path, state)
    assert type(checkpoint.load(path)["modules"]["coarse"]) is dict
    model.load(read_weights(path), ("coarse",))
    tensor = torch.nn.Parameter(torch.ones(2))
    tensor.numel = 5  # type: ignore[method-assign, assignment]
    checkpoint.save(path, {**state, "extra": tensor})
    assert "extra is a tensor of another class" in refused(path)


def test_what_torch_warns_of_is_not_shown(whole: Path, recwarn: pytest.WarningsRecorder) -> None:
    repacked(whole, "/data.pkl", lambda content: content.replace(b"\x80\x02", b"\x80\x03", 1), zipfile.ZIP_STORED)
    checkpoint.load(whole)
    assert not recwarn


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "no such checkpoint file" in refused(tmp_path / "none.pt")
    assert "is a folder, not a file: name a checkpoint file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is a pipe, not a file" in refused(tmp_path / "pipe.pt")


def test_without_a_localizer_the_part_networks_decide_about_the_windows(model: STNiCNN, tmp_path: Path) -> None:
    coarse, parts = tmp_path / "stage1.pt", tmp_path / "stage2.pt"
    following = replace(model.config, window_margin=1.6, window_aspect=0.5)
    checkpoint.save(coarse, state_of(model, "stage1", "coarse"))
    checkpoint.save(parts, {**state_of(model, "stage2", "parts"), "config": asdict(following)})
    for paths in ([coarse, parts], [parts, coarse]):
        assert load_parser(paths, "baseline").config.windows == following.windows


@pytest.mark.parametrize(
    "config",
    [
        None,
        {"coarse_size": "large"},
        {"coarse_size": 1},
        {"coarse_size": True},
        {"crop_size": 81.0},
        {"crop_size": 10**30},
        {"crop_size": torch.tensor([81, 81])},
        {"canvas": float("nan")},
        {"window_margin": float("nan")},
        {"window_margin": 10**400},
        {"window_aspect": None},
        {"localizer": "huge"},
        {"localizer": ["paper"]},
        {"paste": "x" * 5000},
        {"new_field": 1},
        {1: 2},
    ],
)
def test_an_unusable_config_is_refused(config: Any, tmp_path: Path) -> None:
    about = {"stage": "stage1", "parser": "stn_icnn", "labels": "nine"}
    checkpoint.save(tmp_path / "odd.pt", {**about, "config": config, "modules": {}})
    with pytest.raises(InputError, match=r"odd.pt.*config") as caught:
        read_weights(tmp_path / "odd.pt")
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 200
    assert "\n" not in str(caught.value)


def test_a_config_that_checks_nothing_itself_is_checked_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, TinyParser.kind, TinyParser)
    about = {"stage": "tiny", "parser": "tiny", "labels": "celebamask", "modules": {}}
    checkpoint.save(tmp_path / "odd.pt", {**about, "config": {"size": 32.0}})
    with pytest.raises(InputError, match=r"size must be of type int, not 32\.0"):
        read_weights(tmp_path / "odd.pt")


def test_weights_of_other_labels_are_refused(model: STNiCNN, whole: Path) -> None:
    checkpoint.save(whole, {**checkpoint.load(whole), "labels": "celebamask"})
    with pytest.raises(InputError, match=r"whole.pt is of the label set celebamask, not nine"):
        load_parser([whole])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"parser": "hourglass"}, "holds an unknown parser 'hourglass': update this repository"),
        ({"parser": ["stn_icnn"]}, "holds an unknown parser"),
        ({"labels": "dogs"}, "unknown label set 'dogs'"),
        ({"labels": torch.ones(2)}, "unknown label set 'a Tensor'"),
        ({"modules": {1: {}}}, "its networks have no plain names"),
        ({"stage": None}, "comes from stage None"),
    ],
)
def test_an_unknown_parser_or_label_set_is_refused(changed: dict[str, Any], said: str, whole: Path) -> None:
    checkpoint.save(whole, {**checkpoint.load(whole), **changed})
    with pytest.raises(InputError, match=said) as caught:
        load_parser([whole])
    assert str(whole) in str(caught.value)


def test_a_checkpoint_of_another_stage_names_what_it_lacks(model: STNiCNN, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "stage2.pt", state_of(model, "stage2", "parts"))
    with pytest.raises(InputError, match=r"stage2.pt comes from stage 'stage2'; needed here: stage1"):
        checkpoint.load(tmp_path / "stage2.pt", ("stage1",))
    with pytest.raises(InputError, match=r"stage2.pt holds parts, but its coarse weights are needed here"):
        model.load(read_weights(tmp_path / "stage2.pt"), ("coarse",))
    with pytest.raises(InputError, match="no coarse or localizer weights"):
        load_parser([tmp_path / "stage2.pt"])


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
        model.load(read_weights(tmp_path / "c.pt"), ("coarse",))
    renamed = {("new." + key if key == last else key): value for key, value in other.items()}
    checkpoint.save(tmp_path / "a.pt", {**state, "modules": {"coarse": renamed}})
    with pytest.raises(
        InputError, match=r"a.pt: .*another architecture \(lacks head.2.weight, has an unknown new.head"
    ):
        model.load(read_weights(tmp_path / "a.pt"), ("coarse",))
    resnet = STNiCNN(STNiCNNConfig(coarse_size=32, localizer="resnet18"))
    checkpoint.save(tmp_path / "r.pt", state_of(resnet, "cropper", "coarse", "localizer"))
    with pytest.raises(InputError, match=r"r.pt: its localizer weights are of another architecture"):
        model.load(read_weights(tmp_path / "r.pt"), ("localizer",))


def test_a_refused_module_leaves_the_model_as_it_was(model: STNiCNN, tmp_path: Path) -> None:
    state = state_of(STNiCNN(CONFIG), "stage1", "coarse")
    state["modules"]["coarse"]["head.2.bias"] = torch.zeros(4)
    checkpoint.save(tmp_path / "c.pt", state)
    before = {key: value.clone() for key, value in model.coarse.state_dict().items()}
    with pytest.raises(InputError):
        model.load(read_weights(tmp_path / "c.pt"), ("coarse",))
    assert all(torch.equal(before[key], value) for key, value in model.coarse.state_dict().items())


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """Lets this process write files of so many bytes at most, as a disk that fills up does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_checkpoint_whole_and_no_litter(model: STNiCNN, whole: Path) -> None:
    before = whole.read_bytes()
    line = r"whole.pt could not be saved \(.*\); an older checkpoint there is untouched"
    with little_room(100_000), pytest.raises(InputError, match=line):
        checkpoint.save(whole, state_of(model, "stage1", "coarse"))
    assert whole.read_bytes() == before
    assert [path.name for path in whole.parent.iterdir()] == ["whole.pt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("DataLoader worker (pid 7) is killed")])
def test_what_ends_a_run_while_it_saves_is_not_told_as_a_full_disk(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Failing(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell():
                raise error
            return super().write(data)

    monkeypatch.setattr(checkpoint.files, "write_whole", lambda path, write: write(Failing()))
    with pytest.raises(type(error)) as caught:
        checkpoint.save(tmp_path / "last.pt", {"stage": "stage1", "weights": torch.zeros(9)})
    assert caught.value is error


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not be saved \(No such file or directory\)"):
        checkpoint.save(tmp_path / "none" / "last.pt", {"stage": "stage1"})
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match=r"folder.pt could not be saved \(Is a directory\)"):
        checkpoint.save(tmp_path / "folder.pt", {"stage": "stage1"})
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt"]


def in_format_1(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as it was written before it named its parser, its labels and the files that it started from."""
    later = ("format", "parser", "labels", "started_from")
    return {"format": 1, **{key: value for key, value in state.items() if key not in later}}


def test_a_checkpoint_of_format_1_is_an_stn_icnn_of_nine_labels(whole: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.pt"
    torch.save(in_format_1(checkpoint.read_tensors(whole)), old)
    weights = read_weights(old)
    assert (weights.kind, weights.labels, weights.config) == ("stn_icnn", NINE, CONFIG)
    photos = torch.randint(256, (1, 50, 40, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(load_parser([old])(photos), load_parser([whole])(photos))


def test_a_run_of_format_1_resumes_bit_for_bit(
    tiny_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--recipe", "best", "--batch-size", "2", "--max-images", "2", "--coarse-size", "32", "--epochs", "2"]
    options = [*tiny_options, *small, "--run-dir"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_stage1.main([*options, str(whole)]) == 0
    view = Augmentation.view

    def view_or_stop(augmentation: Augmentation, batch: Batch) -> View:
        return interrupt() if batch.keys_B3[0, 1] == 1 else view(augmentation, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Augmentation, "view", view_or_stop)
        assert run_main(lambda: train_stage1.main([*options, str(broken)])) == 130
    for name in ("last.pt", "best.pt"):
        torch.save(in_format_1(checkpoint.read_tensors(broken / name)), broken / name)
    assert train_stage1.main([*options, str(broken), "--resume"]) == 0
    assert_same(*(checkpoint.read_tensors(run_dir / "last.pt") for run_dir in (whole, broken)), "last.pt")
    assert log_of(broken) == log_of(whole)


@pytest.fixture(scope="module")
def cropper_config(helen_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., STNiCNNConfig]:
    """Of the cropper that our own recipe trains from some checkpoints; what options set is given by keyword."""
    data = FaceData("helen", helen_root, cache=tmp_path_factory.mktemp("cache"))

    def build(start: dict[str, Path], **options: Any) -> STNiCNNConfig:
        machine, folder = Machine(torch.device("cpu")), Path("none")
        plan = Plan(data, train_cropper.RECIPES.best, machine, folder, start=start, model=options)
        return train_cropper.build(plan).model.config

    return build


def save(path: Path, config: STNiCNNConfig, *names: str) -> Path:
    """A checkpoint with random weights."""
    checkpoint.save(path, state_of(STNiCNN(config), "cropper", *names))
    return path


FURTHER = {
    "the authors' canvas": replace(CONFIG, frame="canvas", canvas=256),
    "windows of 81 pixels": replace(CONFIG, crop_size=81),
    "square windows that follow the part": replace(CONFIG, window_margin=2.0),
    "oblong windows of another margin": replace(CONFIG, window_margin=1.8, window_aspect=0.7),
}


@pytest.mark.parametrize("config", FURTHER.values(), ids=FURTHER)
def test_a_localizer_that_is_trained_further_keeps_its_frame_and_its_windows(
    config: STNiCNNConfig, cropper_config: Callable[..., STNiCNNConfig], model: STNiCNN, tmp_path: Path
) -> None:
    held = save(tmp_path / "held.pt", config, "coarse", "localizer")
    assert cropper_config({"init_from": held}) == replace(config, paste="bilinear")
    checkpoint.save(tmp_path / "stage1.pt", state_of(model, "stage1", "coarse"))
    starts = {"init_from": tmp_path / "stage1.pt", "init_from_cropper": held}
    assert cropper_config(starts) == replace(config, paste="bilinear")


def test_another_crop_size_is_one_line_where_windows_have_fixed_pixels_and_fine_where_they_follow_the_part(
    cropper_config: Callable[..., STNiCNNConfig], tmp_path: Path
) -> None:
    fixed = save(tmp_path / "fixed.pt", CONFIG, "coarse", "localizer")
    assert cropper_config({"init_from": fixed}, crop_size=33).crop_size == 33
    with pytest.raises(InputError, match=r"^--crop-size 81: the localizer of \S+fixed.pt places windows of 33 .*$"):
        cropper_config({"init_from": fixed}, crop_size=81)
    following = save(tmp_path / "following.pt", FURTHER["oblong windows of another margin"], "coarse", "localizer")
    assert cropper_config({"init_from": following}, crop_size=81).crop_size == 81


@pytest.mark.parametrize("networks", [("coarse",), ("coarse", "localizer")])
def test_a_new_localizer_takes_the_recipe_s_windows(
    networks: tuple[str, ...], cropper_config: Callable[..., STNiCNNConfig], tmp_path: Path
) -> None:
    start = save(tmp_path / "start.pt", replace(CONFIG, frame="canvas", canvas=256, crop_size=127), *networks)
    other = {"localizer": "resnet18"} if "localizer" in networks else {}  # not the one that the file holds
    expected = STNiCNNConfig(coarse_size=32, **train_cropper.RECIPES.best.model, **other)
    assert cropper_config({"init_from": start}, **other) == expected
