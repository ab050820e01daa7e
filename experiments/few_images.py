"""Few real faces: does training on synthetic ones first help (paper section 3.1, cross-data: one source, then another)?

For each number of training faces the stages are trained from scratch, and from weights trained on synthetic faces, in
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
from data.source import FaceData, open_source
from experiments import common
from experiments.common import Result
from scoring.metrics import headline
from training.recipes import Recipe
from utils.errors import InputError
from utils.runtime import run_main
from utils.tables import markdown

NAME, CURVE = "few_images", "training_images"
PAPER_IMAGES = 18_000
STARTS = {"scratch": "from scratch", "drawn": "synthetic first"}
INITS = ("stage1", "stage2")  # the stages that start from those of the synthetic faces; the others start from these two
# What is trained -> its stages, the one that is scored, and where its windows come from
TRAINED = {
    "stage1": (("stage1",), "stage1", "none"),
    "chain": (tuple(reproduce.STAGES), "end2end", "predicted"),
}


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
    args = parse(argv)
    stages, final, crops = TRAINED[args.stage]
    recipes = common.recipes_of_stages(args, stages)
    setup = common.setup(args, coarse_size=args.coarse_size)
    everything = len(open_source(setup.data, "train").samples)
    asked = args.counts or ([500, 1000, 2000, None] if args.scratch_only else [0, 50, 200, 1000, None])
    counts = sorted({everything if count is None else count for count in asked})
    if counts[-1] > everything:
        raise InputError(f"--counts {counts[-1]}: there are only {everything} faces to train on")

    root = args.runs / NAME / args.stage
    drawn: dict[str, Path] = {}
    if not args.scratch_only:
        faces = FaceData(face_size=args.drawn_size or args.face_size, max_images=args.drawn, cache=args.cache)
        same_steps = with_same_steps(recipes, args.drawn, args.drawn)
        drawn = reproduce.train_stages(same_steps, replace(setup, data=faces), root / "drawn")
    rows = []
    for count in counts:
        row: dict[str, Any] = {"faces": count}
        for start in ("scratch",) if args.scratch_only else STARTS:
            folder = root / f"{start}-{count}"
            if count:
                best = train(recipes, setup, count, everything, drawn if start == "drawn" else {}, folder)
            elif start == "drawn":
                best = drawn
            else:
                row[start] = None  # random weights say nothing
                continue
            title = f"{count} faces, {STARTS[start]}"
            row[start] = headline(common.score(setup, best[final], crops, folder, args.split, title))
        rows.append(row)
    numbers: dict[str, Any] = {"stage": args.stage, "rows": rows}
    if args.scratch_only:
        return common.write(CURVE, args, argv, {**numbers, "fit": fit(rows)}, table, draw_curve, NAME)
    return common.write(NAME, args, argv, numbers, table, draw)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    cli = common.parser(__doc__)
    cli.add_argument("--recipe", choices=("paper-short", "best"), default="paper-short", help="both one-cycle")
    common.add_training_options(cli, "stage 1, or of the four stages, with all faces", "+")
    cli.add_argument("--stage", choices=tuple(TRAINED), default="stage1", help="train it alone, or all four")
    cli.add_argument(
        "--counts",
        type=number_or_all,
        nargs="+",
        metavar="N",
        help="numbers of training faces, or all; default: 0 50 200 1000 all; with --scratch-only 500 1000 2000 all",
    )
    cli.add_argument("--scratch-only", action="store_true", help="score over training faces, without synthetic ones")
    cli.add_argument("--drawn", type=int, default=3000, metavar="N", help="number of synthetic faces to train on first")
    cli.add_argument("--drawn-size", type=int, metavar="N", help="their side, pixels; default: --face-size")
    cli.add_argument("--coarse-size", type=int, metavar="N", help="side of the resized photo, pixels")
    return common.parse(cli, argv, check)


def check(args: argparse.Namespace) -> None:
    if args.drawn < 1:
        raise InputError(f"--drawn {args.drawn}: must be at least 1")
    if args.scratch_only and args.counts and 0 in args.counts:
        raise InputError("--counts 0: there are no synthetic faces to start from: leave the 0 out")


def train(
    recipes: dict[str, Recipe],
    setup: reproduce.Setup,
    count: int,
    everything: int,
    drawn: dict[str, Path],
    root: Path,
) -> dict[str, Path]:
    """Train the stages on the first ``count`` faces, from the synthetic faces' weights where given: best checkpoints.

    The best epoch is chosen on as many faces of the validation split, no more than there are.
    """
    if count < everything:
        setup = replace(setup, data=replace(setup.data, max_images=count))
    start = {stage: {"init_from": drawn[stage]} for stage in INITS if stage in drawn}
    return reproduce.train_stages(with_same_steps(recipes, everything, count), setup, root, start)


def with_same_steps(recipes: dict[str, Recipe], everything: int, count: int) -> dict[str, Recipe]:
    """The recipes with the epochs and batch sizes of ``schedule``."""
    changed = {}
    for stage, recipe in recipes.items():
        epochs = recipe.optimisation.epochs
        folds = recipe.augmentation.folds
        changed[stage] = recipe.changed(*schedule(epochs, everything, count, recipe.batch_size, folds))
    return changed


def fit(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """For both scores: the power law of 1 - F1, and what it predicts for the paper's number of faces."""
    laws = {}
    for which in common.HEADLINES:
        known = [(row["faces"], 1 - row["scratch"][which]) for row in rows if row["scratch"][which] is not None]
        known = [(count, error) for count, error in known if error > 0]
        if len(known) < 2:
            return None
        a, b = power_law(*map(list, zip(*known, strict=True)))  # type: ignore[arg-type]
        laws[which] = {"a": a, "b": b, "faces": PAPER_IMAGES, "predicted": 1 - a * PAPER_IMAGES**-b}
    return laws


