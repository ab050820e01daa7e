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
from scoring.metrics import headline
from training.recipes import Recipe
from training.task import Plan
from utils.errors import InputError
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
# What is trained -> its stages, and where the windows come from in which it is scored
TRAINED = {"stage2": (("stage2",), "truth"), "chain": (tuple(reproduce.STAGES), "predicted")}


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
    args = common.parse(cli, argv, _check)
    stages, crops = TRAINED[args.stage]
    setup = common.setup(args, crop_size=args.crop_size)
    trained: set[Path] = set()
    rows: list[dict[str, Any]] = []
    for change, plans in plan_changes(args, stages, setup).items():
        for stage, plan in plans.items():
            if plan.folder not in trained:
                reproduce.train_stage(stage, plan)
                trained.add(plan.folder)
        best, folder = plan.folder / "best.pt", args.runs / NAME / args.stage / change
        result = common.score(setup, [best], crops, folder, args.split, title_of(change))
        rows.append({"change": change, "f1": headline(result), "strict": result["strict"]})
    return common.write(NAME, args, argv, {"stage": args.stage, "rows": rows}, table)


def _check(args: argparse.Namespace) -> None:
    stages, _ = TRAINED[args.stage]
    if args.epochs and len(args.epochs) != len(stages):
        given = " ".join(map(str, args.epochs))
        raise InputError(f"--epochs {given}: give {len(stages)}, of {', '.join(stages)}")


def plan_changes(args: argparse.Namespace, stages: Sequence[str], setup: reproduce.Setup) -> dict[str, dict[str, Plan]]:
    """Change -> stage -> its training, ``BASE`` first. Changes that alter none of the stages are left out.

    A training that a change leaves as it was is the very plan of an earlier change. Raises InputError for options
    that cannot be.
    """
    epochs = dict(zip(stages, args.epochs or [None] * len(stages), strict=True))
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


def table(result: Result) -> str:
    """Markdown: one line for each change."""
    base, rows = result["rows"][0]["f1"]["strict"], []
    for row in result["rows"]:
        strict = row["f1"]["strict"]
        gained = None if row["change"] == BASE or None in (base, strict) else f"{strict - base:+.4f}"
        rows.append([title_of(row["change"]), *row["f1"].values(), gained])
    return markdown(["change", *common.HEADLINES, "strict, gained"], rows)


if __name__ == "__main__":
    sys.exit(run_main(main))
