"""Tests a GPU with tests/gpu, and measures the speed of training and inference.

Writes benchmark.md and benchmark.json into results/gpu-NAME. The most important parts run first; parts for which no
time is left are skipped. A part that fails is reported in the tables, and the others continue. Exit status: 1 if a test
or a part failed (labels, golden numbers or a resumed run differ by more than the tests allow); 2 without a CUDA device.
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
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch

from models.loading import SHIPPED_WEIGHTS
from tools.benchmark.__main__ import at_least_1
from tools.benchmark.inference import measure_inference, measure_predict
from tools.benchmark.measure import QUICK, REPOSITORY, Row, Setup, Table, describe, write
from tools.benchmark.training import Case, measure_training
from utils import files, runtime
from utils.cli import Parser
from utils.runtime import Machine, run_main

FAILED = ("failed", "failure", "error")  # how results of parts and of tests begin
TESTS = REPOSITORY / "tests" / "gpu"
FIRST = (Case("stage2", "best", "bf16", 16), Case("stage2", "best", "bf16", 64), Case("end2end", "best", "bf16", 16))
REST = (
    *(Case("end2end", "best", "bf16", 32), Case("deeplab", "best", "bf16"), Case("eagrnet", "best", "bf16")),
    *(Case("stage1", "best", "bf16"), Case("cropper", "best", "bf16")),
)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    device = runtime.pick_device(args.device)
    cuda = device.type == "cuda"
    about = {**describe(device), "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    out = args.out or Path("results") / f"gpu-{re.sub('[^a-z0-9]+', '-', about['device'].lower()).strip('-')}"
    files.make_folder(out, "--out")
    tables: dict[str, Table] = {}
    until = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory(prefix="gpu_check", ignore_cleanup_errors=True) as scratch:
        machine = Machine(device, min(8, os.cpu_count() or 1) if cuda else 0, "bf16" if cuda else "off")
        usual = {"sizes": [(512, 512), (1024, 1024)], "seconds": 1.0, "steps": 20}
        setup = Setup(machine, [SHIPPED_WEIGHTS], Path(scratch), **(QUICK if args.quick else usual))
        for what, measure in parts().items():
            started, problem = time.monotonic(), "no time was left"
            found: list[Table] = []
            if started < until:
                try:
                    found, problem = measure(setup), ""
                except Exception as error:
                    traceback.print_exc()
                    problem = f"failed: {type(error).__name__}{runtime.first_line(error)}"
            if problem:
                found = [Table("Left out", [{"what": what, "result": problem}])]
            for table in found:
                before = tables.get(table.title, table._replace(rows=[]))
                tables[table.title] = table._replace(rows=before.rows + table.rows)
            print(f"{what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            text = write(out, "GPU check", about, tables.values())
            gc.collect()
    print(text)
    bad = [row for table in tables.values() for row in table.rows if str(row.get("result")).startswith(FAILED)]
    for row in bad:
        print(f"NOT AS IT SHOULD BE: {row['what']}: {row['result']}", file=sys.stderr)
    return 1 if bad else 0


def parts() -> dict[str, Callable[[Setup], list[Table]]]:
    """What is done, in this order."""

    def trainings(cases: tuple[Case, ...]) -> dict[str, Callable[[Setup], list[Table]]]:
        return {" ".join(map(str, case)): partial(measure_training, cases=[case]) for case in cases}

    def papers(setup: Setup) -> list[Table]:
        return measure_training(replace(setup, machine=replace(setup.machine, amp="off")))

    labelling = {"inference": measure_inference, "predict.py": measure_predict}
    return {"tests": tests, **trainings(FIRST), **labelling, "the paper's training": papers, **trainings(REST)}


def parse(argv: list[str] | None) -> argparse.Namespace:
    cli = Parser(__doc__)
    cli.add_argument("--minutes", type=at_least_1, default=5, metavar="N", help="start no further part after N minutes")
    cli.add_argument("--device", default="cuda", help="cuda or cuda:N")
    cli.add_argument("--out", type=Path, metavar="DIR", help="default: results/gpu-NAME, by the name of the GPU")
    cli.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # for the tests, on the CPU
    return cli.parse_args(argv)


def tests(setup: Setup) -> list[Table]:
    """Runs tests/gpu; what they record stands beside their results."""
    report = setup.scratch / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", str(TESTS), f"--junitxml={report}"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    if not report.exists():
        raise RuntimeError((ended.stderr or ended.stdout).strip().splitlines()[-1])
    rows: list[Row] = []
    for case in ElementTree.parse(report).iter("testcase"):
        row: Row = {"what": case.get("name"), "result": "passed"}
        for entry in case.iter():
            if entry.tag == "property":
                row[entry.get("name", "")] = entry.get("value")
            elif entry.tag in ("skipped", "failure", "error"):
                row["result"] = f"{entry.tag}: {entry.get('message', '').partition(chr(10))[0]}"
        rows.append(row)
    note = "tests/gpu, on the first card. Off by: pixels whose label is not the CPU's; of EAGRNet, see there."
    return [Table("Tests", rows, note)]


if __name__ == "__main__":
    sys.exit(run_main(main))
