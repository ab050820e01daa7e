"""Prove a GPU: the tests of tests/gpu, and speed, launches and waits of all that trains and labels.

Writes benchmark.md and benchmark.json into results/gpu-NAME. What matters most comes first; what no time is left for is
left out. A part that fails is reported in the tables, and the others continue. Exit status: 1 where a test or a part
failed (labels, golden numbers or a resumed run that differ by more than the tests allow); 2 without a CUDA device.
"""

import argparse
import gc
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from data.batch import Batch
from data.source import DATASETS, FaceData
from models.loading import SHIPPED_WEIGHTS, SHIPPED_WHOLE, load_for_inference
from scoring import options
from tools.benchmark.__main__ import at_least_1
from tools.benchmark.inference import measure_inference, measure_predict
from tools.benchmark.measure import (
    QUICK,
    REPOSITORY,
    Row,
    Setup,
    Table,
    clock,
    describe,
    drawn_faces,
    face_photos,
    parse_photos,
    time_in_turns,
    write,
)
from tools.benchmark.training import STAGES, Case, build_task, schedule, watch
from utils import files, runtime
from utils.cli import Parser
from utils.runtime import Machine, run_main

TESTS = REPOSITORY / "tests" / "gpu"
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")  # calls of the host
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
FIRST = (Case("stage2", "best", "bf16", 16), Case("stage2", "best", "bf16", 64), Case("end2end", "best", "bf16", 16))
REST = (
    *(Case("end2end", "best", "bf16", 32), Case("deeplab", "best", "bf16"), Case("eagrnet", "best", "bf16")),
    *(Case("stage1", "best", "bf16"), Case("cropper", "best", "bf16")),
    *(Case(stage, "paper", "off") for stage in STAGES),
)
WATCHED = 3  # steps


