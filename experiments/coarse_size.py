"""How large must the photo be that the coarse network sees: 64 x 64 pixels, or 128 x 128 (paper Fig. 6)?

For each size: F1 of the enlarged rough mask, and how far the windows of the old cropper and of the localizer miss.
"""

import argparse
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import reproduce
from experiments import common
from experiments.common import Result
from models.loading import read_weights
from models.stn_icnn.baseline import part_boxes
from models.stn_icnn.model import STNiCNN
from scoring.metrics import headline
from training.options import add_recipe_option
from training.recipes import Recipe
from utils.runtime import Machine, run_main
from utils.tables import markdown

NAME = "coarse_size"
STAGES = ("stage1", "cropper")


def main(argv: list[str] | None = None) -> int:
    cli = common.parser(__doc__)
    add_recipe_option(cli)
    common.add_training_options(cli, "stage 1 and of the cropper", 2)
    cli.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 128], metavar="N", help="sides of the resized photo, pixels"
    )
    cli.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    args = common.parse(cli, argv)
    common.configs_of_sizes("coarse_size", args.sizes)
    recipes = common.recipes_of_stages(args, STAGES)
    rows = [score_size(size, recipes, args) for size in args.sizes]
    return common.write(NAME, args, argv, {"rows": rows}, table, draw)


def score_size(size: int, recipes: dict[str, Recipe], args: argparse.Namespace) -> dict[str, Any]:
    """Train both stages, or what is left of them, for photos resized to ``size``; the size's row."""
    setup = common.setup(args, coarse_size=size, crop_size=args.crop_size)
    root = args.runs / NAME / str(size)
    best = reproduce.train_stages(recipes, setup, root)
    result = common.score(setup, best["stage1"], "none", root, args.split, f"coarse input {size} x {size}")
    weights = read_weights(best["cropper"])
    model = STNiCNN(weights.config)
    model.load(weights, ("coarse", "localizer"))
    return {
        "size": size,
        "f1": headline(result),
        "paper": result["paper"],
        "windows": windows(model.eval().to(setup.machine.device), args, setup.machine),
        "config": asdict(model.config),
        **common.cost(model.config, ("coarse", "localizer")),
    }


def windows(model: STNiCNN, args: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """How far each cropper's windows miss on the split: cropper -> ``common.summary``."""
    found: dict[str, list[common.Misses]] = {name: [] for name in common.CROPPERS}
    present = []
    with common.inference(machine):
        for batch in common.batches(common.open_split(args, model.labels), machine):
            truth_BP23, boxes_BP4 = model.windows_of(batch, "truth"), part_boxes(batch.labels_BHW)
            present.append(batch.present_BP.cpu().numpy())
            for name, crops in common.CROPPERS.items():
                theta_BP23 = model.windows_of(batch, crops)
                found[name].append(common.misses(theta_BP23, truth_BP23, boxes_BP4, batch.sizes_B2))
    present_NP = np.concatenate(present)
    return {name: common.summary(common.join(found[name]), present_NP) for name in common.CROPPERS}


def table(result: Result) -> str:
    """Markdown: one line for each size."""
    header = ["coarse input", "GFLOP", "mask enlarged, overall", "strict"]
    for name in common.CROPPERS:
        header += [f"{name}: off by, pixels", "windows missed"]
    rows = []
    for row in result["rows"]:
        cells = [f"{row['size']}×{row['size']}", row["gflop"], *row["f1"].values()]
        for name in common.CROPPERS:
            missed = row["windows"][name] or {}
            cells += [missed.get("pixels_mean"), missed.get("miss_rate")]
        rows.append(cells)
    return markdown(header, rows)


def draw(result: Result) -> Figure:
    """Bars: F1 of the enlarged mask; how far the windows' centres are off."""
    figure, (f1, off) = common.panels(2)
    rows = result["rows"]
    names = [str(row["size"]) for row in rows]
    ticks = np.arange(len(rows))
    for k, which in enumerate(common.HEADLINES):
        f1.bar(ticks + 0.4 * k - 0.2, [row["f1"][which] or 0 for row in rows], 0.38, label=which)
    for k, (name, colour) in enumerate(zip(common.CROPPERS, common.COLOURS, strict=True)):
        distances = [(row["windows"][name] or {}).get("pixels_mean", 0) for row in rows]
        off.bar(ticks + 0.4 * k - 0.2, distances, 0.38, label=name, color=colour)
    f1.set(title="coarse mask enlarged", ylabel="F1")
    off.set(title="centres of the windows", ylabel="off by, pixels of the photo, mean")
    for ax in (f1, off):
        ax.set_xticks(ticks, names)
        ax.set_xlabel("side of the coarse input, pixels")
        ax.margins(y=0.25)
        ax.legend(fontsize=8, ncols=2)
    return figure


if __name__ == "__main__":
    sys.exit(run_main(main))
