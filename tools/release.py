"""Writes a parser's weights for publication: all networks in half precision, without training state."""

import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from models.loading import SHIPPED_WEIGHTS, load_parser
from models.parser import FaceParser
from scoring.options import refuse_existing
from utils import checkpoint, files
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import run_main

# What is kept of the training, from the last checkpoint; older ones lack some.
KEPT = ("dataset", "partition", "face_size", "images", "recipe")
KEPT_OF_ONE = ("seed", "epoch", "best")  # an average has none of its own


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    what = "best.pt of a run, or several that together hold all networks (the last one wins)"
    cli.add_argument("--checkpoint", type=Path, required=True, nargs="+", metavar="FILE", help=what)
    cli.add_argument(
        "--average", action="store_true", help="average the weights of several runs that started from the same weights"
    )
    cli.add_argument("--out", type=Path, default=SHIPPED_WEIGHTS, metavar="FILE", help="file to write")
    cli.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = cli.parse_args(argv)
    refuse_existing("--out", args.out, args.overwrite)
    release(args.checkpoint, args.out, args.average)
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, SHA-256 {files.sha256(args.out)}")
    return 0


def release(checkpoints: list[Path], out: Path, average: bool = False) -> None:
    """Write the parser that the checkpoints hold, or the mean of theirs. Raises InputError for files that cannot be
    used or written."""
    parser = averaged(checkpoints) if average else load_parser(checkpoints)
    if not parser.networks:
        raise InputError(f"--checkpoint {' '.join(map(str, checkpoints))} are of two parsers: release each separately")
    state = checkpoint.load(checkpoints[-1])
    alone = len(checkpoints) == 1 or average
    whole = {
        "stage": state["stage"] if alone else "end2end",  # STN-iCNN comes in several files
        "parser": parser.kind,
        "labels": parser.labels.stored,
        "config": asdict(parser.config),
        "modules": halved({name: getattr(parser, name).state_dict() for name in parser.networks}),
    }
    kept = KEPT if average else KEPT + KEPT_OF_ONE
    checkpoint.save(out, {**{key: state[key] for key in kept if key in state}, **whole})


def averaged(checkpoints: list[Path]) -> FaceParser:
    """A parser whose weights and batch statistics are the mean of the checkpoints', each of which holds all networks.

    For trainings that started from the same weights: their mean often scores higher than each of them (Izmailov et al.
    2018; Wortsman et al. 2022).
    Raises InputError for a single checkpoint and for parsers that differ.
    """
    if len(checkpoints) < 2:
        raise InputError("--average needs two checkpoints or more: give the others after --checkpoint")
    parsers = [load_parser([path]) for path in checkpoints]
    first = parsers[0]
    mean = AveragedModel(first, use_buffers=True)
    for path, parser in zip(checkpoints, parsers, strict=True):
        if (parser.kind, parser.labels, parser.config) != (first.kind, first.labels, first.config):
            raise InputError(f"--average: {path} holds another parser, label set or config than {checkpoints[0]}")
        mean.update_parameters(parser)
    assert isinstance(mean.module, FaceParser)
    return mean.module


def halved(modules: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """State dicts with float16 instead of float32; loading turns them back. Raises InputError for what overflows."""
    half = {}
    for name, weights in modules.items():
        half[name] = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
        for key, value in half[name].items():
            if not torch.isfinite(value).all():
                raise InputError(f"{name}.{key} does not fit into half precision: ship the checkpoint itself")
    return half


if __name__ == "__main__":
    sys.exit(run_main(main))
