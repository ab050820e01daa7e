"""Prove a GPU: labels equal to the CPU's, speed, launches and waits of all that trains and labels, and a resumed run.

Writes benchmark.md and benchmark.json into results/gpu-NAME. What matters most comes first; what no time is left for is
left out. A part that fails is reported in the tables, and the others continue. Exit status: 1 where labels, golden
numbers or a resumed run differ by more than the tables allow, or a part failed; 2 without a CUDA device.
"""

import argparse
import gc
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType

from data.batch import Batch, photo_batch
from data.datasets.synthetic import draw_face
from data.labels import CELEBAMASK
from data.source import DATASETS, FaceData
from data.view import View
from models.eagrnet import EAGRNetParser
from models.loading import SHIPPED_WEIGHTS, SHIPPED_WHOLE, load_for_inference
from models.parser import FaceParser
from models.stn_icnn.icnn import ICNN, ICNNConfig
from models.stn_icnn.localizer import ReleasedLocalizer, ResNetLocalizer
from models.stn_icnn.parts import PartNets
from models.stn_icnn.released import convert
from scoring import options
from tools.benchmark.__main__ import at_least_1
from tools.benchmark.inference import measure_inference, measure_predict
from tools.benchmark.measure import REPOSITORY, Row, Table, cell, clock, describe, time_in_turns, write
from tools.benchmark.setup import QUICK, Setup, drawn_faces, face_photos, parse_photos
from tools.benchmark.training import STAGES, Case, build_task, schedule, watch
from utils import files, runtime
from utils.cli import Parser
from utils.runtime import Machine, run_main

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")  # calls of the host
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
GOLDEN = 1e-3  # largest difference to golden numbers in float32, relative to the largest of them
# Percentage of pixels whose label may differ from the CPU's in float32. Seen on an H100 at 512 pixels: STN-iCNN 0.0013
# in float32 and 0.010 in bf16, DeepLabV3+ 0.014 and 0.13. Of EAGRNet, whose random weights leave labels near ties, the
# largest difference of logits, in percent of the largest logit (seen: 0.09).
TOLERANCES = {
    "stn_icnn": {"fp32": 0.01, "tf32": 0.05, "bf16": 0.2},
    "deeplab": {"fp32": 0.05, "tf32": 0.1, "bf16": 1.0},
    "eagrnet": {"fp32": 0.2, "tf32": 1.0, "bf16": 10.0},
}
SHIPPED = {"stn_icnn": SHIPPED_WEIGHTS, "deeplab": SHIPPED_WHOLE}
SLACK = 1e-3  # by which the weights of a resumed run may differ anyway, relative to their norm
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

    def compare(self, row: Row, name: str, most: float) -> Row:
        """The row with what is allowed of an entry, and whether it is kept to."""
        fine = row[name] <= most  # not for NaN
        if not fine:
            self.bad.append(", ".join(f"{key}: {cell(value)}" for key, value in row.items()) + f", allowed: {most:g}")
        return {**row, "allowed": most, "result": "ok" if fine else "beyond"}


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    device = runtime.pick_device(args.device)
    cuda = device.type == "cuda"
    about = {**describe(device), **versions(device)}
    out = args.out or Path("results") / f"gpu-{re.sub('[^a-z0-9]+', '-', about['device'].lower()).strip('-')}"
    files.make_folder(out, "--out")
    with tempfile.TemporaryDirectory(prefix="gpu_check", ignore_cleanup_errors=True) as scratch:
        machine = Machine(device, min(8, os.cpu_count() or 1) if cuda else 0, "bf16" if cuda else "off")
        usual = {"sizes": [(512, 512), (1024, 1024)], "seconds": 1.0, "steps": 20, "faces": 64}
        setup = Setup(machine, [SHIPPED_WEIGHTS], Path(scratch), **(QUICK if args.quick else usual))
        data = FaceData(args.dataset, args.data) if args.dataset else drawn_faces(setup)
        check = Check(setup, data, out, about, time.monotonic() + 60 * args.minutes)
        check.part("Golden numbers", "golden numbers", golden)
        for kind in TOLERANCES:
            check.part("Compared with the CPU in float32", kind, partial(parity, kind))
        for case in FIRST:
            check.part("Training", " ".join(map(str, case)), partial(train, case))
        check.part("Decoded photo to label map", "inference", partial(measured, measure_inference))
        for name in ("stn_icnn", "deeplab"):
            check.part("Launches of labelling", name, partial(launches, SHIPPED[name]))
        check.part("Killed and resumed", "resume", resume)
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


