"""A coarse network that sees 64 x 64 pixels against one that sees 128 x 128 (paper Fig. 6): its enlarged mask's F1, and
how far the windows of the old cropper and of the STN's localizer miss."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import reproduce
from data.augment import whole
from experiments import common
from models.pretrained import load_model
from models.stn_icnn import STNiCNN
from utils import options, runtime
from utils.parsing import find_windows, true_theta
from utils.runtime import run_main

NAME = "coarse_size"
STAGES = ("stage1", "cropper")


def main(argv: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    options.add_recipe_option(parser)
    common.add_training_options(parser, "stage 1 and of the cropper", 2)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 128], metavar="N", help="sides of the stretched photo, pixels"
    )
    parser.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    args = common.parse(parser, argv)
    device = runtime.pick_device(args.device)
    epochs = common.epochs_of_stages(args, STAGES)
    words = reproduce.flags(args, *reproduce.DATA, *reproduce.MACHINE, "recipe", "batch_size")
    rows = []
    for size in args.sizes:
        root = args.runs / NAME / str(size)
        best: dict[str, Path] = {}
        for stage in STAGES:
            own = {"coarse_size": size} if stage == "stage1" else {"crop_size": args.crop_size}
            more = reproduce.flags(args, **own, epochs=epochs[stage])
            best[stage] = common.train(stage, [*words, *more, *reproduce.from_earlier(stage, best)], root / stage)
        result = common.score(args, [best["stage1"]], "none", root / "scores" / args.split)
        model = load_model([best["cropper"]], ("coarse", "localizer")).to(device)
        rows.append(
            {
                "size": size,
                "f1": common.headline(result),
                "paper": result["paper"],
                "windows": windows(model, args, device),
                "config": asdict(model.config),
                **common.cost(model.config, ("coarse", "localizer")),
            }
        )
    common.write(NAME, NAME, args, argv, {"split": args.split, "rows": rows}, draw, table)
    return 0


def windows(model: STNiCNN, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """How far each cropper's windows miss on the split: cropper -> ``common.summary``."""
    faces = options.open_split(args, args.split)
    found: dict[str, list[common.Misses]] = {name: [] for name in common.CROPPERS}
    present = []
    with torch.inference_mode(), runtime.autocast(device, args.amp):
        for batch in common.batches(args, faces, device):
            logits_B9SS = model.coarse(whole(batch, None, model.config.coarse_size))
            truth_BP23, boxes_BP4 = true_theta(batch, model), common.part_boxes(batch.labels_BHW)
            present.append(batch.present_BP.cpu().numpy())
            for name, crops in common.CROPPERS.items():
                theta_BP23 = find_windows(model, batch, crops, logits_B9SS)
                found[name].append(common.misses(theta_BP23, truth_BP23, boxes_BP4, batch.sizes_B2))
    present_NP = np.concatenate(present)
    return {name: common.summary(common.join(found[name]), present_NP) for name in common.CROPPERS}


def table(result: dict[str, Any]) -> str:
    """Markdown: one line for each size."""
    header = ["coarse input", "GFLOP", "mask enlarged, overall", "strict"]
    for name in common.CROPPERS:
        header += [f"{name}: off by, pixels", "windows missed"]
    rows = []
    for row in result["rows"]:
        cells = [f"{row['size']}×{row['size']}", row["gflop"], row["f1"]["overall"], row["f1"]["strict"]]
        for name in common.CROPPERS:
            of = row["windows"][name] or {}
            cells += [of.get("pixels_mean"), of.get("miss_rate")]
        rows.append(cells)
    return common.markdown(header, rows)


def draw(result: dict[str, Any]) -> Figure:
    """Bars: F1 of the enlarged mask; how far the windows' centres are off."""
    figure, (f1, off) = common.panels(2)
    rows = result["rows"]
    names = [str(row["size"]) for row in rows]
    ticks = np.arange(len(rows))
    for k, which in enumerate(("overall", "strict")):
        f1.bar(ticks + 0.4 * k - 0.2, [row["f1"][which] or 0 for row in rows], 0.38, label=which)
    for k, (name, colour) in enumerate(zip(common.CROPPERS, ("tab:orange", "tab:blue"), strict=True)):
        missed = [(row["windows"][name] or {}).get("pixels_mean", 0) for row in rows]
        off.bar(ticks + 0.4 * k - 0.2, missed, 0.38, label=name, color=colour)
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
