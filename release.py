"""Make the weights that ship: an end-to-end checkpoint in half precision, without what only training needs."""

import hashlib
import sys
from pathlib import Path

import torch

from utils import checkpoint, options
from utils.errors import InputError
from utils.runtime import run_main

KEPT = ("stage", "config", "dataset", "images", "seed", "recipe", "epoch", "best")


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="best.pt of train_end2end.py")
    parser.add_argument("--out", type=Path, default=options.SHIPPED_WEIGHTS, metavar="FILE", help="what to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    args = parser.parse_args(argv)
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out} is there already: name another --out, or add --overwrite")
    state = checkpoint.load(args.checkpoint, ("end2end",))
    checkpoint.save(args.out, {**{key: state[key] for key in KEPT}, "modules": halved(state["modules"])})
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, SHA-256 {digest}")
    return 0


def halved(modules: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
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
