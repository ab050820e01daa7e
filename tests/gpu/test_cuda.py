"""What needs a CUDA device: all trainings run and go on there, and labels are those of the CPU."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
import train_cropper
import train_deeplab
import train_eagrnet
import train_end2end
import train_stage1
import train_stage2
import train_whole
from data.loaders import Faces
from models.loading import load_for_inference
from retrieval import search, train
from tests.test_resume import log_of, save_model
from tests.test_retrieval import small, stopping_at_second, write_people  # noqa: F401
from tools.portrait import portrait
from utils import checkpoint
from utils.runtime import autocast, device_name, pick_device

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, which is shown to `pytest tests/gpu` alone"
)

WEIGHTS = Path(__file__).resolve().parents[2] / "checkpoints"
ON_CUDA = ["--device", "cuda", "--amp", "auto"]
STAGES = {
    train_stage1: ["--recipe", "best", "--coarse-size", "32"],
    train_cropper: ["--recipe", "best"],
    train_stage2: ["--recipe", "best", "--crop-size", "17"],
    train_end2end: ["--recipe", "best"],
    train_deeplab: ["--input-size", "48"],
    train_eagrnet: ["--input-size", "65"],
    train_whole: ["--input-size", "64", "--encoder-weights", "none"],
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An end-to-end checkpoint with random weights."""
    torch.manual_seed(1)
    return save_model(tmp_path_factory.mktemp("start") / "start.pt")


@pytest.mark.parametrize("script", STAGES, ids=lambda script: script.__name__)
def test_each_training_runs_on_cuda_and_goes_on_where_it_was_interrupted(
    script: ModuleType,
    start: Path,
    tiny_options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [*tiny_options, *ON_CUDA, "--workers", "2", "--batch-size", "2", "--epochs", "2", *STAGES[script]]
    if "--recipe" in options:
        options += ["--init-from", str(start)]
    options += ["--run-dir", str(tmp_path / "run")]
    own = [value for value in vars(script).values() if getattr(value, "__module__", "") == script.__name__]
    (task,) = (value for value in own if hasattr(value, "validate"))
    with monkeypatch.context() as patch:
        patch.setattr(task, "validate", stopping_at_second(task.validate))
        with pytest.raises(KeyboardInterrupt):
            script.main(options)
    assert script.main([*options, "--resume"]) == 0
    rows = log_of(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in rows)
    environment = json.loads((tmp_path / "run" / "config.json").read_text())["environment"]
    assert environment["device"] == device_name(torch.device("cuda"))


@pytest.mark.parametrize(("amp", "least"), [("off", 0.999), ("bf16", 0.99)])
@pytest.mark.parametrize("weights", ["stn_icnn.pt", "deeplab.pt"])
def test_labels_on_cuda_are_those_of_the_cpu(weights: str, amp: str, least: float, val_faces: Faces) -> None:
    labels = []
    for device, precision in ((pick_device("cuda"), amp), (torch.device("cpu"), "off")):
        parser = load_for_inference([WEIGHTS / weights], device)
        batch = val_faces.first(3).to(device)
        with torch.inference_mode(), autocast(device, precision):
            labels.append(parser.label(batch).cpu())
    assert len(labels[1].unique()) > 5
    assert (labels[0] == labels[1]).float().mean() >= least


def test_scores_on_cuda_are_those_of_the_cpu(tiny_options: list[str], tmp_path: Path) -> None:
    data = [*tiny_options, "--split", "val", "--workers", "1"]
    found = []
    for device in ("cuda", "cpu"):
        assert evaluate.main([*data, "--device", device, "--out", str(tmp_path / device)]) == 0
        found.append(json.loads((tmp_path / device / "scores.json").read_text()))
    assert found[0]["device"] == "cuda:0"
    assert found[0]["strict"]["mean"] == pytest.approx(found[1]["strict"]["mean"], abs=1e-3)


def test_photos_are_parsed_on_cuda_as_on_the_cpu(tmp_path: Path) -> None:
    Image.fromarray(portrait()).save(tmp_path / "photo.png")
    maps = []
    for device in ("cuda", "cpu"):
        out = ["--out", str(tmp_path / device), "--amp", "off", "--device", device]
        assert predict.main([str(tmp_path / "photo.png"), *out]) == 0
        maps.append(np.array(Image.open(next((tmp_path / device).glob("photo*.png")))))
    assert len(np.unique(maps[1])) > 5
    assert (maps[0] == maps[1]).mean() >= 0.999


@pytest.mark.usefixtures("small")
def test_retrieval_trains_and_searches_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = write_people(tmp_path / "in", {name: 2 for name in "abc"})
    options = ["--data", str(people), *ON_CUDA, "--epochs", "2", "--run-dir", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(train.Identity, "validate", stopping_at_second(train.Identity.validate))
        with pytest.raises(KeyboardInterrupt):
            train.main(options)
    assert train.main([*options, "--resume"]) == 0
    assert checkpoint.load(tmp_path / "run" / "last.pt")["epoch"] == 1
    asked = write_people(tmp_path / "asked", {name: 1 for name in "abc"})
    weights = ["--checkpoint", str(tmp_path / "run" / "best.pt"), "--out", str(tmp_path / "found"), *ON_CUDA]
    assert search.main([str(people), str(asked), *weights]) == 0
