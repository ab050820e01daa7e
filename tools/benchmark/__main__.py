"""Speed and memory, ours beside a plain reference that works as the paper's release does: tables, JSON and a plot."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scoring import options
from tools.benchmark import inference, training
from tools.benchmark.measure import Rounds, Table
from tools.benchmark.setup import Setup
from utils import files, runtime, tables
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import run_main

SECTIONS: dict[str, Callable[[Setup], list[Table]]] = {
    "inference": inference.measure_inference,
    "steps": inference.measure_steps,
    "training": training.measure_training,
    "cache": training.measure_cache,
    "memory": training.measure_memory,
    "scaling": inference.measure_scaling,
    "distributed": training.measure_distributed,
    "predict": inference.measure_predict,
    "export": inference.measure_export,
}


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    machine = options.machine(args)
    device = machine.device
    torch.manual_seed(args.seed)
    fast = args.amp == "bf16" or (args.amp == "auto" and runtime.has_fast_bf16(device))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {args.out} cannot be made ({error.strerror}): name another folder") from error
    found: dict[str, list[Table]] = {}
    about = describe(args, device)
    with tempfile.TemporaryDirectory(prefix="benchmark", dir=args.scratch, ignore_cleanup_errors=True) as scratch:
        setup = Setup(
            machine=machine,
            checkpoints=[path.resolve() for path in options.checkpoints(args)],
            precisions=("fp32", "bf16") if fast else ("fp32",),
            sizes=args.sizes or [read_size(text) for text in (["96"] if args.quick else SIZES)],
            batches=args.batches or ([1, 2] if args.quick else [1, 8, 32, 128]),
            faces=args.faces or (8 if args.quick else 1000 if device.type == "cuda" else 400),
            face_size=96 if args.quick else 512,
            steps=args.steps or (4 if args.quick else 150 if device.type == "cuda" else 5),
            batch_size=args.batch_size or (4 if args.quick else 32),
            rounds=Rounds(0.0, 1, 1) if args.quick else Rounds(args.seconds, 5, 50),
            limit=args.limit,
            quick=args.quick,
            out=args.out,
            scratch=Path(scratch),
        )
        training.check(setup)
        for name in args.only or SECTIONS:
            started = time.monotonic()
            found[name] = SECTIONS[name](setup)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            write(args.out, about, found)  # so that an interrupted run leaves what it has
    print(markdown(about, found))
    return 0


SIZES = ("256", "512", "1024", "2000x3000")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="where the results go")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: does everything work?")
    options.add_checkpoint_option(parser)
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--sizes", nargs="+", metavar="HxW", help=f"photos; one number for squares (default: {' '.join(SIZES)})"
    )
    group.add_argument("--batches", nargs="+", type=int, metavar="N", help="photos at once (default: 1 8 32 128)")
    group.add_argument("--faces", type=int, metavar="N", help="training faces (default: 400, on a GPU 1000)")
    group.add_argument("--steps", type=int, metavar="N", help="training steps to time (default: 5, on a GPU 150)")
    group.add_argument("--seconds", type=float, default=10.0, metavar="S", help="about how long each timing lasts")
    group.add_argument("--limit", type=float, default=180.0, metavar="S", help="leave out timings that last longer")
    group.add_argument("--scratch", type=Path, metavar="DIR", help="where temporary files go (default: the system's)")
    options.add_machine_options(parser)
    args = parser.parse_args(argv)
    options.check(args)
    problems = [
        f"--{name} {value:g}: must be {rule}"
        for name, value, holds, rule in (
            ("faces", args.faces or 0, (args.faces is None or args.faces >= 1), "at least 1"),
            ("steps", args.steps or 0, (args.steps is None or args.steps >= 1), "at least 1"),
            ("seconds", args.seconds, args.seconds > 0, "more than 0"),
            ("limit", args.limit, args.limit > 0, "more than 0"),
        )
        if not holds
    ]
    problems += [f"--batches {batch}: must be at least 1" for batch in args.batches or [] if batch < 1]
    if args.scratch and not args.scratch.is_dir():
        problems.append(f"--scratch {args.scratch}: no such folder")
    if problems:
        raise InputError("; ".join(problems))
    args.sizes = [read_size(text) for text in args.sizes or []]
    return args


def read_size(text: str) -> tuple[int, int]:
    """ "512" or "2000x3000" as (height, width). Raises InputError."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 16 <= int(side) <= 16384 for side in sides):
        raise InputError(f"--sizes {text}: must be like 512 or 2000x3000 (height x width), sides from 16 to 16384")
    return int(sides[0]), int(sides[-1])


def describe(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The machine and the run, for the head of the results."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
        cpu = next(line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "git": runtime.git_revision(),
        "quick": args.quick,
        "workers": args.workers,
    }


def write(out: Path, about: dict[str, Any], found: dict[str, list[Table]]) -> None:
    """benchmark.json and benchmark.md."""
    sections = {name: [table._asdict() for table in section] for name, section in found.items()}
    files.write_text(out / "benchmark.json", json.dumps({"about": about, "sections": sections}, indent=1) + "\n")
    files.write_text(out / "benchmark.md", markdown(about, found) + "\n")


def markdown(about: dict[str, Any], found: dict[str, list[Table]]) -> str:
    """One table for each measurement; a spread as its median (quartiles)."""
    lines = ["# Benchmark", "", ", ".join(f"{key}: {value}" for key, value in about.items())]
    for table in (table for section in found.values() for table in section):
        lines += ["", f"## {table.title}", ""]
        columns = list(dict.fromkeys(key for row in table.rows for key in row))
        if columns:
            rows = [[cell(row.get(column)) for column in columns] for row in table.rows]
            lines += [tables.markdown(columns, rows).rstrip("\n")]
        if table.note:
            lines += [*([""] if columns else []), table.note]
    return "\n".join(lines)


def cell(value: Any) -> str | None:
    """A value in few digits; a spread as its median (quartiles)."""
    if isinstance(value, dict):
        return f"{cell(value['median'])} ({cell(value['q1'])}–{cell(value['q3'])})"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return None if value is None else str(value)


if __name__ == "__main__":
    sys.exit(run_main(main))
