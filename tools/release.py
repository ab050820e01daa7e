"""Make weights to publish: all networks of a parser in half precision, without what only training needs."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from models.loading import SHIPPED_WEIGHTS, load_parser
from utils import checkpoint, files
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import run_main

# What is told of the training, from the last checkpoint; older ones lack some.
KEPT = ("dataset", "partition", "face_size", "images", "seed", "recipe", "epoch", "best")


def main(argv: list[str] | None = None) -> int:
    options = Parser(__doc__)
    options.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="best.pt of a training, or several that hold the parser's networks between them (the last one wins)",
    )
    options.add_argument("--out", type=Path, default=SHIPPED_WEIGHTS, metavar="FILE", help="what to write")
    options.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    args = options.parse_args(argv)
    if os.path.isdir(args.out):
        raise InputError(f"--out {args.out} is a folder: name a file")
    if os.path.exists(args.out) and not args.overwrite:
        raise InputError(f"{args.out} is there already: name another --out, or add --overwrite")
    release(args.checkpoint, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, SHA-256 {files.sha256(args.out)}")
    return 0


def release(checkpoints: list[Path], out: Path) -> None:
    """Write the parser that the checkpoints hold. Raises InputError for files that cannot be used or written."""
    parser = load_parser(checkpoints)
    if not parser.networks:
        raise InputError(f"--checkpoint {' '.join(map(str, checkpoints))} are of two parsers: release each by itself")
    state = checkpoint.load(checkpoints[-1])
    whole = {
        "stage": state["stage"] if len(checkpoints) == 1 else "end2end",  # STN-iCNN alone comes in several files
        "parser": parser.kind,
        "labels": parser.labels.name,
        "config": asdict(parser.config),
        "modules": halved({name: getattr(parser, name).state_dict() for name in parser.networks}),
    }
    checkpoint.save(out, {**{key: state[key] for key in KEPT if key in state}, **whole})


def halved(modules: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """State dicts with float16 in place of float32; loading turns them back. Raises InputError for what overflows."""
    half = {
        name: {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
        for name, weights in modules.items()
    }
    for name, weights in half.items():
        for key, value in weights.items():
            if not torch.isfinite(value).all():
                raise InputError(f"{name}.{key} does not fit into half precision: ship the checkpoint itself")
    return half


if __name__ == "__main__":
    sys.exit(run_main(main))
