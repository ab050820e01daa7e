"""The exported files: the model's own labels, for photos of any size and number."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from data.labels import CELEBAMASK
from faces.align import frame_of
from models.loading import load_parser
from models.parser import FaceParser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.fixtures import save_parser
from tests.tiny_parser import TinyConfig, TinyParser
from tools import export
from utils.errors import InputError

TINY = STNiCNNConfig(coarse_size=32, crop_size=17)
CONFIGS = {
    "paper": TINY,
    "other": replace(TINY, localizer="resnet18", frame="canvas", canvas=256, crop_size=16, paste="bilinear"),
}
SHAPES = [(1, 300, 280), (1, 120, 90), (3, 90, 400), (2, 256, 256), (1, 1, 40)]


def random_model(config: STNiCNNConfig) -> STNiCNN:
    """Its logits lie far enough apart for labels other than background."""
    torch.manual_seed(0)
    model = STNiCNN(config)
    with torch.no_grad():
        for net in (model.coarse, *model.parts.nets.values()):
            net.head[2].weight *= 20
            net.head[2].bias.zero_()
    return model.eval()


def save_model(folder: Path, config: STNiCNNConfig) -> Path:
    return save_parser(folder / "model.pt", random_model(config))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("weights"), TINY)


def compare(function, model: FaceParser) -> None:
    """The function labels photos of several sizes and numbers as the model does."""
    seen = set()
    for shape in SHAPES:
        blocks_BHW3 = torch.randint(256, (shape[0], 6, 6, 3), dtype=torch.uint8)
        rows, columns = (torch.arange(length) * 6 // length for length in shape[1:])
        photos_BHW3 = blocks_BHW3[:, rows][:, :, columns]
        with torch.inference_mode():
            labels_BHW, expected_BHW = function(photos_BHW3), model(photos_BHW3).argmax(1)
        assert labels_BHW.dtype == torch.uint8
        assert labels_BHW.shape == shape
        assert (labels_BHW == expected_BHW).float().mean() >= 0.999
        seen |= set(expected_BHW.unique().tolist())
    assert len(seen) > 3


@pytest.mark.parametrize("name", CONFIGS)
def test_both_files_label_photos_of_any_size_and_number_as_the_model_does(name, tmp_path, capsys) -> None:
    weights = save_model(tmp_path, CONFIGS[name])
    onnx, program = tmp_path / "faces.onnx", tmp_path / "faces.pt2"
    assert export.main(["--checkpoint", str(weights), "--onnx", str(onnx), "--program", str(program)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces.onnx", "faces.pt2", "model.pt"]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert all("MiB" in line and "% of 3 × 150×200" in line for line in told)
    model = load_parser([weights])
    model.fold()
    compare(export.load_program(program), model)
    compare(export.load_onnx(onnx), model)
    session = onnxruntime.InferenceSession(onnx)
    held: dict[str, str] = {"metadata.json": ""}
    torch.export.load(program, extra_files=held)
    assert json.loads(held["metadata.json"]) == session.get_modelmeta().custom_metadata_map
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == list(model.labels.names)
    axes = ["batch", "height", "width"]
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("photos", [*axes, 3])]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("labels", axes)]


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and both files of its framed export."""
    folder = tmp_path_factory.mktemp("framed")
    weights = save_model(folder, replace(TINY, window_margin=1.6, paste="bilinear"))
    files = ["--onnx", str(folder / "stn_icnn_framed.onnx"), "--program", str(folder / "stn_icnn_framed.pt2")]
    assert export.main(["--framed", "--checkpoint", str(weights), *files]) == 0
    return folder


