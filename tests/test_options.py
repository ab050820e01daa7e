"""What a user can get wrong on the command line: one line each, exit status 2, and nothing written."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import train_cropper
import train_deeplab
import train_end2end
import train_stage1
import train_stage2
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.fixtures import draw_faces, state_of, write_challenge
from utils import checkpoint
from utils.runtime import run_main

SCRIPTS = (train_stage1, train_cropper, train_stage2, train_end2end)
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


NO_CUDA = "this machine has no usable CUDA device; use cpu or auto"
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
    *((train_stage1, f"--{words}", f"--{words.split()[0]}") for words in ("epochs many", "batch-size 2.5", "amp fp16")),
    *((train_stage1, f"--{words}", f"--{words.split()[0]}") for words in ("recipe secret", "speed 9", "epoch 9")),
    *((train_stage1, f"--{words}", f"--{words.split()[0]}") for words in ("dataset lfw", "partition thirds")),
    (train_stage1, "stray", "stray"),
    (train_stage1, "--epochs 0 --batch-size 0", "--batch-size 0"),
    (train_stage1, "--lr 0", "every learning rate is 0"),
    (train_stage1, "--partition paper", ONE_WAY),
    (train_stage1, "--dataset synthetic --data .", "--dataset is missing (synthetic faces need no folder)"),
    *((train_stage1, f"--device={name}", f"device {name}: {NO_CUDA}") for name in ("cuda", "cuda:0", "cuda:7")),
    *(
        (train_stage1, f"--device={name}", f"device {name}")
        for name in ("gpu", "cuda:x", "", "meta", "cpu:x", "cpu:99")
    ),
    *((script, "--init-from none.pt", "none.pt: no such checkpoint file") for script in SCRIPTS),
    *((train_end2end, words, BOTH) for words in ("", "--init-from-stage2 a", "--init-from a --init-from-cropper b")),
    (train_cropper, "", "--init-from is needed"),
    (train_cropper, "--lr-localizer=-2", "--lr-localizer -2"),
    *((train_deeplab, words, "the range above 0") for words in ("--mirror-probability 2", "--scale-range 1 0.5")),
    *((train_stage2, f"--{name}=-1", f"--{name} -1.0: must be ") for name in ("weight-decay", "lr-brows", "lr")),
    (train_stage2, "--lr-brows 0 --lr-eyes 0 --lr-nose 0 --lr-mouth 0", "every learning rate is 0"),
    *((train_stage2, f"--part-channels {words}", "--part-channels") for words in ("8 16 24", "8 16 24 0")),
)


@pytest.mark.parametrize(("script", "options", "told"), REFUSED, ids=[f"{row[1]} {k}" for k, row in enumerate(REFUSED)])
def test_what_cannot_be_is_one_line(script, options, told, refusal, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
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


def test_the_released_localizer_needs_its_own_size(refusal, tmp_path):
    checkpoint.save(tmp_path / "a.pt", state_of(STNiCNN(STNiCNNConfig(coarse_size=32)), "stage1", "coarse"))
    line = refusal("--init-from", str(tmp_path / "a.pt"), "--localizer", "released", script=train_cropper)
    assert "128" in line
