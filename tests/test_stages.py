"""Every script trains for an epoch on the CPU, each stage on what the stage before it wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import train_cropper
import train_deeplab
import train_eagrnet
import train_end2end
import train_stage1
import train_stage2
import train_whole
from data.labels import HELEN, NINE
from models import eagrnet
from models.deeplab import DeepLabConfig
from models.eagrnet import EAGRNetConfig
from models.loading import load_parser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from models.whole import WholeConfig
from tests.fixtures import save_parser
from tests.test_eagrnet import THIN
from tests.test_evaluate import STAGES as NETWORKS
from tests.test_resume import log_of
from utils import checkpoint, files
from utils.errors import InputError

SCRIPTS = {"stage1": train_stage1, "cropper": train_cropper, "stage2": train_stage2, "end2end": train_end2end}
COARSE_SIZES = {"stage1": 48, "cropper": 48, "stage2": 128, "end2end": 48}  # stage 2 has none of its own
SMALL_CROPS = ["--crop-size", "17"]


def train(stage: str, options: list[str], run_dir: Path, *more: str) -> Path:
    """One epoch of a stage; its run folder."""
    assert SCRIPTS[stage].main([*options, "--epochs", "1", "--run-dir", str(run_dir), *more]) == 0
    return run_dir


@pytest.fixture(scope="module", params=["best", "paper"])
def runs(request: pytest.FixtureRequest, tiny_options: list[str], tmp_path_factory) -> dict[str, Path]:
    """The four stages, chained, by either recipe."""
    few = ["--batch-size", "2"] if request.param == "best" else ["--batch-size", "4", "--max-images", "2"]
    options = [*tiny_options, "--recipe", request.param, *few, "--seed", "3"]
    root = tmp_path_factory.mktemp(request.param)
    thin = ["--coarse-size", "48", "--coarse-channels", "4", "4", "4", "4"]
    runs = {"stage1": train("stage1", options, root / "stage1", *thin)}
    coarse = ["--init-from", str(runs["stage1"] / "best.pt")]
    runs["cropper"] = train("cropper", options, root / "cropper", *coarse, *SMALL_CROPS)
    runs["stage2"] = train("stage2", options, root / "stage2", *SMALL_CROPS, "--part-channels", "4", "4", "4", "4")
    both = ["--init-from-cropper", str(runs["cropper"] / "best.pt"), "--init-from-stage2", f"{runs['stage2']}/best.pt"]
    runs["end2end"] = train("end2end", options, root / "end2end", *both)
    return runs


@pytest.fixture
def tiny_best(tiny_options: list[str]) -> list[str]:
    """The options of our own recipe on two faces."""
    return [*tiny_options, "--recipe", "best", "--batch-size", "2", "--max-images", "2", *SMALL_CROPS]


def test_checkpoints_logs_and_folders_tell_what_was_trained_from_what(runs):
    best = {stage: files.sha256(run_dir / "best.pt") for stage, run_dir in runs.items()}
    sources = {
        "cropper": {"init_from": best["stage1"]},
        "end2end": {"init_from_cropper": best["cropper"], "init_from_stage2": best["stage2"]},
    }
    for stage, run_dir in runs.items():
        for name in ("last.pt", "best.pt"):
            state = checkpoint.load(run_dir / name, (stage,))
            assert (state["stage"], state["parser"], state["labels"]) == (stage, "stn_icnn", "nine")
            assert state["config"]["coarse_size"] == COARSE_SIZES[stage]
            assert state["modules"].keys() == {*NETWORKS[stage]}
            assert all(len(weights) > 10 for weights in state["modules"].values())
            assert ("optimizer" in state) == (name == "last.pt")
            assert state["started_from"] == sources.get(stage, {})
        config = json.loads((run_dir / "config.json").read_text())
        assert (config["stage"], config["seed"], config["dataset"]) == (stage, 3, "helen")
        assert config["started_from"] == sources.get(stage, {})
        assert config["recipe"]["optimisation"]["epochs"] == 1
        assert config["environment"]["git"]
        assert config["environment"]["torch"] == torch.__version__
        (events,) = (run_dir / "tensorboard").glob("events.out.tfevents.*")
        assert all(word in events.read_bytes() for word in (b"faces", b"val_s"))
        (row,) = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
        assert row["epoch"] == 1
        scores = {"theta_loss", "centre_px"} if stage == "cropper" else {"f1", "strict"}
        assert {"loss", "lr", "train_s", "val_s"} | scores <= row.keys()
    if config["recipe"]["coarse_weight"] > 0:  # end to end: each loss that its recipe has
        assert row["loss"] == pytest.approx(row["parts"] + row["coarse"] + row["theta"], rel=1e-5)
    else:
        assert not {"parts", "coarse", "theta"} & row.keys()  # the part loss is all there is: it is the loss


def moved(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], kind: str = "") -> bool:
    """Whether values differ. kind: "weight" for those that take a gradient to move, unlike batch statistics."""
    return any(not torch.equal(one[key], two[key]) for key in one if key.endswith(kind))


def test_every_trained_network_moves_and_the_cropper_leaves_the_coarse_network_alone(runs):
    weights = {stage: checkpoint.load(run_dir / "last.pt")["modules"] for stage, run_dir in runs.items()}
    best = checkpoint.load(runs["stage1"] / "best.pt")["modules"]["coarse"]
    assert not moved(best, weights["cropper"]["coarse"])
    assert moved(weights["cropper"]["coarse"], weights["end2end"]["coarse"], "weight")
    assert moved(weights["cropper"]["localizer"], weights["end2end"]["localizer"], "weight")
    assert moved(weights["stage2"]["parts"], weights["end2end"]["parts"], "weight")


def test_another_localizer_trains_and_is_remembered(tiny_best, tmp_path):
    config = STNiCNNConfig(window_margin=1.6, window_aspect=0.5, crop_size=17)
    stage1 = save_parser(tmp_path / "stage1.pt", STNiCNN(config), "stage1", ("coarse",))
    stage2 = save_parser(tmp_path / "stage2.pt", STNiCNN(config), "stage2", ("parts",))
    run_dir = train("cropper", tiny_best, tmp_path / "run", "--localizer", "released", "--init-from", str(stage1))
    assert load_parser([run_dir / "best.pt", stage2]).config.localizer == "released"


@pytest.mark.parametrize("runs", ["best"], indirect=True)
def test_the_cropper_trains_a_localizer_further_where_it_starts_from_one(runs, tiny_best, tmp_path):
    options = [*tiny_best, "--lr-localizer", "1e-9"]
    whole = runs["end2end"] / "best.pt"
    held = checkpoint.load(whole)["modules"]["localizer"]
    further = checkpoint.load(train("cropper", options, tmp_path / "further", "--init-from", str(whole)) / "best.pt")
    torch.testing.assert_close(further["modules"]["localizer"]["linear.weight"], held["linear.weight"])
    coarse = ["--init-from", str(runs["stage1"] / "best.pt")]
    other = [*coarse, "--init-from-cropper", str(whole)]
    mixed = checkpoint.load(train("cropper", options, tmp_path / "mixed", *other) / "best.pt")["modules"]
    torch.testing.assert_close(mixed["localizer"]["linear.weight"], held["linear.weight"])
    first = checkpoint.load(runs["stage1"] / "best.pt")["modules"]["coarse"]
    assert all(torch.equal(mixed["coarse"][name], value) for name, value in first.items())
    with pytest.raises(InputError, match="localizer weights are of another architecture"):
        train("cropper", options, tmp_path / "odd", *other, "--localizer", "resnet18")


@pytest.mark.parametrize("runs", ["best"], indirect=True)
def test_end_to_end_trains_new_part_networks_in_the_windows_of_the_cropper(runs, tiny_best, tmp_path, capsys):
    cropper = runs["cropper"] / "best.pt"
    rates = ["--lr-coarse", "0", "--lr-localizer", "0", "--lr-parts", "2.5e-3", "--lr-mouth", "0"]
    options = [*tiny_best[:-2], *rates, "--init-from-cropper", str(cropper), "--part-channels", "4", "5", "6", "7"]
    trained = checkpoint.load(train("end2end", options, tmp_path / "run") / "best.pt")
    assert "the part networks start with random weights" in capsys.readouterr().out
    before = checkpoint.load(cropper)
    assert trained["config"] == {**before["config"], "part_channels": (4, 5, 6, 7)}
    assert not any(moved(trained["modules"][name], before["modules"][name]) for name in ("coarse", "localizer"))
    tracked = {key.split(".")[1]: value for key, value in trained["modules"]["parts"].items() if "tracked" in key}
    assert {name: int(steps) for name, steps in tracked.items()} == {"brows": 1, "eyes": 1, "nose": 1, "mouth": 0}


WHOLE_FACE = {  # options, the labels that are learnt, the configuration
    train_deeplab: (["--input-size", "48", "--labels", "nine"], NINE, DeepLabConfig(48)),
    train_eagrnet: (["--input-size", "65", "--recipe", "seed"], HELEN, EAGRNetConfig(65, bgr=True)),
    train_whole: (["--input-size", "64", "--encoder-weights", "imagenet"], HELEN, WholeConfig(size=64)),
}


@pytest.mark.parametrize("script", WHOLE_FACE, ids=lambda script: script.__name__)
def test_a_whole_face_network_is_trained_and_labels_photos(script, tiny_options, tmp_path, monkeypatch):
    options, labels, config = WHOLE_FACE[script]
    monkeypatch.setattr(eagrnet, "LAYERS", THIN)
    short = ["--epochs", "1", "--batch-size", "2", "--max-images", "2", "--run-dir", str(tmp_path / "run")]
    assert script.main([*tiny_options, *options, *short]) == 0
    (row,) = log_of(tmp_path / "run")
    if script is train_eagrnet:
        assert row["loss"] == pytest.approx(row["segmentation"] + row["edge"] + row["boundary"], rel=1e-5)
    parser = load_parser([tmp_path / "run" / "best.pt"])
    assert (parser.labels, parser.config) == (labels, config)
    assert parser.label_photos([np.zeros((40, 30, 3), np.uint8)])[0].shape == (40, 30)


def test_bfloat16_and_worker_processes_train_too(tiny_options, tmp_path):
    options = [*tiny_options, "--recipe", "best", "--batch-size", "2", "--coarse-size", "32"]
    run_dir = train("stage1", options, tmp_path / "run", "--amp", "bf16", "--workers", "1", "--max-images", "2")
    weights = checkpoint.load(run_dir / "best.pt")["modules"]["coarse"]
    assert all(value.dtype != torch.bfloat16 for value in weights.values())