@dataclass
class Check:
    """What is checked, until when, and what was found. bad: a line for all that ends in exit status 1."""

    setup: Setup
    data: FaceData
    out: Path
    about: Row
    until: float
    tables: dict[str, Table] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def part(self, title: str, what: str, measure: Callable[["Check", list[Row]], str | None]) -> None:
        """Adds to the table of this title. measure: appends rows and may return a note."""
        table, started = self.tables.setdefault(title, Table(title, [])), time.monotonic()
        if started > self.until:
            table.rows.append({"what": what, "result": "left out: no time"})
        else:
            try:
                gc.collect()
                if self.setup.device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(self.setup.device)
                self.tables[title] = table._replace(note=measure(self, table.rows) or table.note)
            except Exception as error:
                traceback.print_exc()
                failed = f"failed: {type(error).__name__}{runtime.first_line(error)}"
                table.rows.append({"what": what, "result": failed})
                self.bad.append(f"{what} {failed}")
        print(f"{what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        write(self.out, "GPU check", self.about, self.tables.values())


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    device = runtime.pick_device(args.device)
    cuda = device.type == "cuda"
    about = {**describe(device), "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    out = args.out or Path("results") / f"gpu-{re.sub('[^a-z0-9]+', '-', about['device'].lower()).strip('-')}"
    files.make_folder(out, "--out")
    with tempfile.TemporaryDirectory(prefix="gpu_check", ignore_cleanup_errors=True) as scratch:
        machine = Machine(device, min(8, os.cpu_count() or 1) if cuda else 0, "bf16" if cuda else "off")
        usual = {"sizes": [(512, 512), (1024, 1024)], "seconds": 1.0, "steps": 20, "faces": 64}
        setup = Setup(machine, [SHIPPED_WEIGHTS], Path(scratch), **(QUICK if args.quick else usual))
        data = FaceData(args.dataset, args.data) if args.dataset else drawn_faces(setup)
        check = Check(setup, data, out, about, time.monotonic() + 60 * args.minutes)
        check.part("Tests", "tests", tests)
        for case in FIRST:
            check.part("Training", " ".join(map(str, case)), partial(train, case))
        check.part("Decoded photo to label map", "inference", partial(measured, measure_inference))
        for weights in (SHIPPED_WEIGHTS, SHIPPED_WHOLE):
            check.part("Launches of labelling", weights.stem, partial(launches, weights))
        check.part("predict.py", "predict.py", partial(measured, measure_predict))
        for case in REST:
            check.part("Training", " ".join(map(str, case)), partial(train, case))
        paper = [row for row in check.tables["Training"].rows if row.get("recipe") == "paper"]
        if paper and all("faces/s with loader" in row for row in paper):
            check.part("The paper's schedule", "schedule", lambda check, rows: schedule(paper))
    print(write(out, "GPU check", about, check.tables.values()))
    for line in check.bad:
        print(f"NOT AS IT SHOULD BE: {line}", file=sys.stderr)
    return 1 if check.bad else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    cli = Parser(__doc__)
    cli.add_argument("--minutes", type=at_least_1, default=5, metavar="N", help="nothing is begun after so many")
    cli.add_argument("--device", default="cuda", help="cuda or cuda:N")
    cli.add_argument(
        "--dataset",
        choices=[name for name in DATASETS if DATASETS[name].labels],
        help="what to train on; default: synthetic faces",
    )
    cli.add_argument("--data", type=Path, metavar="DIR", help="the folder of --dataset")
    cli.add_argument("--out", type=Path, metavar="DIR", help="default: results/gpu-NAME, by the name of the card")
    cli.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # for the tests, on the CPU
    args = cli.parse_args(argv)
    options.check(argparse.Namespace(**{**vars(args), "dataset": args.dataset or "synthetic", "workers": 0}))
    return args


def tests(check: Check, rows: list[Row]) -> str:
    """Runs tests/gpu; what they record stands beside their results."""
    report = check.setup.scratch / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", str(TESTS), f"--junitxml={report}"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    if not report.exists():
        raise RuntimeError((ended.stderr or ended.stdout).strip().splitlines()[-1])
    for case in ElementTree.parse(report).iter("testcase"):
        row: Row = {"test": case.get("name"), "result": "passed"}
        for entry in case.iter():
            if entry.tag == "property":
                row[entry.get("name", "")] = entry.get("value")
            elif entry.tag in ("skipped", "failure", "error"):
                row["result"] = f"{entry.tag}: {entry.get('message', '').partition(chr(10))[0]}"
        if row["result"].startswith(("failure", "error")):
            check.bad.append(f"{row['test']}: {row['result']}")
        rows.append(row)
    return "tests/gpu, on the first card. Off by: pixels whose label is not the CPU's; of EAGRNet, see there."


def train(case: Case, check: Check, rows: list[Row]) -> str:
    """The real loop of a training, see ``tools.benchmark.training.watch``."""
    setup, device = check.setup, check.setup.device
    if setup.quick:
        case = case._replace(batch=2, amp="off")
    task, few = build_task(setup, case, check.data), min(WATCHED, setup.steps)
    row: Row = {"training": case.stage, "recipe": case.recipe, "amp": case.amp, "batch": task.plan.recipe.batch_size}
    rows.append(row)  # a failure leaves what was found

    def observe(batches: Iterator[Batch], row: Row) -> Iterator[Batch]:
        if device.type == "cuda":
            row["peak GB"] = torch.cuda.max_memory_allocated(device) / 1e9
        with observed(device, row, few, row["ms a step"]):
            yield from islice(batches, few)

    watch(task, setup.steps, row, observe, few)
    return f"Of a step on batches at hand; loader: {setup.machine.workers} processes."


def measured(measure: Callable[[Setup], list[Table]], check: Check, rows: list[Row]) -> str:
    """A section of the benchmark."""
    (found,) = measure(check.setup)
    rows += found.rows
    return found.note


def launches(weights: Path, check: Check, rows: list[Row]) -> None:
    """Launches and waits from decoded photos to labels on the host."""
    setup, device = check.setup, check.setup.device
    parser = load_for_inference([weights], device)
    height, width = setup.sizes[-1]
    for batch, precision in product(setup.batches, setup.precisions):
        call = partial(parse_photos, parser, face_photos(batch, height, width), device, precision)
        row: Row = {"parser": parser.kind, "photo": f"{height}×{width}", "batch": batch, "in": precision}
        row["ms"] = time_in_turns({"call": call}, setup.seconds)["call"]["median"]
        rows.append(row)
        with observed(device, row, 1, row["ms"]):
            call()


@contextmanager
def observed(device: torch.device, row: Row, calls: int, ms: float) -> Iterator[None]:
    """Fills a row with what so many calls inside launch. ms: that a call takes when nobody watches."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        yield
        clock(device)
    counted = count_events(profiler.events() or [], cuda)
    busy_ms = counted.pop("busy ms", None)
    row.update({name: count / calls for name, count in counted.items()})
    row["card busy %"] = 100 * busy_ms / calls / ms if busy_ms else None


def count_events(events: Iterable[Any], cuda: bool) -> Row:
    """launches: of kernels, copies and graphs by the host; on the CPU, operators that call no other. On CUDA also
    kernels: that the device has run, copies included; waits: of the host for the device; busy ms: of the device."""
    if not cuda:
        return {"launches": sum(not e.cpu_children and e.name.startswith("aten::") for e in events)}
    events = list(events)
    host = Counter(e.name for e in events if e.device_type == DeviceType.CPU)
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    ranges = ("Optimizer.", "ProfilerStep")  # named ones, in which kernels lie
    spans = sorted((e.time_range.start, e.time_range.end) for e in kernels if not e.name.startswith(ranges))
    busy, last = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    launches = sum(count for name, count in host.items() if name.startswith(LAUNCHES))
    waits = sum(count for name, count in host.items() if name in WAITS)
    return {"launches": launches, "kernels": len(spans), "waits": waits, "busy ms": busy / 1e3}


if __name__ == "__main__":
    sys.exit(run_main(main))
