"""Measures speed and memory, beside a plain implementation of the paper's release: tables and JSON."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scoring import options
from tools.benchmark import inference, training
from tools.benchmark.measure import QUICK, Setup, Table, describe, write
from utils import files
from utils.cli import Parser
from utils.runtime import run_main

SECTIONS: dict[str, Callable[[Setup], list[Table]]] = {
    "inference": inference.measure_inference,
    "training": training.measure_training,
    "memory": inference.measure_memory,
    "predict": inference.measure_predict,
    "export": inference.measure_export,
}


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    machine = options.machine(args)
    torch.manual_seed(0)  # of weights and photos that are only timed
    files.make_folder(args.out, "--out")
    about = {**describe(machine.device), "quick": args.quick, "workers": args.workers}
    checkpoints = [path.resolve() for path in options.checkpoints(args)]
    given = {name: getattr(args, name) for name in ("sizes", "batches", "steps", "seconds") if getattr(args, name)}
    given = {**(QUICK if args.quick else {}), **given}
    found: list[Table] = []
    with tempfile.TemporaryDirectory(prefix="benchmark", ignore_cleanup_errors=True) as scratch:
        setup = Setup(machine, checkpoints, Path(scratch), **given)
        for name in args.only or SECTIONS:
            started = time.monotonic()
            found += SECTIONS[name](setup)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            text = write(args.out, "Benchmark", about, found)  # so that an interrupted run leaves what it has
    print(text, end="")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    cli = Parser(__doc__)
    cli.add_argument("--out", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="folder for the results")
    cli.add_argument("--only", nargs="+", choices=tuple(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    cli.add_argument("--quick", action="store_true", help="smoke test: tiny sizes, one round")
    options.add_checkpoint_option(cli)
    group = cli.add_argument_group("what is measured")
    sizes = "photo sizes; one number for squares (default: 256 512 1024 2000x3000)"
    group.add_argument("--sizes", nargs="+", type=read_size, metavar="HxW", help=sizes)
    group.add_argument("--batches", nargs="+", type=at_least_1, metavar="N", help="batch sizes (default: 1 8)")
    group.add_argument("--steps", type=at_least_1, metavar="N", help="training steps (default: 3)")
    group.add_argument("--seconds", type=at_least_1, metavar="S", help="approximate length of each timing (default: 6)")
    options.add_machine_options(cli)
    args = cli.parse_args(argv)
    options.check(args)
    return args


def at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def read_size(text: str) -> tuple[int, int]:
    """ "512" or "2000x3000" as (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 16 <= int(side) <= 16384 for side in sides):
        raise argparse.ArgumentTypeError(f"{text} must be like 512 or 2000x3000 (height x width), from 16 to 16384")
    return int(sides[0]), int(sides[-1])


if __name__ == "__main__":
    sys.exit(run_main(main))