def versions(device: torch.device) -> Row:
    """Of driver, CUDA and cuDNN."""
    if device.type != "cuda":
        return {}
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return {"driver": driver, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}


@contextmanager
def arithmetic(device: torch.device, mode: str) -> Iterator[None]:
    """mode: "fp32", exact; "tf32" in convolutions; or "bf16"."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = mode != "fp32"
    try:
        with torch.inference_mode(), runtime.autocast(device, "bf16" if mode == "bf16" else "off"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def golden(check: Check, rows: list[Row]) -> str:
    """The released networks' own numbers, from weights made by formula (tests/golden.json)."""
    path, device = REPOSITORY / "tests" / "golden.json", check.setup.device
    if not path.exists():
        return "Left out: this is no checkout."
    formula, held = importlib.import_module("tests.formula"), json.loads(path.read_text())

    def released(module: nn.Module, names: dict[str, str], name: str) -> nn.Module:
        states = {e: formula.formula_state(held["official_state_dict_keys"][key]) for e, key in names.items()}
        module.load_state_dict(convert(states)[name])
        return module.eval().to(device)

    def compare(start: str, value: Tensor) -> None:
        entry = next(entry for name, entry in held["expected"].items() if name.startswith(start))
        wanted = torch.tensor(entry["value"])
        off = (value.flatten().cpu()[entry["index"]] - wanted).abs().max() / wanted.abs().max()
        rows.append(check.compare({"what": start.split(":")[0], "off by": off.item()}, "off by", GOLDEN))

    with arithmetic(device, "fp32"):
        coarse = released(ICNN(ICNNConfig()), {"model1": "model1"}, "coarse")
        logits = coarse(formula.formula_image(2, 3, 128, 128).to(device))
        compare("model1: image", logits)
        for kind, build in (("custom", ReleasedLocalizer), ("resnet18", ResNetLocalizer)):
            names = {"model1": "model1", "select_net": f"select_net.{kind}"}
            compare(f"select_net.{kind}", released(build(), names, "localizer")(logits.softmax(1)))
        crops = formula.formula_image(1, 18, 81, 81).view(1, 6, 3, 81, 81).to(device)
        compare("model2: image", released(PartNets(), {"model2": "model2"}, "parts")(crops)[0])
    return "Float32, convolutions without TF32; relative to the largest value."


def parity(kind: str, check: Check, rows: list[Row]) -> str | None:
    """Labels of some faces on the device and on the CPU; of EAGRNet the logits."""
    setup, side = check.setup, check.setup.face_size
    photos = face_photos(2, side, side) + [draw_face(5, k, side)[0] for k in range(1 if setup.quick else 6)]

    def labels_on(device: torch.device, mode: str) -> tuple[Tensor, Tensor | None]:
        parser: FaceParser
        if kind == "eagrnet":
            torch.manual_seed(0)
            parser = EAGRNetParser(EAGRNetParser.Config(size=64 if setup.quick else 473), CELEBAMASK).eval().to(device)
        else:  # for each mode anew: a parser may keep weights or graphs from the mode before
            parser = load_for_inference([SHIPPED[kind]], device)
        batch = photo_batch(photos, parser.labels).to(device)
        with arithmetic(device, mode):
            if isinstance(parser, EAGRNetParser):
                return parser.logits(View(batch).photo(parser.config.size)).float().cpu(), None
            labels_BHW, theta_BP23 = parser.parse(batch)
        return labels_BHW.cpu(), None if theta_BP23 is None else theta_BP23.float().cpu()

    wanted, theta = labels_on(torch.device("cpu"), "fp32")
    for mode, most in TOLERANCES[kind].items():
        found, moved = labels_on(setup.device, mode)
        row: Row = {"parser": kind, "in": mode}
        largest = (found - wanted).abs().max() / wanted.abs().max()
        row["off by %"] = 100 * (largest if kind == "eagrnet" else (found != wanted).double().mean()).item()
        if theta is not None and moved is not None:
            row["windows off by, pixels"] = (moved - theta).abs().max().item() * side / 2
        rows.append(check.compare(row, "off by %", most))
    return f"{len(photos)} faces of {side} pixels. Off by: pixels; of EAGRNet logits, of the largest one."


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
    return f"Of a step on batches at hand; loader: {setup.machine.workers} processes. Lines that wait: in {few} steps."


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
        row["ms"] = 1e3 * float(np.median(time_in_turns({"call": call}, setup.seconds)["call"]))
        rows.append(row)
        with observed(device, row, 1, row["ms"]):
            call()


