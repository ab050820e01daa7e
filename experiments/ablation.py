"""What the changes of recipe ``best`` bring: each alone on top of ``paper-short``, then all, on the same schedule.

Stage 2 alone, with crops around the true parts, or all four stages. Trainings that a change leaves as they were are
shared.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import reproduce
from experiments import common
from experiments.common import Result
from models.loading import read_weights
from models.stn_icnn.model import STNiCNN
from scoring.metrics import headline
from training.recipes import Recipe
from training.task import Plan
from utils.runtime import run_main
from utils.tables import markdown

NAME = "ablation"
BASE, ALL = "paper-short", "all"
# Change -> (title, the fields of a Recipe that it takes from ``best``)
CHANGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "mirror": ("side-swapping mirror", ("augmentation.mirror",)),
    "augmentation": (
        "augmentation ranges of best, all operations",
        tuple(f"augmentation.{name}" for name in ("rotation", "shift", "scale", "noise", "subsets")),
    ),
    "tone": ("colour jitter", ("augmentation.tone",)),
    "camera": ("photos of poor cameras", ("augmentation.camera",)),
    "dice": ("Dice loss added", ("dice",)),
    "margin": ("window size follows the part", ("model.window_margin",)),
    "aspect": ("window sides follow the part", ("model.window_margin", "model.window_aspect")),
    "jitter": ("jittered windows", ("jitter",)),
    "adamw": (
        "AdamW, weight decay, clipped gradients",
        ("optimisation.optimizer", "optimisation.weight_decay", "optimisation.clip"),
    ),
    "paste": ("bilinear paste", ("model.paste",)),
    "taught": (
        "mask and theta losses kept end to end",
        ("theta_beta", "coarse_weight", "theta_weight"),
    ),
}
# What is trained -> its stages, the networks that are scored, and where their windows come from
TRAINED = {
    "stage2": (("stage2",), ("parts",), "truth"),
    "chain": (tuple(reproduce.STAGES), STNiCNN.networks, "predicted"),
}


def adopt(recipe: Recipe, best: Recipe, fields: tuple[str, ...]) -> Recipe:
    """The recipe with some fields of ``best``, named as in ``CHANGES``."""
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
    cli = common.parser(__doc__)
    common.add_training_options(cli, "stage 2, or of the four stages", "+")
    cli.add_argument("--stage", choices=tuple(TRAINED), default="stage2", help="train it alone, or all four")
    cli.add_argument(
        "--rows", nargs="+", choices=(*CHANGES, ALL), default=[*CHANGES, ALL], metavar="CHANGE", help="which changes"
    )
    cli.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    args = common.parse(cli, argv)
    stages, networks, crops = TRAINED[args.stage]
    setup = common.setup(args, crop_size=args.crop_size)
    trained: set[Path] = set()
    rows: list[dict[str, Any]] = []
    for change, plans in plan_changes(args, stages, setup).items():
        for stage, plan in plans.items():
            if plan.folder not in trained:
                reproduce.train_stage(stage, plan)
                trained.add(plan.folder)
        best, folder = plan.folder / "best.pt", args.runs / NAME / args.stage / change
        result = common.score(setup, best, crops, folder, args.split, title_of(change))
        row = {"change": change, "f1": headline(result), "strict": result["strict"]}
        rows.append({**row, **common.cost(read_weights(best).config, networks)})
    return common.write(NAME, args, argv, {"stage": args.stage, "rows": rows}, table)


def plan_changes(args: argparse.Namespace, stages: Sequence[str], setup: reproduce.Setup) -> dict[str, dict[str, Plan]]:
    """Change -> stage -> its training, ``BASE`` first. Changes that alter none of the stages are left out.

    A training that a change leaves as it was is the very plan of an earlier change. Raises InputError for options
    that cannot be.
    """
    epochs = common.epochs_of_stages(args, stages)
    known: dict[str, Plan] = {}  # what is trained, and from what -> its training
    planned: dict[str, dict[str, Plan]] = {}
    for change in (BASE, *args.rows):
        plans: dict[str, Plan] = {}
        for stage in stages:
            recipes = reproduce.STAGES[stage].script.RECIPES
            recipe = adopt(recipes.paper_short, recipes.best, fields_of(change)).changed(epochs[stage], args.batch_size)
            best = {name: plan.folder / "best.pt" for name, plan in plans.items()}
            folder = args.runs / NAME / args.stage / change / stage
            plan = reproduce.plan_stage(stage, recipe, setup, folder, best)
            plans[stage] = known.setdefault(repr((stage, recipe, plan.start)), plan)
        if change == BASE or plans[stages[-1]] is not planned[BASE][stages[-1]]:
            planned[change] = plans
    return planned


def gain(result: Result, row: dict[str, Any], which: str) -> float | None:
    """How much higher a row's score is than the first one's. which: "overall" or "strict"."""
    base, own = result["rows"][0]["f1"][which], row["f1"][which]
    return None if base is None or own is None else own - base


def table(result: Result) -> str:
    """Markdown: one line for each change."""
    header = ["change", "overall", "strict", "strict, gained"]
    rows = []
    for row in result["rows"]:
        gained = gain(result, row, "strict")
        shown = None if row["change"] == BASE or gained is None else f"{gained:+.4f}"
        rows.append([title_of(row["change"]), row["f1"]["overall"], row["f1"]["strict"], shown])
    return markdown(header, rows)


if __name__ == "__main__":
    sys.exit(run_main(main))
