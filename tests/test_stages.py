"""Every script trains for an epoch on the CPU, each stage on what the stage before it wrote; what a user can get wrong
on the command line is one line each, exit status 2, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

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
from tests.fixtures import draw_faces, save_parser, write_challenge
from tests.test_eagrnet import THIN
from tests.test_evaluate import STAGES as NETWORKS
from tests.test_resume import log_of
from utils import checkpoint, files
from utils.errors import InputError
from utils.runtime import run_main

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


Refusal = Callable[..., str]


@pytest.fixture
def refusal(tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> Refusal:
    """Runs a script with the tiny data's options and others, and gives the one line that it ends with."""

    def run(*options: str, script: ModuleType = train_stage1) -> str:
        arguments = [*tiny_options, "--run-dir", str(tmp_path / "run"), *options]
        assert run_main(lambda: script.main(arguments)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert not (tmp_path / "run").exists()
        return line

    return run


ONE_WAY = "--partition paper: --dataset"
BOTH = "start from --init-from-cropper, with --init-from-stage2 or with random part networks, or from --init-from"
REFUSED: tuple[tuple[ModuleType, str, str], ...] = (
    *((train_stage1, f"--max-images={value}", f"--max-images {value}: must be ") for value in (0, -3)),
    *((train_stage1, f"--workers={value}", f"--workers {value}: must be ") for value in (-1, 257)),
    *((train_stage1, f"--batch-size={value}", f"--batch-size {value}: must be ") for value in (0, -2, 65537)),
    *((train_stage1, f"--seed={value}", f"--seed {value}: must be ") for value in (-1, 2**63)),
    *((train_stage1, f"--epochs={value}", f"--epochs {value}: must be ") for value in (0, -1)),
    *((train_stage1, f"--lr={value}", f"--lr {value}: must be ") for value in (-0.1, "100.0", "inf", "nan")),
    *((train_stage1, f"--coarse-size={value}", f"--coarse-size {value}") for value in (0, -5, 15, 1025)),
    *((train_stage2, f"--crop-size={value}", f"--crop-size {value}") for value in (0, -5, 7, 1025)),
    *((train_stage1, f"--face-size={value}", f"--face-size {value}") for value in (15, 2049)),
    *((train_stage1, f"--{words}", f"--{words.split()[0]}") for words in ("epochs many", "recipe secret", "speed 9")),
    (train_stage1, "stray", "stray"),
    (train_stage1, "--lr 0", "every learning rate is 0"),
    (train_stage1, "--partition paper", ONE_WAY),
    (train_stage1, "--dataset synthetic --data .", "--dataset is missing (synthetic faces need no folder)"),
    *((train_stage1, f"--device={name}", f"device {name}") for name in ("gpu", "cuda:x", "", "meta", "cpu:99")),
    *((script, "--init-from none.pt", "none.pt: no such checkpoint file") for script in SCRIPTS.values()),
    *((train_end2end, words, BOTH) for words in ("", "--init-from-stage2 a", "--init-from a --init-from-cropper b")),
    (train_cropper, "", "--init-from is needed"),
    (train_cropper, "--lr-localizer=-2", "--lr-localizer -2"),
    *((train_deeplab, f"{words} --epochs 3", words) for words in ("--self-distill 3", "--self-distill 0")),
    (train_deeplab, "--self-distill 1 --threshold 1.0", "threshold 1.0"),
    (train_deeplab, "--self-distill 1 --labels nine", "leave out --labels"),
    *((train_deeplab, words, "the range above 0") for words in ("--mirror-probability 2", "--scale-range 1 0.5")),
    (train_whole, "--encoder-weights none --arch fnp", "arch fnp: choose one of unet"),
    (train_whole, "--encoder-weights none --encoder tu-nothing", "encoder tu-nothing: "),
    (train_whole, "--encoder-weights none --input-size 65", "multiple of 32"),
    (train_whole, "--encoder-weights none --balance 2", "--balance 2.0: must be between"),
    (train_whole, "--encoder-weights gone.pth", "gone.pth"),
    *((train_stage2, f"--{name}=-1", f"--{name} -1.0: must be ") for name in ("weight-decay", "lr-brows", "lr")),
    (train_stage2, "--lr-brows 0 --lr-eyes 0 --lr-nose 0 --lr-mouth 0", "every learning rate is 0"),
    *((train_stage2, f"--part-channels {words}", "--part-channels") for words in ("8 16 24", "8 16 24 0")),
)


@pytest.mark.parametrize(("script", "options", "told"), REFUSED, ids=[f"{row[1]} {k}" for k, row in enumerate(REFUSED)])
def test_what_cannot_be_is_one_line(script, options, told, refusal):
    assert told in refusal(*options.split(), script=script)


def test_all_problems_are_told_at_once(refusal):
    line = refusal("--lr-localizer=-2", "--epochs=0", "--batch-size", "0", "--workers", "999", script=train_cropper)
    for told in ("--lr-localizer -2", "--epochs 0", "--batch-size 0", "--workers 999", "--init-from is needed"):
        assert told in line


def test_faces_to_train_on_without_any_label_are_told_before_the_first_epoch(refusal, tmp_path):
    faces = draw_faces(train=2, val=1)
    bare = {split: [(name, photo, 0 * labels) for name, photo, labels in group] for split, group in faces.items()}
    write_challenge(tmp_path / "faces", {**bare, "val": faces["val"]})
    options = ["--dataset", "celebamask", "--data", str(tmp_path / "faces"), "--cache", str(tmp_path / "cache")]
    line = refusal(*options, "--batch-size", "2")
    assert "the 2 faces to train on have no label but background in label set nine" in line


def test_a_batch_that_the_processes_cannot_share_is_refused(refusal, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "error: --batch-size 3: must be a multiple of the 2 processes" in refusal("--batch-size", "3")
