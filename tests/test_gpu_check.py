"""The GPU check on the CPU at tiny sizes, and what it makes of tests."""

import json

from models import eagrnet
from tests.test_eagrnet import THIN
from tools import gpu_check
from tools.benchmark.training import Case

TESTS = """
import pytest

def test_one(record_property):
    record_property("off by %", "0.5")

def test_two():
    assert 1 == 2

@pytest.mark.skip("no card")
def test_three():
    pass
"""


def test_every_part_runs_and_is_written(weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "test_some.py").write_text(TESTS)
    monkeypatch.setattr(gpu_check, "TESTS", tmp_path)
    monkeypatch.setattr(gpu_check, "SHIPPED_WEIGHTS", weights)
    monkeypatch.setattr(gpu_check, "FIRST", [Case("stage2", "paper", "off")])
    monkeypatch.setattr(gpu_check, "REST", [Case(stage, "best", "off") for stage in ("eagrnet", "none")])
    monkeypatch.setattr(eagrnet, "LAYERS", THIN)
    out = tmp_path / "out"
    assert gpu_check.main(["--quick", "--device", "cpu", "--minutes", "60", "--out", str(out)]) == 1
    assert [line.partition(":")[2] for line in capsys.readouterr().err.splitlines() if line.startswith("NOT AS")] == [
        *(" test_two: failure: assert 1 == 2", " none best off None: failed: KeyError ('none')")
    ]
    tables = {table["title"]: table for table in json.loads((out / "benchmark.json").read_text())["tables"]}
    assert tables["Tests"]["rows"] == [
        {"what": "test_one", "result": "passed", "off by %": "0.5"},
        {"what": "test_two", "result": "failure: assert 1 == 2"},
        {"what": "test_three", "result": "skipped: no card"},
    ]
    assert tables["Left out"]["rows"] == [{"what": "none best off None", "result": "failed: KeyError ('none')"}]
    assert [row["training"] for row in tables["Training"]["rows"]] == ["stage2", "eagrnet"]
    assert all(row["faces/s with loader"] > 0 for row in tables["Training"]["rows"])
    assert "250,000 views" in tables["The paper's training"]["note"]
    assert len(tables["Decoded photo to label map"]["rows"]) == 4
    assert "failed: KeyError" in (out / "benchmark.md").read_text()
