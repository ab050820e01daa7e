"""The benchmark at tiny sizes: everything runs and is written, labels agree. No speed is asserted."""

import json

import numpy as np
import pytest
import torch

from models.loading import SHIPPED_WEIGHTS, load_for_inference, load_parser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.damage import refuses
from tests.fixtures import lively, save_parser
from tools.benchmark import __main__ as benchmark
from tools.benchmark import reference
from tools.benchmark.measure import agreement, face_photos, parse_photos

QUICK = ["--quick", "--device", "cpu", "--workers", "0", "--amp", "off"]


def test_a_quick_run_measures_every_section(weights, tmp_path):  # but for export, which test_export measures
    sections = ["inference", "training", "memory", "predict"]
    options = [*QUICK, "--out", str(tmp_path), "--checkpoint", str(weights), "--sizes", "64x96", "--batches", "2"]
    assert benchmark.main([*options, "--only", *sections]) == 0
    written = json.loads((tmp_path / "benchmark.json").read_text())
    tables = {table["title"]: table["rows"] for table in written["tables"]}
    assert [row["which"] for row in tables["Decoded photo to label map"]] == ["reference", "ours fp32"]
    assert tables["Decoded photo to label map"][1]["labels equal %"] > 99
    assert [row["training"] for row in tables["The paper's training"]] == ["stage1", "cropper", "stage2", "end2end"]
    assert all(row["faces/s with loader"] > 0 for row in tables["The paper's training"])
    assert 0 < tables["Peak memory"][0]["libraries MB"] < tables["Peak memory"][0]["peak MB"]
    assert tables["predict.py"][0]["ms a photo"] > 0
    assert all(f"## {title}\n" in (tmp_path / "benchmark.md").read_text() for title in tables)


@pytest.mark.parametrize("config", [{"window_margin": 1.6, "paste": "bilinear"}, {"paste": "nearest"}, None])
def test_the_reference_labels_as_ours_does(config, tmp_path):
    path, device = SHIPPED_WEIGHTS, torch.device("cpu")
    if config:
        torch.manual_seed(1)
        path = save_parser(tmp_path / "tiny.pt", lively(STNiCNN(STNiCNNConfig(coarse_size=32, crop_size=33, **config))))
    photos = face_photos(2 if config else 1, 200, 256)
    ours = parse_photos(load_for_inference([path], device), photos, device, "fp32")
    assert len(np.unique(ours)) > 3
    assert agreement(ours, reference.parse(load_parser([path]), photos, device)) >= 99.9


def test_another_parser_has_no_reference(other_parser, tmp_path):
    with refuses("tiny cannot be measured"):
        benchmark.main([*QUICK, "--only", "inference", "--out", str(tmp_path), "--checkpoint", str(other_parser)])