def test_faces_framed_in_a_photo_of_any_size_are_labelled_as_the_model_does(framed: Path) -> None:
    model = load_parser([framed / "model.pt"])
    model.fold()
    labeller, seen = export.FramedLabeller(model), set()
    functions = (
        export.load_program(framed / "stn_icnn_framed.pt2"),
        export.load_onnx(framed / "stn_icnn_framed.onnx"),
    )
    drawn = [
        export.turned_faces(*case) for case in (((0,), 90, 100), ((30, -100, 180), 120, 400), ((10, 60), 300, 280))
    ]
    for photo, frames in (*drawn, (drawn[0][0][40:41], drawn[0][1])):  # the last of a single row
        inputs = torch.from_numpy(photo)[None], torch.from_numpy(np.stack(frames)).float()
        with torch.inference_mode():
            expected_FHW = labeller(*inputs)
            for function in functions:
                labels_FHW = function(*inputs)
                assert labels_FHW.dtype == torch.uint8
                assert labels_FHW.shape == (len(frames), *photo.shape[:2])
                assert (labels_FHW == expected_FHW).float().mean() >= 0.999
        seen |= set(expected_FHW.unique().tolist())
    assert len(seen) > 3
    session = onnxruntime.InferenceSession(framed / "stn_icnn_framed.onnx")
    axes = ["height", "width"]
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("photos", [1, *axes, 3]),
        ("frames", ["faces", 2, 3]),
    ]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("labels", ["faces", *axes])]


def test_the_example_of_the_documentation_runs(framed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(export.__file__).resolve().parent.parent / "docs" / "predict.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "detect(photo)" in block)
    photo, frames = export.turned_faces((30, -100), 240, 420)
    face_52 = np.array([(-0.3, -0.1), (0.3, -0.1), (0, 0.2), (-0.2, 0.45), (0.2, 0.45)])
    points = [face_52 @ matrix[:, :2].T + matrix[:, 2] for matrix in frames]
    Image.fromarray(photo).save(framed / "photo.png")
    (framed / "photo.png").rename(framed / "photo.jpg")  # Pillow goes by the content
    monkeypatch.chdir(framed)
    scope = {"detect": lambda photo: points}
    exec(example, scope)
    framing = np.stack([frame_of(points_52).matrix_23 for points_52 in points])
    assert scope["frames"] == pytest.approx(framing, rel=1e-5)
    model = load_parser([framed / "model.pt"])
    with torch.inference_mode():
        expected = export.FramedLabeller(model)(torch.from_numpy(photo)[None], torch.from_numpy(framing).float())
    assert (scope["labels"] == expected.numpy()).mean() >= 0.999
    assert len(np.unique(scope["labels"])) > 3


def test_windows_that_follow_the_parts_and_the_released_localizer_are_traced_too() -> None:
    model = random_model(replace(TINY, localizer="released", coarse_size=128, window_margin=1.6))
    model.fold()
    compare(export.trace(export.Labeller(model)).module(), model)


def test_a_parser_of_one_network_and_other_labels_is_traced_too() -> None:
    torch.manual_seed(0)
    parser = TinyParser(TinyConfig(), CELEBAMASK).eval()
    compare(export.trace(export.Labeller(parser)).module(), parser)


def test_a_file_that_labels_otherwise_is_not_kept(weights, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "faces.pt2").write_text("older")
    monkeypatch.setattr(export, "load_program", lambda path: lambda photos: torch.full(photos.shape[:3], 7))
    assert export.main(["--checkpoint", str(weights), "--program", str(tmp_path / "faces.pt2"), "--overwrite"]) == 1
    assert "below 99.9%, so it was not kept" in capsys.readouterr().err
    assert (tmp_path / "faces.pt2").read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "nothing to write"),
        (["--onnx", "faces.pt2"], r"must end in \.onnx"),
        (["--program", "faces.onnx"], r"must end in \.pt2"),
        (["--program", "nowhere/faces.pt2"], "there is no folder nowhere"),
        (["--program", "a" * 300 + "/faces.pt2"], "there is no folder a"),
        (["--program", "a" * 300 + ".pt2", "--checkpoint", "none.pt"], "no such checkpoint"),
        (["--program", "there.pt2"], "already exists"),
        (["--program", "folder.pt2", "--overwrite"], "is a folder"),
        (["--program", "faces.pt2", "--checkpoint", "none.pt"], "no such checkpoint"),
    ],
)
def test_bad_options_are_one_line(argv, line, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pt2").write_text("mine")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(InputError, match=line):
        export.main(argv)
    assert (tmp_path / "there.pt2").read_text() == "mine"


def test_missing_packages_are_one_line(tmp_path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(InputError, match="pip install onnxscript"):
        export.main(["--onnx", str(tmp_path / "faces.onnx")])
