"""The exported files: the model's own labels, for photos of any size and number."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.labels import CELEBAMASK, NINE
from faces.align import frame_of
from models.ensemble import EnsembleParser
from models.fused import FusedParser
from models.loading import load_parser
from models.stn_icnn.icnn import ICNNConfig
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.damage import refuses
from tests.fixtures import lively, names, save_parser
from tests.tiny_parser import TinyConfig, TinyParser
from tools import export
from tools.benchmark import __main__ as benchmark
from tools.benchmark import inference

TINY = STNiCNNConfig(coarse_size=32, crop_size=17, coarse_channels=(4,) * 4, part_channels=(4,) * 4)
FRAMED = replace(TINY, coarse_size=128, localizer="released", window_margin=1.6, paste="bilinear")


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    """Networks of one interlink instead of three: the conversion takes as long as there are operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ICNNConfig, "__init__", partialmethod(ICNNConfig.__init__, interlinks=1))
        yield


class Exported(NamedTuple):
    """folder: with model.pt, faces.onnx and faces.pt2. functions: what the script loaded again from both files.
    metadata: of the .pt2 file."""

    folder: Path
    functions: list[Callable[..., Tensor]]
    metadata: dict[str, str]


def export_of(folder: Path, model: STNiCNN, *options: str) -> Exported:
    """One run of the script, which takes half a minute."""
    weights = save_parser(folder / "model.pt", model)
    functions, held, agreement = [], {"metadata.json": ""}, export.agreement
    files = ["--onnx", str(folder / "faces.onnx"), "--program", str(folder / "faces.pt2")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "load_program", lambda path: torch.export.load(path, extra_files=held).module())
        patch.setattr(export, "agreement", lambda *args: functions.append(args[0]) or agreement(*args))
        assert export.main([*options, "--checkpoint", str(weights), *files]) == 0
    assert names(folder) == ["faces.onnx", "faces.pt2", "model.pt"]
    return Exported(folder, functions, json.loads(held["metadata.json"]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    return export_of(tmp_path_factory.mktemp("plain"), lively(STNiCNN(TINY)))


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    model = STNiCNN(FRAMED)
    with torch.no_grad():  # lively ones would tell OpenCV's samples of a turned face from the graph's
        for net in (model.coarse, *model.parts.nets.values()):
            net.head[2].weight *= 20
            net.head[2].bias.zero_()
    return export_of(tmp_path_factory.mktemp("framed"), model.eval(), "--framed")


def compare(functions, labeller, inputs) -> None:
    """The functions label each of the inputs as the labeller does."""
    seen = set()
    with torch.inference_mode():
        for given in inputs:
            expected_BHW = labeller(*given)
            for function in functions:
                labels_BHW = function(*given)
                assert (labels_BHW.dtype, labels_BHW.shape) == (torch.uint8, expected_BHW.shape)
                assert (labels_BHW == expected_BHW).float().mean() >= 0.999
            seen |= set(expected_BHW.unique().tolist())
    assert len(seen) > 3


def photos() -> Iterator[tuple[Tensor]]:
    """Photos of coloured blocks, of several sizes and numbers."""
    torch.manual_seed(1)
    for count, height, width in ((1, 300, 280), (1, 120, 90), (3, 90, 400), (2, 256, 256), (1, 1, 40)):
        blocks_BHW3 = torch.randint(256, (count, 6, 6, 3), dtype=torch.uint8)
        yield (blocks_BHW3[:, torch.arange(height) * 6 // height][:, :, torch.arange(width) * 6 // width],)


def framed_faces() -> Iterator[tuple[Tensor, Tensor]]:
    """Photos with one to three turned faces; the last has a single row."""
    for degrees, height, width in (((30, -100, 180), 120, 400), ((10, 60), 300, 280), ((0,), 90, 100)):
        photo, frames = export.turned_faces(degrees, height, width)
        yield torch.from_numpy(photo)[None], torch.from_numpy(np.stack(frames)).float()
    yield torch.from_numpy(photo[40:41])[None], torch.from_numpy(np.stack(frames)).float()


SIDES = ["height", "width"]
KINDS = {
    "plain": (export.Labeller, photos, [("photos", ["batch", *SIDES, 3]), ("labels", ["batch", *SIDES])]),
    "framed": (
        export.FramedLabeller,
        framed_faces,
        [("photos", [1, *SIDES, 3]), ("frames", ["faces", 2, 3]), ("labels", ["faces", *SIDES])],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_files_label_photos_of_any_size_and_number_as_the_model_does(kind, request):
    (folder, functions, metadata), (build, inputs, described) = request.getfixturevalue(kind), KINDS[kind]
    model = load_parser([folder / "model.pt"])
    model.fold()
    assert len(functions) == 2
    compare(functions, build(model), inputs())
    session = onnxruntime.InferenceSession(folder / "faces.onnx")
    assert session.get_modelmeta().custom_metadata_map == metadata
    assert json.loads(metadata["labels"]) == list(model.labels.names)
    assert [(value.name, value.shape) for value in (*session.get_inputs(), *session.get_outputs())] == described


TRACED = {
    "authors' canvas, even crops": lambda: STNiCNN(
        replace(TINY, localizer="resnet18", frame="canvas", canvas=256, crop_size=16, paste="bilinear")
    ),
    "one network, other labels": lambda: TinyParser(TinyConfig(), CELEBAMASK),
}


@pytest.mark.parametrize("kind", TRACED)
def test_other_parsers_are_traced_too(kind):
    model = lively(TRACED[kind]())
    model.fold()
    labeller = export.Labeller(model)
    compare([export.trace(labeller).module()], labeller, photos())


def test_several_parsers_become_one_graph(tmp_path):
    tiny = [lively(TinyParser(TinyConfig(), labels)) for labels in (CELEBAMASK, CELEBAMASK, NINE)]
    labeller = export.Labeller(FusedParser(EnsembleParser(tiny[:2]), tiny[2]))
    export.save_onnx(export.trace(labeller), tmp_path / "faces.onnx", labeller)
    compare([export.load_onnx(tmp_path / "faces.onnx")], labeller, photos())


def test_the_example_of_the_documentation_runs(framed, tmp_path, monkeypatch):
    text = (Path(export.__file__).resolve().parent.parent / "docs" / "predict.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "detect(photo)" in block)
    photo, frames = export.turned_faces((30, -100), 240, 420)
    face_52 = np.array([(-0.3, -0.1), (0.3, -0.1), (0, 0.2), (-0.2, 0.45), (0.2, 0.45)])
    shapes = face_52, face_52 * [0.6, 1]  # the second as in a profile, whose eyes are close together
    points = [shape @ matrix[:, :2].T + matrix[:, 2] for shape, matrix in zip(shapes, frames, strict=True)]
    Image.fromarray(photo).save(tmp_path / "photo.jpg", "PNG")  # Pillow goes by the content
    shutil.copy(framed.folder / "faces.onnx", tmp_path / "stn_icnn_framed.onnx")
    monkeypatch.chdir(tmp_path)
    scope = {"detect": lambda photo: points}
    exec(example, scope)
    framing = np.stack([frame_of(points_52).matrix_23 for points_52 in points])
    assert scope["frames"] == pytest.approx(framing, rel=1e-5)
    labeller = export.FramedLabeller(load_parser([framed.folder / "model.pt"]))
    inputs = torch.from_numpy(photo)[None], torch.from_numpy(framing).float()
    compare([lambda *_: torch.from_numpy(scope["labels"])], labeller, [inputs])


@pytest.mark.parametrize(("label", "status", "kept"), [(7, 1, "older"), (0, 0, "newer")])
def test_a_file_that_labels_otherwise_is_not_kept(label, status, kept, plain, tmp_path, monkeypatch, capsys):
    path, black = tmp_path / "faces.pt2", torch.zeros(1, 4, 4, 3)
    path.write_text("older")
    monkeypatch.setattr(export, "trace", lambda labeller: None)
    monkeypatch.setattr(export, "save_program", lambda program, path, labeller: path.write_text("newer"))
    monkeypatch.setattr(export, "load_program", lambda path: lambda photos: torch.full((1, 4, 4), label))
    monkeypatch.setattr(export.Labeller, "checks", lambda self: [("black", (black,), black[..., 0])])
    options = ["--checkpoint", str(plain.folder / "model.pt"), "--program", str(path)]
    with refuses("already exists"):
        export.main(options)
    assert export.main([*options, "--overwrite"]) == status
    assert ("below 99.9%, so it was not kept" in capsys.readouterr().err) == bool(status)
    assert path.read_text() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_the_benchmark_measures_the_exported_graph(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "export", lambda checkpoints, onnx: shutil.copy(plain.folder / "faces.onnx", onnx))
    options = ["--quick", "--device", "cpu", "--only", "export", "--sizes", "64x96", "--out", str(tmp_path)]
    assert benchmark.main([*options, "--checkpoint", str(plain.folder / "model.pt")]) == 0
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["tables"][0]["rows"]
    assert row["labels equal %"] > 95  # of lively weights, which see a photo stretched by other means
    assert row["onnxruntime ms"]["median"] > 0


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with refuses("pip install onnxscript"):
        export.main(["--onnx", str(tmp_path / "faces.onnx")])