def table(result: Result) -> str:
    """Markdown: one line for each number of faces, and the prediction."""
    starts = [start for start in STARTS if start in result["rows"][0]]
    header = ["training faces", *(f"{STARTS[start]}, {which}" for start in starts for which in common.HEADLINES)]
    rows = [
        [row["faces"], *((row[start] or {}).get(which) for start in starts for which in common.HEADLINES)]
        for row in result["rows"]
    ]
    if law := result.get("fit"):
        rows.append([f"{PAPER_IMAGES}, predicted", *(law[which]["predicted"] for which in common.HEADLINES)])
    return markdown(header, rows)


def draw(result: Result) -> Figure:
    """F1 over the number of training faces, both starts."""
    figure, axes = common.panels(2)
    for ax, which in zip(axes, common.HEADLINES, strict=True):
        for start, colour in zip(STARTS, common.COLOURS, strict=True):
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


def draw_curve(result: Result) -> Figure:
    """1 - F1 over the number of training faces, both logarithmic, with the power law."""
    figure, (ax,) = common.panels(1, 4.2)
    for which, colour in (("overall", "tab:blue"), ("strict", "tab:orange")):
        known = [(row["faces"], 1 - row["scratch"][which]) for row in result["rows"] if row["scratch"][which]]
        ax.plot([count for count, _ in known], [error for _, error in known], "o", color=colour, label=which)
        if law := result.get("fit"):
            n = np.geomspace(known[0][0], PAPER_IMAGES, 50)
            a, b, predicted = (law[which][name] for name in ("a", "b", "predicted"))
            ax.plot(n, a * n**-b, "--", color=colour, lw=1)
            ax.plot(n[-1:], [1 - predicted], "x", color=colour)
            ax.text(n[-1], 1 - predicted, f"F1 {predicted:.3f} ", ha="right", va="top", fontsize=8, color=colour)
    ax.set(xscale="log", yscale="log", xlabel="faces to train on", ylabel="1 - F1")
    ax.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(run_main(main))
