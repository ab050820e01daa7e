"""What the changes of recipe ``best`` bring to stage 2: each alone on top of ``paper-short``, then all, on the same
schedule, with crops around the true parts."""

import sys
from dataclasses import replace
from typing import Any

import reproduce
import train_stage2
from experiments import common
from experiments.common import Result
from scoring.evaluation import Request
from scoring.metrics import headline
from training.recipes import Recipe
from utils.runtime import run_main
from utils.tables import markdown

NAME = "ablation"
BASE = "paper-short"
# Change -> (title, the fields of a Recipe that it takes from ``best``)
CHANGES: dict[str, tuple[str, tuple[str, ...]]] = {
    BASE: ("recipe paper-short", ()),
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
}
CHANGES["all"] = "all together", tuple(name for _, fields in CHANGES.values() for name in fields)


def adopt(recipe: Recipe, best: Recipe, fields: tuple[str, ...]) -> Recipe:
    """The recipe with some fields of ``best``, named as in ``CHANGES``."""
    for name in fields:
        head, _, tail = name.partition(".")
        value = getattr(best, head)
        if head == "model":
            value = {**recipe.model, tail: value[tail]}
        elif tail:
            value = replace(getattr(recipe, head), **{tail: getattr(value, tail)})
        recipe = replace(recipe, **{head: value})
    return recipe


def main(argv: list[str] | None = None) -> int:
    cli = common.parser(__doc__)
    common.add_training_options(cli, "stage 2", None)
    changes = [change for change in CHANGES if change != BASE]
    cli.add_argument("--rows", nargs="+", choices=changes, default=changes, metavar="CHANGE", help="changes to test")
    args = common.parse(cli, argv)
    setup, recipes = common.setup(args), train_stage2.RECIPES
    rows: list[dict[str, Any]] = []
    for change in (BASE, *args.rows):
        title, fields = CHANGES[change]
        recipe = adopt(recipes.paper_short, recipes.best, fields).changed(args.epochs, args.batch_size)
        folder = args.runs / NAME / "stage2" / change
        plan = reproduce.plan_stage("stage2", recipe, setup, folder / "stage2", {})
        best = reproduce.train_stage("stage2", plan)
        request = Request([best], setup.data, setup.machine, args.split, "truth")
        result = reproduce.score(request, folder / "scores" / args.split, title)
        rows.append({"change": change, "f1": headline(result), "strict": result["strict"]})
    return common.write(NAME, args, argv, {"rows": rows}, table)


def table(result: Result) -> str:
    """Markdown: one line for each change."""
    base, rows = result["rows"][0]["f1"]["strict"], []
    for row in result["rows"]:
        strict = row["f1"]["strict"]
        gained = None if row["change"] == BASE or None in (base, strict) else f"{strict - base:+.4f}"
        rows.append([CHANGES[row["change"]][0], *row["f1"].values(), gained])
    return markdown(["change", *common.HEADLINES, "strict, gained"], rows)


if __name__ == "__main__":
    sys.exit(run_main(main))
