"""Input size of the coarse network: 64 x 64 or 128 x 128 pixels (paper Fig. 6).

For each size: F1 of the upsampled rough mask, and how far the windows of the old cropper and of the localizer miss.
"""

import argparse
import sys
from typing import Any

import reproduce
from experiments import common
from experiments.common import Result
from models.loading import read_weights
from models.stn_icnn.model import STNiCNN
from scoring.evaluation import Request
from scoring.metrics import headline
from training.options import add_recipe_option
from training.task import Plan
from utils.runtime import Machine, run_main
from utils.tables import markdown

NAME = "coarse_size"
STAGES = ("stage1", "cropper")


def main(argv: list[str] | None = None) -> int:
    cli = common.parser(__doc__)
    add_recipe_option(cli)
    common.add_training_options(cli, "stage 1 and of the cropper", 2)
    cli.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 128], metavar="N", help="sizes of the resized photo, pixels"
    )
    args = common.parse(cli, argv)
    setups = {size: common.setup(args, coarse_size=size) for size in args.sizes}
    plans = {  # all of them, before the first one takes an hour
        size: reproduce.plan_stages(reproduce.recipes_of(args, setup.data, STAGES), setup, args.runs / NAME / str(size))
        for size, setup in setups.items()
    }
    rows = [{"size": size, **score_size(size, plans[size], setup, args)} for size, setup in setups.items()]
    return common.write(NAME, args, argv, {"rows": rows}, table)


def score_size(size: int, plans: dict[str, Plan], setup: reproduce.Setup, args: argparse.Namespace) -> dict[str, Any]:
    """Train both stages, or what is left of them, for photos resized to ``size``, and score them on the split."""
    root = args.runs / NAME / str(size)
    best = {stage: reproduce.train_stage(stage, plan) for stage, plan in plans.items()}
    request = Request([best["stage1"]], setup.data, setup.machine, args.split, "none")
    result = reproduce.score(request, root / "scores" / args.split, f"coarse input {size} x {size}")
    weights = read_weights(best["cropper"])
    model = STNiCNN(weights.config)
    model.load(weights, ("coarse", "localizer"))
    found = windows(model.eval().to(setup.machine.device), args, setup.machine)
    return {"f1": headline(result), "windows": found}


def windows(model: STNiCNN, args: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """How far each cropper's windows miss on the split: cropper -> ``common.Misses.summary``."""
    misses = {name: common.Misses() for name in common.CROPPERS}
    with common.inference(machine):
        for batch in common.batches(common.open_split(args, model.labels), machine):
            truth_BP23, boxes_BP4 = model.windows_of(batch, "truth"), common.part_boxes(batch.labels_BHW)
            for name, crops in common.CROPPERS.items():
                theta_BP23 = model.windows_of(batch, crops)
                misses[name].add(theta_BP23, truth_BP23, boxes_BP4, batch.sizes_B2, batch.present_BP)
    return {name: found.summary() for name, found in misses.items()}


def table(result: Result) -> str:
    """Markdown: one line for each size."""
    rows = []
    for row in result["rows"]:
        off = [(row["windows"][name] or {}).get("pixels_mean") for name in common.CROPPERS]
        rows.append([row["size"], *row["f1"].values(), *off])
    off_by = [f"{name} off by, pixels" for name in common.CROPPERS]
    return markdown(["coarse size", "rough mask, overall", "strict", *off_by], rows, 3)


if __name__ == "__main__":
    sys.exit(run_main(main))