def resume(check: Check, rows: list[Row]) -> str:
    """A training of stage 2 that is killed after its first epoch and resumed, and two that were left alone."""
    setup, faces = check.setup, drawn_faces(check.setup)
    command = [sys.executable, "train_stage2.py", "--recipe", "best", "--epochs", "3", "--dataset", faces.dataset]
    command += ["--data", str(faces.root), "--labels", "helen", "--cache", str(faces.cache), "--workers", "0"]
    command += ["--device", str(setup.device), "--batch-size", str(min(8, setup.faces // 2))]
    command += ["--crop-size", "17" if setup.quick else "81", "--run-dir"]
    folders = [setup.scratch / f"run-{name}" for name in ("whole", "again", "killed")]

    def run(folder: Path, *more: str) -> None:
        full = [*command, str(folder), *more]
        ended = subprocess.run(full, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        if ended.returncode:
            raise RuntimeError((ended.stderr.strip().splitlines() or ["train_stage2.py was killed"])[-1])

    def kill(folder: Path) -> int:
        log, child = folder / "log.jsonl", subprocess.Popen([*command, str(folder)], cwd=REPOSITORY)
        while child.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.02)
        child.kill()
        if child.wait() != -signal.SIGKILL:
            raise RuntimeError(f"the run that was to be killed ended with status {child.returncode}")
        return len(log.read_text().splitlines())

    with ThreadPoolExecutor() as pool:
        left_alone = [pool.submit(run, folder) for folder in folders[:2]]
        done = kill(folders[2])
        run(folders[2], "--resume")
        for future in left_alone:
            future.result()
    whole, again, resumed = (final_weights(folder / "last.pt") for folder in folders)
    apart, noise = (((other - whole).norm() / whole.norm()).item() for other in (resumed, again))
    row = {"what": f"killed after epoch {done} of 3", "weights off by": apart, "noise": noise}
    rows.append(check.compare(row, "weights off by", SLACK + 3 * noise))
    return "Relative to the norm of all weights; noise: of two runs that nobody killed. Stage 2, recipe best."


def final_weights(path: Path) -> Tensor:
    """All that a checkpoint has learned, in one vector; without batch statistics, whose scale is another one."""
    modules = torch.load(path, map_location="cpu", weights_only=True)["modules"]
    states = (state for module in modules.values() for state in sorted(module.items()))
    return torch.cat([value.double().flatten() for name, value in states if name.endswith(("weight", "bias"))])


@contextmanager
def observed(device: torch.device, row: Row, calls: int, ms: float) -> Iterator[None]:
    """Fills a row with what so many calls inside launch, and at which lines of this repository the host waits for the
    device. ms: that a call takes when nobody watches."""
    lines: Counter[str] = Counter()

    def note(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if "called a synchronizing" in str(message):
            lines[_line()] += 1

    cuda, activity = device.type == "cuda", torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, *([activity.CUDA] if cuda else [])]) as profiler:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                if cuda:
                    torch.cuda.set_sync_debug_mode("default")
        clock(device)
    counted = count_events(profiler.events() or [], cuda)
    busy_ms = counted.pop("busy ms", None)
    row.update({name: count / calls for name, count in counted.items()})
    row["card busy %"] = 100 * busy_ms / calls / ms if busy_ms else None
    row["lines that wait"] = dict(lines.most_common()) or None


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


def _line() -> str:
    """The innermost line of this repository that runs, outside of this file."""
    for path, number in ((Path(frame.filename), frame.lineno) for frame in reversed(traceback.extract_stack())):
        if path.is_relative_to(REPOSITORY) and "site-packages" not in path.parts and path != Path(__file__).resolve():
            return f"{path.relative_to(REPOSITORY)}:{number}"
    return "elsewhere"


if __name__ == "__main__":
    sys.exit(run_main(main))
