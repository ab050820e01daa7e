"""The benchmark at tiny sizes: everything runs and is written, labels agree, fits are right. No speed is asserted."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from models.loading import SHIPPED_WEIGHTS, load_parser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tools.benchmark import __main__ as benchmark
from tools.benchmark import child, measure, reference, training
from tools.benchmark.setup import face_photos, parse_photos
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import run_main

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes an end-to-end checkpoint with random weights and small crops."""

    def make(**config: object) -> Path:
        torch.manual_seed(1)
        model = STNiCNN(STNiCNNConfig(**{"coarse_size": 32, "crop_size": 33, **config}))
        modules = {name: getattr(model, name).state_dict() for name in model.networks}
        path = tmp_path_factory.mktemp("weights") / "tiny.pt"
        state = {"stage": "end2end", "parser": model.kind, "labels": model.labels.name, "config": vars(model.config)}
        checkpoint.save(path, {**state, "modules": modules})
        return path

    return make


def test_a_quick_run_writes_json_markdown_and_the_plot(tiny_weights: Callable[..., Path], tmp_path: Path) -> None:
    sections = ["inference", "steps", "cache", "scaling", "predict", "export"]
    weights = ["--checkpoint", str(tiny_weights(coarse_size=16, crop_size=8))]
    options = ["--quick", "--device", "cpu", "--workers", "0", "--amp", "off", "--out", str(tmp_path)]
    assert benchmark.main([*options, *weights, "--only", *sections, "--sizes", "64x96", "--batches", "2"]) == 0
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(written["sections"]) == sections
    assert written["about"]["quick"] is True
    (inference,) = written["sections"]["inference"]
    assert [(row["photo"], row["which"]) for row in inference["rows"]] == [
        ("64×96", which) for which in ("reference", "ours fp32")
    ]
    assert all(row["agrees %"] > 99 for row in inference["rows"] if row["which"] != "reference")
    (steps,) = written["sections"]["steps"]
    names = ["decode", "prepare", "coarse", "localize", "crop", "parts", "paste", "encode"]
    assert [row["step"] for row in steps["rows"]] == names
    assert all(row["ours ms"] is not None and row["reference ms"] is not None for row in steps["rows"])
    text = (tmp_path / "benchmark.md").read_text()
    for tables in written["sections"].values():
        for table in tables:
            assert f"## {table['title']}" in text
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_a_quick_run_times_every_stage_beside_the_reference(tiny_weights: Callable[..., Path], tmp_path: Path) -> None:
    options = ["--quick", "--only", "training", "--device", "cpu", "--workers", "0", "--amp", "off"]
    options += ["--faces", "1", "--checkpoint", str(tiny_weights(coarse_size=16, crop_size=8)), "--out", str(tmp_path)]
    assert benchmark.main(options) == 0
    stages, beside = json.loads((tmp_path / "benchmark.json").read_text())["sections"]["training"]
    assert [row["stage"] for row in stages["rows"]] == ["stage1", "cropper", "stage2", "end2end"]
    assert all(row["GFLOP an image"] > 0 and row["images/s"]["median"] > 0 for row in stages["rows"])
    assert [row["what"] for row in beside["rows"]] == ["stage 1 from files", "data path alone"]


@pytest.mark.parametrize("config", [{"window_margin": 1.6, "paste": "bilinear"}, {"paste": "nearest"}])
def test_the_reference_labels_as_ours_does(tiny_weights: Callable[..., Path], config: dict) -> None:
    path = tiny_weights(**config)
    photos = [np.random.default_rng(0).integers(0, 256, (90, 121, 3)).astype(np.uint8)]
    ours = parse_photos(load_parser([path]), photos, CPU, "fp32")
    theirs = reference.parse(reference.load_plain([path], CPU), photos)
    assert len(np.unique(ours)) > 3
    assert measure.agreement(ours, theirs) >= 99.9


def test_the_reference_labels_a_real_face_as_ours_does() -> None:
    photos = face_photos(1, 200, 256)
    ours = parse_photos(load_parser([SHIPPED_WEIGHTS]), photos, CPU, "fp32")
    theirs = reference.parse(reference.load_plain([SHIPPED_WEIGHTS], CPU), photos)
    assert len(np.unique(ours)) == 9
    assert measure.agreement(ours, theirs) >= 99.9


def test_the_exponent_of_a_power_law_is_found() -> None:
    sizes = [1, 2, 5, 10, 100]
    assert measure.fit_exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert measure.fit_exponent(sizes, [0.2] * len(sizes)) == pytest.approx(0)


def test_calls_alternate_and_the_first_is_kept_apart() -> None:
    called: list[str] = []
    functions = {name: partial(called.append, name) for name in ("one", "two")}
    times = measure.alternate(functions, CPU, measure.Rounds(0, 2, 9))
    assert called == ["one", "two", "one", "two", "two", "one"]
    assert {name: len(measured.seconds) for name, measured in times.items()} == {"one": 2, "two": 2}
    assert measure.spread([1, 2, 3, 4, 5], 1e3) == {"median": 3000, "q1": 2000, "q3": 4000, "count": 5}


def test_work_counts_two_operations_for_each_multiply_add() -> None:
    assert measure.count_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5


def test_a_sparse_cache_reads_as_black_faces_and_takes_no_room(tmp_path: Path) -> None:
    faces = child.sparse_faces(tmp_path / "sparse", 5000, 512)
    assert sum(file.stat().st_blocks * 512 for file in faces.folder.iterdir()) < 2**22
    batch = faces.collate([faces[4999, (0, 0, 0)]])
    assert batch.photos_BHW3.shape == (1, 512, 512, 3)
    assert batch.photos_BHW3.sum() == 0


def test_the_child_tells_how_much_memory_it_took(tmp_path: Path) -> None:
    plan = {"faces": 40, "size": 32, "batch_size": 2, "steps": 2, "coarse_size": 16, "workers": 0}
    row = training.in_child("train", {**plan, "device": "cpu", "scratch": str(tmp_path)})
    assert 0 < row["before"] < row["peak"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--only", "speed"], "invalid choice"),
        (["--sizes", "12by12"], "--sizes 12by12: must be like 512"),
        (["--sizes", "8"], "--sizes 8"),
        (["--batches", "0", "--seconds", "0"], "--seconds 0: must be more than 0; --batches 0: must be at least 1"),
        (["--faces", "1", "--batch-size", "6"], "five times as many must fill a batch of 6"),
        (["--scratch", "/nowhere/at/all"], "no such folder"),
    ],
)
def test_bad_options_end_with_one_line_and_status_2(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--out", str(tmp_path / "out"), *options]
    with pytest.raises(InputError):
        benchmark.main(arguments)
    assert run_main(lambda: benchmark.main(arguments)) == 2
    complaint = capsys.readouterr().err
    assert told in complaint
    assert complaint.count("\n") == 1
