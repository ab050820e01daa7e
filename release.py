"""Make the weights that ship: all three modules in half precision, without what only training needs."""

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from models.pretrained import MODULES, load_model
from utils import checkpoint, options
from utils.errors import InputError
from utils.runtime import run_main

KEPT = ("dataset", "images", "seed", "recipe", "epoch", "best")  # of the last checkpoint


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="best.pt of train_end2end.py, or several that hold its modules between them (the last one wins)",
    )
    parser.add_argument("--out", type=Path, default=options.SHIPPED_WEIGHTS, metavar="FILE", help="what to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    args = parser.parse_args(argv)
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out} is there already: name another --out, or add --overwrite")
    model = load_model(args.checkpoint)
    state = checkpoint.load(args.checkpoint[-1])
    modules = halved({name: getattr(model, name).state_dict() for name in MODULES})
    whole = {"stage": "end2end", "config": asdict(model.config), "modules": modules}
    checkpoint.save(args.out, {**{key: state[key] for key in KEPT}, **whole})
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
