"""The benchmark at tiny sizes: everything runs and is written, labels agree. No speed is asserted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.loading import SHIPPED_WEIGHTS, load_parser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.fixtures import save_parser
from tools.benchmark import __main__ as benchmark
from tools.benchmark import measure, reference
from tools.benchmark.setup import face_photos, parse_photos
from utils.runtime import run_main


def write_weights(path: Path, **config: object) -> Path:
    """An end-to-end checkpoint with random weights and small crops."""
    torch.manual_seed(1)
    return save_parser(path, STNiCNN(STNiCNNConfig(**{"coarse_size": 32, "crop_size": 33, **config})))


def test_a_quick_run_measures_every_section(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "tiny.pt", coarse_size=16, crop_size=8)
    options = ["--quick", "--device", "cpu", "--workers", "0", "--amp", "off", "--out", str(tmp_path)]
    options += ["--checkpoint", str(weights), "--sizes", "64x96", "--batches", "2"]
    assert benchmark.main(options) == 0
    written = json.loads((tmp_path / "benchmark.json").read_text())
    tables = {table["title"]: table["rows"] for table in written["tables"]}
    assert [row["which"] for row in tables["Decoded photo to label map"]] == ["reference", "ours fp32"]
    assert tables["Decoded photo to label map"][1]["labels equal %"] > 99
    assert [row["training"] for row in tables["Training"]] == ["stage1", "cropper", "stage2", "end2end"]
    assert all(row["faces/s with loader"] > 0 for row in tables["Training"])
    assert tables["Cache and loader"][0]["MB of photos"] == pytest.approx(5 * 96 * 96 * 3 / 1e6)
    assert 0 < tables["Peak memory"][0]["libraries MB"] < tables["Peak memory"][0]["peak MB"]
    assert len(tables["predict.py"]) == 2
    assert tables["Exported graph, one photo, CPU, fp32"][0]["labels equal %"] > 99
    assert all(f"## {title}\n" in (tmp_path / "benchmark.md").read_text() for title in tables)


@pytest.mark.parametrize("config", [{"window_margin": 1.6, "paste": "bilinear"}, {"paste": "nearest"}, None])
def test_the_reference_labels_as_ours_does(tmp_path: Path, config: dict | None) -> None:
    path = SHIPPED_WEIGHTS if config is None else write_weights(tmp_path / "tiny.pt", **config)
    photos = face_photos(1, 200, 256)
    ours = parse_photos(load_parser([path]), photos, torch.device("cpu"), "fp32")
    assert len(np.unique(ours)) > 3
    assert measure.agreement(ours, reference.parse(reference.load_plain([path], torch.device("cpu")), photos)) >= 99.9


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--only", "speed"], "invalid choice"),
        (["--sizes", "12by12"], "12by12 must be like 512"),
        (["--batches", "0"], "0 must be a whole number of at least 1"),
    ],
)
def test_bad_options_end_with_one_line_and_status_2(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(lambda: benchmark.main(["--quick", *options])) == 2
    complaint = capsys.readouterr().err
    assert told in complaint
    assert complaint.count("\n") == 1
