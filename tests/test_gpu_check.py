"""The GPU check on the CPU at tiny sizes, and what it makes of tests and of a device's events."""

import json
from types import SimpleNamespace

from torch.autograd import DeviceType

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
    monkeypatch.setattr(gpu_check, "SHIPPED_WHOLE", weights)
    monkeypatch.setattr(gpu_check, "FIRST", [Case("stage2", "paper", "off")])
    monkeypatch.setattr(gpu_check, "REST", [Case(stage, "best", "off") for stage in ("eagrnet", "none")])
    monkeypatch.setattr(eagrnet, "LAYERS", THIN)
    out = tmp_path / "out"
    assert gpu_check.main(["--quick", "--device", "cpu", "--minutes", "60", "--out", str(out)]) == 1
    assert [line.partition(":")[2] for line in capsys.readouterr().err.splitlines() if line.startswith("NOT AS")] == [
        *(" test_two: failure: assert 1 == 2", " none best off None failed: KeyError ('none')")
    ]
    tables = {table["title"]: table for table in json.loads((out / "benchmark.json").read_text())["tables"]}
    assert tables["Tests"]["rows"] == [
        {"test": "test_one", "result": "passed", "off by %": "0.5"},
        {"test": "test_two", "result": "failure: assert 1 == 2"},
        {"test": "test_three", "result": "skipped: no card"},
    ]
    *trained, failed = tables["Training"]["rows"]
    assert failed == {"what": "none best off None", "result": "failed: KeyError ('none')"}
    assert [row["training"] for row in trained] == ["stage2", "eagrnet"]
    assert all(row["launches"] > 100 and row["faces/s with loader"] > 0 for row in trained)
    assert "250,000 views" in tables["The paper's schedule"]["note"]
    assert len(tables["Decoded photo to label map"]["rows"]) == len(tables["Launches of labelling"]["rows"]) == 4
    assert "failed: KeyError" in (out / "benchmark.md").read_text()


def event(name: str, on: str, start: float = 0, end: float = 0, named: bool = False) -> SimpleNamespace:
    kind = {"host": DeviceType.CPU, "card": DeviceType.CUDA}[on]
    return SimpleNamespace(
        name=name, device_type=kind, time_range=SimpleNamespace(start=start, end=end), is_user_annotation=named
    )


def test_events_of_a_device_are_counted_and_kernels_at_the_same_time_once():
    events = [
        *(event(name, "host") for name in ("cudaLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync", "aten::add")),
        *(event("cudaStreamSynchronize", "host"), event("cudaDeviceSynchronize", "host")),
        *(event("void f<{lambda()#1}>", "card", 1000, 3000), event("g", "card", 2000, 4000)),
        *(event("Memcpy HtoD", "card", 5000, 6000), event("Optimizer.step#Adam.step", "card", 0, 9000)),
        event("a range", "card", 0, 9000, named=True),
    ]
    assert gpu_check.count_events(events, True) == {"launches": 3, "kernels": 3, "waits": 1, "busy ms": 4.0}
