"""Few real faces: does training on drawn ones first help (paper section 3.1, cross-data: one source, then another)?

For each number of training faces the stages are trained from scratch, and from weights trained on drawn faces, in
equally many steps. With --scratch-only: the score over the number of training faces alone, and the power law of
1 - F1 that fits it, extrapolated to the paper's 18,000.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import reproduce
from experiments import common
from models.stn_icnn import STNiCNNConfig
from utils import options
from utils.errors import InputError
from utils.options import Recipe
from utils.runtime import run_main

NAME, CURVE = "few_images", "training_images"
PAPER_IMAGES = 18_000
STARTS = {"scratch": "from scratch", "drawn": "drawn faces first"}
INITS = ("stage1", "stage2")  # the stages that start from those of the drawn faces; the others from these
SCORED = {"stage1": ("stage1", "none"), "chain": ("end2end", "predicted")}


def number_or_all(text: str) -> int | None:
    """ "all" as None."""
    if text == "all":
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return int(text)


def schedule(epochs: int, everything: int, count: int, batch_size: int, folds: int) -> tuple[int, int]:
    """(epochs, batch size) that make as many steps with ``count`` faces as ``epochs`` do with ``everything``."""
    batch_all, batch = min(batch_size, everything * folds), min(batch_size, count * folds)
    steps = epochs * (everything * folds // batch_all)
    return max(1, round(steps / (count * folds // batch))), batch


def power_law(counts: list[int], errors: list[float]) -> tuple[float, float]:
    """(a, b) of error = a * count ** -b, least squares of the logarithms. Errors above 0, two counts at least."""
    slope, offset = np.polyfit(np.log(counts), np.log(errors), 1)
    return float(np.exp(offset)), float(-slope)


def main(argv: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--recipe", choices=("paper-short", "best"), default="paper-short", help="both one-cycle")
    common.add_training_options(parser, "stage 1, or of the four stages, with all faces", "+")
    parser.add_argument("--stage", choices=tuple(SCORED), default="stage1", help="train it alone, or all four")
    parser.add_argument(
        "--counts",
        type=number_or_all,
        nargs="+",
        metavar="N",
        help="numbers of training faces, or all; default: 0 50 200 1000 all; with --scratch-only 500 1000 2000 all",
    )
    parser.add_argument("--scratch-only", action="store_true", help="score over training faces, without drawn ones")
    parser.add_argument("--drawn", type=int, default=3000, metavar="N", help="faces drawn to train on first")
    parser.add_argument("--drawn-size", type=int, metavar="N", help="their side, pixels; default: --face-size")
    parser.add_argument("--coarse-size", type=int, metavar="N", help="side of the stretched photo, pixels")
    args = common.parse(parser, argv)
    if args.drawn < 1:
        raise InputError(f"--drawn {args.drawn}: must be at least 1")
    stages = reproduce.STAGES if args.stage == "chain" else ("stage1",)
    recipes = {stage: recipe_of(stage, args) for stage in stages}
    everything = len(options.open_split(args, "train"))
    asked = args.counts or ([500, 1000, 2000, None] if args.scratch_only else [0, 50, 200, 1000, None])
    counts = sorted({everything if count is None else count for count in asked})
    if counts[-1] > everything:
        raise InputError(f"--counts {counts[-1]}: there are only {everything} faces to train on")
    if args.scratch_only and counts[0] == 0:
        raise InputError("--counts 0: without drawn faces, no faces train nothing")

    root = args.runs / NAME / args.stage
    stage, crops = SCORED[args.stage]
    drawn = {} if args.scratch_only else train_drawn(args, recipes, root / "drawn")
    rows = []
    for count in counts:
        row: dict[str, Any] = {"faces": count}
        for start in ("scratch",) if args.scratch_only else STARTS:
            folder = root / f"{start}-{count}"
            if count:
                best = train(args, recipes, count, everything, drawn if start == "drawn" else {}, folder)
            elif start == "drawn":
                best = drawn
            else:
                row[start] = None  # weights as they were drawn say nothing
                continue
            row[start] = common.headline(common.score(args, [best[stage]], crops, folder / "scores" / args.split))
        rows.append(row)
    numbers: dict[str, Any] = {"split": args.split, "stage": args.stage, "rows": rows}
    if args.scratch_only:
        numbers["fit"] = fit(rows)
    script_draw, name = (draw_curve, CURVE) if args.scratch_only else (draw, NAME)
    common.write(NAME, name, args, argv, numbers, script_draw, table)
    return 0


def recipe_of(stage: str, args: argparse.Namespace) -> Recipe:
    """The stage's recipe, with ``--epochs`` and ``--batch-size`` applied."""
    recipe: Recipe = getattr(reproduce.SCRIPTS[stage].RECIPES, args.recipe.replace("-", "_"))
    stages = reproduce.STAGES if args.stage == "chain" else ("stage1",)
    epochs = common.epochs_of_stages(args, stages)[stage] or recipe.optimisation.epochs
    optimisation = replace(recipe.optimisation, epochs=epochs)
    return replace(recipe, optimisation=optimisation, batch_size=args.batch_size or recipe.batch_size)


