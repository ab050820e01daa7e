"""What the changes of recipe ``best`` bring: each alone on top of ``paper-short``, then all, on the same schedule.

Stage 2 alone, with crops around the true parts, or all four stages. What a change leaves as it was is trained once.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import reproduce
from experiments import common
from models.stn_icnn import STNiCNNConfig
from utils.options import Recipe
from utils.runtime import run_main

NAME = "ablation"
BASE, ALL = "paper-short", "all"
# Change -> (title, the fields of a Recipe that it takes from ``best``).
CHANGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "mirror": ("side-swapping mirror", ("augmentation.mirror",)),
    "augmentation": (
        "every operation always, in the ranges of best",
        tuple(f"augmentation.{name}" for name in ("rotation", "shift", "scale", "noise", "subsets")),
    ),
    "tone": ("changes of tone", ("augmentation.tone",)),
    "dice": ("Dice loss beside cross-entropy", ("dice",)),
    "margin": ("windows that follow the part's size", ("model.window_margin",)),
    "aspect": ("the same, each side its own", ("model.window_margin", "model.window_aspect")),
    "jitter": ("windows jittered in stage 2", ("jitter",)),
    "adamw": (
        "AdamW, weight decay, clipped gradients",
        ("optimisation.optimizer", "optimisation.weight_decay", "optimisation.clip"),
    ),
    "paste": ("bilinear paste", ("model.paste",)),
    "taught": (
        "windows and rough mask still taught end to end",
        ("theta_beta", "coarse_weight", "theta_weight"),
    ),
}
SCORED = {"stage2": (("parts",), "truth"), "end2end": (("coarse", "localizer", "parts"), "predicted")}


def adopt(recipe: Recipe, best: Recipe, fields: tuple[str, ...]) -> Recipe:
    """The recipe with the named fields (dotted, as in CHANGES) as ``best`` has them."""
    for name in fields:
        head, _, tail = name.partition(".")
        value = getattr(best, head)
        if head == "model":
            value = {**recipe.model, **({tail: value[tail]} if tail in value else {})}
        elif tail:
            value = replace(getattr(recipe, head), **{tail: getattr(value, tail)})
        recipe = replace(recipe, **{head: value})
    return recipe


def fields_of(change: str) -> tuple[str, ...]:
    """The fields that a row takes from ``best``."""
    if change == ALL:
        return tuple(name for _, fields in CHANGES.values() for name in fields)
    return () if change == BASE else CHANGES[change][1]


def title_of(change: str) -> str:
    return {BASE: "recipe paper-short", ALL: "all together"}.get(change) or CHANGES[change][0]


def main(argv: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    common.add_training_options(parser, "stage 2, or of the four stages", "+")
    parser.add_argument("--stage", choices=("stage2", "chain"), default="stage2", help="train it alone, or all four")
    parser.add_argument(
        "--rows", nargs="+", choices=(*CHANGES, ALL), default=[*CHANGES, ALL], metavar="CHANGE", help="which changes"
    )
    parser.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    args = common.parse(parser, argv)
    stages = reproduce.STAGES if args.stage == "chain" else ("stage2",)
    epochs = common.epochs_of_stages(args, stages)
    words = reproduce.flags(args, *reproduce.DATA, *reproduce.MACHINE, "batch_size", recipe=BASE)
    root = args.runs / NAME / args.stage
    modules, crops = SCORED[stages[-1]]
    done: dict[str, Path] = {}  # what was trained, and from what -> checkpoint
    rows: list[dict[str, Any]] = []
    for change in (BASE, *args.rows):
        best: dict[str, Path] = {}
        for stage in stages:
            recipes = reproduce.SCRIPTS[stage].RECIPES
            recipe = adopt(recipes.paper_short, recipes.best, fields_of(change))
            start = reproduce.from_earlier(stage, best)
            key = repr((stage, recipe, start))
            if key not in done:
                sizes = (name for name in reproduce.SIZES[stage] if name == "crop_size")
                more = reproduce.flags(args, *sizes, epochs=epochs[stage])
                altered = recipes._replace(paper_short=recipe)
                done[key] = common.train(stage, [*words, *more, *start], root / change / stage, altered)
            best[stage] = done[key]
        final = best[stages[-1]]
        if rows and final == rows[0]["checkpoint"]:
            continue  # the change has no part in this stage
        result = common.score(args, [final], crops, root / change / "scores" / args.split)
        config = STNiCNNConfig(**json.loads((final.parent / "config.json").read_text())["config"])
        row = {"change": change, "checkpoint": final, "f1": common.headline(result), "strict": result["strict"]}
        rows.append({**row, **common.cost(config, modules)})
    rows = [{key: value for key, value in row.items() if key != "checkpoint"} for row in rows]
    common.write(NAME, NAME, args, argv, {"split": args.split, "stage": args.stage, "rows": rows}, draw, table)
    return 0


def gain(result: dict[str, Any], row: dict[str, Any], which: str) -> float | None:
    """What a row's score has over the first one's."""
    base, own = result["rows"][0]["f1"][which], row["f1"][which]
    return None if base is None or own is None else own - base


def table(result: dict[str, Any]) -> str:
    """Markdown: one line for each change."""
    header = ["change", "parameters", "GFLOP a face", "overall", "strict", "strict, gained"]
    rows = []
    for row in result["rows"]:
        gained = gain(result, row, "strict")
        told = None if row["change"] == BASE or gained is None else f"{gained:+.4f}"
        cells = [title_of(row["change"]), f"{row['parameters']:,}", f"{row['gflop']:.2f}"]
        rows.append([*cells, row["f1"]["overall"], row["f1"]["strict"], told])
    return common.markdown(header, rows)


def draw(result: dict[str, Any]) -> Figure:
    """What each change gains, in strict mean and overall F1."""
    rows = [row for row in result["rows"] if row["change"] != BASE]
    figure, axes = common.panels(2, 1.2 + 0.35 * len(rows))
    for ax, which in zip(axes, ("strict", "overall"), strict=True):
        gains = [100 * (gain(result, row, which) or 0.0) for row in rows]
        colours = ["tab:blue" if gained >= 0 else "tab:red" for gained in gains]
        ax.barh(range(len(rows)), gains, color=colours)
        ax.axvline(0, color="black", lw=0.8)
        ax.set(xlabel=f"points of F1 gained, {which}", yticks=[])
        ax.invert_yaxis()
    axes[0].set_yticks(range(len(rows)), [title_of(row["change"]) for row in rows], fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(run_main(main))
