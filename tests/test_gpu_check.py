"""The GPU check, all of it on the CPU at tiny sizes, and what it makes of a device's events."""

import importlib
import json
import math
import os
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.autograd import DeviceType

from models import eagrnet
from tests.fixtures import fork
from tests.test_eagrnet import THIN
from tools import gpu_check
from tools.benchmark.training import Case


class Process:
    """In place of subprocess.Popen: a copy of this process, which need not import everything once more."""

    def __init__(self, command: list[str], **_: object) -> None:
        (module, *options), self.status = command[1:], None
        self.child = fork(lambda: importlib.import_module(module.removesuffix(".py")).main(options))

    def poll(self, how: int = os.WNOHANG) -> int | None:
        if self.status is None and (ended := os.waitpid(self.child, how))[0]:
            self.status = os.waitstatus_to_exitcode(ended[1])
        return self.status

    def kill(self) -> None:
        os.kill(self.child, signal.SIGKILL)

    def wait(self) -> int | None:
        return self.poll(0)


def test_every_part_runs_and_is_written(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "SHIPPED_WEIGHTS", weights)
    monkeypatch.setitem(gpu_check.SHIPPED, "stn_icnn", weights)
    monkeypatch.setitem(gpu_check.TOLERANCES, "deeplab", {"bf16": 1.0})
    monkeypatch.setitem(gpu_check.TOLERANCES, "eagrnet", {"tf32": 1.0})
    monkeypatch.setattr(gpu_check, "FIRST", [Case("stage2", "paper", "off")])
    monkeypatch.setattr(gpu_check, "REST", [Case(stage, "best", "off") for stage in ("eagrnet", "none")])
    monkeypatch.setattr(eagrnet, "LAYERS", THIN)
    run = lambda command, **_: SimpleNamespace(returncode=Process(command).wait())  # noqa: E731
    monkeypatch.setattr(gpu_check, "subprocess", SimpleNamespace(Popen=Process, run=run))
    out = tmp_path / "out"
    assert gpu_check.main(["--quick", "--device", "cpu", "--minutes", "60", "--out", str(out)]) == 1
    tables = {table["title"]: table for table in json.loads((out / "benchmark.json").read_text())["tables"]}
    *trained, failed = tables["Training"]["rows"]
    assert failed == {"what": "none best off None", "result": "failed: KeyError ('none')"}
    assert [row["training"] for row in trained] == ["stage2", "eagrnet"]
    assert all(row["launches"] > 100 and row["faces/s with loader"] > 0 for row in trained)
    assert "250,000 views" in tables["The paper's schedule"]["note"]
    assert [row["what"] for row in tables["Golden numbers"]["rows"]] == [
        *("model1", "select_net.custom", "select_net.resnet18", "model2")
    ]
    for title, rows in (("Golden numbers", 4), ("Compared with the CPU in float32", 5), ("Killed and resumed", 1)):
        assert [row["result"] for row in tables[title]["rows"]] == ["ok"] * rows
    assert tables["Killed and resumed"]["rows"][0]["weights off by"] == 0
    assert len(tables["Decoded photo to label map"]["rows"]) == len(tables["Launches of labelling"]["rows"]) == 4
    assert "failed: KeyError" in (out / "benchmark.md").read_text()


def test_differences_beyond_what_is_allowed_are_told_of():
    check = gpu_check.Check(None, None, Path(), {}, until=0.0)
    results = [check.compare({"what": "a", "off by": value}, "off by", 3.0)["result"] for value in (2.0, 4.0, math.nan)]
    assert results == ["ok", "beyond", "beyond"]
    assert check.bad == ["what: a, off by: 4, allowed: 3", "what: a, off by: nan, allowed: 3"]


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


def test_a_wait_is_told_with_the_line_of_ours_that_it_is_at():
    row: dict = {}
    with gpu_check.observed(torch.device("cpu"), row, 2, 1.0):
        for message in ("called a synchronizing CUDA operation", "called a synchronizing CUDA operation", "other"):
            warnings.warn(message, stacklevel=1)
        torch.ones(2).add(1)
    ((line, count),) = row["lines that wait"].items()
    assert line.startswith("tests/test_gpu_check.py:")
    assert count == 2
    assert 0 < row["launches"] < 10