def train_drawn(args: argparse.Namespace, recipes: dict[str, Recipe], root: Path) -> dict[str, Path]:
    """Train the stages on drawn faces: stage -> best checkpoint."""
    data = {"dataset": "synthetic", "max_images": args.drawn, "face_size": args.drawn_size or args.face_size}
    best: dict[str, Path] = {}
    for stage, recipe in recipes.items():
        folds = recipe.augmentation.folds
        epochs, batch = schedule(recipe.optimisation.epochs, args.drawn, args.drawn, recipe.batch_size, folds)
        words = reproduce.flags(args, "cache", *reproduce.MACHINE, "recipe", **data, epochs=epochs, batch_size=batch)
        words += sizes(stage, recipe, args)
        best[stage] = common.train(stage, [*words, *reproduce.from_earlier(stage, best)], root / stage)
    return best


def train(
    args: argparse.Namespace,
    recipes: dict[str, Recipe],
    count: int,
    everything: int,
    drawn: dict[str, Path],
    root: Path,
) -> dict[str, Path]:
    """Train the stages on the first ``count`` faces, from the drawn faces' weights where given: best checkpoints.

    The best epoch is chosen on as many faces of the validation split, no more than there are.
    """
    best: dict[str, Path] = {}
    for stage, recipe in recipes.items():
        folds = recipe.augmentation.folds
        epochs, batch = schedule(recipe.optimisation.epochs, everything, count, recipe.batch_size, folds)
        data = {"max_images": args.max_images if count == everything else count}
        words = reproduce.flags(
            args, *reproduce.DATA, *reproduce.MACHINE, "recipe", epochs=epochs, batch_size=batch, **data
        )
        words += sizes(stage, recipe, args)
        if drawn and stage in INITS:
            words += ["--init-from", str(drawn[stage])]
        best[stage] = common.train(stage, [*words, *reproduce.from_earlier(stage, best)], root / stage)
    return best


def sizes(stage: str, recipe: Recipe, args: argparse.Namespace) -> list[str]:
    """The coarse size where it is given, and the same crops for every data set, in the stages that have the options."""
    if stage == "stage1":
        return reproduce.flags(args, "coarse_size")
    return (
        ["--crop-size", str(STNiCNNConfig(**recipe.model).crop_size)] if "crop_size" in reproduce.SIZES[stage] else []
    )


def fit(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """For both scores: the power law of 1 - F1, and what it predicts for the paper's number of faces."""
    laws = {}
    for which in ("overall", "strict"):
        known = [(row["faces"], 1 - row["scratch"][which]) for row in rows if row["scratch"][which] is not None]
        known = [(count, error) for count, error in known if error > 0]
        if len(known) < 2:
            return None
        a, b = power_law(*map(list, zip(*known, strict=True)))  # type: ignore[arg-type]
        laws[which] = {"a": a, "b": b, "faces": PAPER_IMAGES, "predicted": 1 - a * PAPER_IMAGES**-b}
    return laws


def table(result: dict[str, Any]) -> str:
    """Markdown: one line for each number of faces, and the prediction."""
    starts = [start for start in STARTS if start in result["rows"][0]]
    header = ["training faces", *(f"{STARTS[start]}, {which}" for start in starts for which in ("overall", "strict"))]
    rows = [
        [row["faces"], *((row[start] or {}).get(which) for start in starts for which in ("overall", "strict"))]
        for row in result["rows"]
    ]
    if law := result.get("fit"):
        rows.append([f"{PAPER_IMAGES}, predicted", *(law[which]["predicted"] for which in ("overall", "strict"))])
    return common.markdown(header, rows)


def draw(result: dict[str, Any]) -> Figure:
    """F1 over the number of training faces, both starts."""
    figure, axes = common.panels(2)
    for ax, which in zip(axes, ("overall", "strict"), strict=True):
        for start, colour in zip(STARTS, ("tab:orange", "tab:blue"), strict=True):
            shown = [(row["faces"], row[start][which]) for row in result["rows"] if row[start]]
            counts, values = [count for count, _ in shown], [value for _, value in shown]
            ax.plot(counts, values, "-o", color=colour, label=STARTS[start], ms=4)
        ax.set_xscale("symlog", linthresh=20)
        ticks = [row["faces"] for row in result["rows"]]
        ax.set_xticks(ticks, list(map(str, ticks)))
        ax.minorticks_off()
        ax.set(xlabel="real faces to train on", ylabel=f"F1, {which}")
    axes[0].legend(fontsize=8)
    return figure


def draw_curve(result: dict[str, Any]) -> Figure:
    """1 - F1 over the number of training faces, both logarithmic, with the power law."""
    figure, (ax,) = common.panels(1, 4.2)
    for which, colour in (("overall", "tab:blue"), ("strict", "tab:orange")):
        known = [(row["faces"], 1 - row["scratch"][which]) for row in result["rows"] if row["scratch"][which]]
        ax.plot([count for count, _ in known], [error for _, error in known], "o", color=colour, label=which)
        if law := result.get("fit"):
            n = np.geomspace(known[0][0], PAPER_IMAGES, 50)
            of = law[which]
            ax.plot(n, of["a"] * n ** -of["b"], "--", color=colour, lw=1)
            ax.plot(n[-1:], [1 - of["predicted"]], "x", color=colour)
            told = f"F1 {of['predicted']:.3f} "
            ax.text(n[-1], 1 - of["predicted"], told, ha="right", va="top", fontsize=8, color=colour)
    ax.set(xscale="log", yscale="log", xlabel="faces to train on", ylabel="1 - F1")
    ax.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(run_main(main))
