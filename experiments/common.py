"""What the experiments share: options, trainings and scores that are not done twice, windows that miss, output."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import evaluate
import reproduce
from data.labels import NUM_LABELS, NUM_PARTS, PART_LABELS
from data.loading import Batch, Faces, evaluation_batches
from models.pretrained import load_for_inference
from models.stn_icnn import STNiCNN, STNiCNNConfig
from utils import options, runtime
from utils.errors import InputError
from utils.options import Recipes

CROPPERS = {"old cropper": "baseline", "STN": "predicted"}  # title -> what ``--crops`` calls it


def parser(description: str | None, batch_size: int | None = None) -> options.Parser:
    """Options of every experiment: data, machine, ``--split`` (default: val, on which things are chosen), ``--out``."""
    made = options.base_parser(description, splits=True, batch_size=batch_size)
    made.set_defaults(split="val")
    made.add_argument(
        "--out",
        type=Path,
        default=Path("runs/experiments"),
        metavar="DIR",
        help="where numbers and plot go; results/experiments puts them into the report",
    )
    return made


def checkpoint_parser(description: str | None, batch_size: int | None = None) -> options.Parser:
    """``parser`` with ``--checkpoint`` and ``--mirror``, for experiments with a trained model."""
    made = parser(description, batch_size)
    options.add_checkpoint_option(made)
    options.add_mirror_option(made)
    return made


def load(args: argparse.Namespace) -> tuple[STNiCNN, Faces, torch.device]:
    """The model, the split and the device that the options of ``checkpoint_parser`` name."""
    device = runtime.pick_device(args.device)
    model = load_for_inference(options.checkpoints(args), device, mirror=args.mirror)
    return model, options.open_split(args, args.split), device


def add_training_options(made: options.Parser, epochs_of: str, nargs: int | str) -> None:
    """``--epochs`` and ``--batch-size`` of trainings, and ``--runs``, where they go."""
    made.add_argument("--epochs", type=int, nargs=nargs, metavar="N", help=f"of {epochs_of}; default: the recipe's")
    made.add_argument(
        "--runs", type=Path, default=Path("runs/experiments"), metavar="DIR", help="where trainings go, and go on"
    )


def parse(made: options.Parser, argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    args = made.parse_args(argv)
    options.check(args)
    if runtime.world_size() > 1:
        raise InputError("experiments run in one process: start them without torchrun")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out} is a file: name a folder")
    return args


# trainings and scores


def train(stage: str, words: Sequence[str], run_dir: Path, recipes: Recipes | None = None) -> Path:
    """Train a stage, or what is left of it; its best checkpoint."""
    argv = [*words, "--resume", "--run-dir", str(run_dir)]
    reproduce.SCRIPTS[stage].main(argv) if recipes is None else reproduce.SCRIPTS[stage].main(argv, recipes)
    return run_dir / "best.pt"


def score(args: argparse.Namespace, checkpoints: list[Path], crops: str, folder: Path) -> dict[str, Any]:
    """scores.json of ``evaluate.py`` on ``--split``, done again only where the weights are newer or the faces others.

    Evaluated in the batches that ``evaluate.py`` likes, whatever the training's.
    """
    paths = [str(path) for path in checkpoints]
    file = folder / "scores.json"
    if not reproduce.is_scored(file, paths, args):
        words = [
            *reproduce.flags(args, *reproduce.DATA, *reproduce.MACHINE, "split"),
            "--checkpoint",
            *paths,
            "--crops",
            crops,
        ]
        evaluate.main([*words, "--out", str(folder), "--overwrite"])
    return json.loads(file.read_text())


def epochs_of_stages(args: argparse.Namespace, stages: Sequence[str]) -> dict[str, int | None]:
    """``--epochs`` of each stage; None: the recipe's. Raises InputError for another number of them."""
    if args.epochs is None:
        return dict.fromkeys(stages)
    if len(args.epochs) != len(stages):
        told = " ".join(map(str, args.epochs))
        raise InputError(f"--epochs {told}: give {len(stages)}, of {', '.join(stages)}")
    return dict(zip(stages, args.epochs, strict=True))


def headline(scores: dict[str, Any]) -> dict[str, float | None]:
    """The two numbers of a row: overall F1 of the paper's protocol, and the strict mean."""
    return {"overall": scores["paper"]["overall"], "strict": scores["strict"]["mean"]}


def cost(config: STNiCNNConfig, modules: Iterable[str]) -> dict[str, float]:
    """Parameters, and GFLOP (2 x MAC) of the networks for one face. Nothing is computed."""
    with torch.device("meta"):
        model = STNiCNN(config).eval()
        coarse, crop = config.coarse_size, config.crop_size
        inputs = {
            "coarse": torch.empty(1, 3, coarse, coarse),
            "localizer": torch.empty(1, NUM_LABELS, coarse, coarse),
            "parts": torch.empty(1, NUM_PARTS, 3, crop, crop),
        }
        flop = 0
        for name in modules:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                getattr(model, name)(inputs[name])
            flop += counter.get_total_flops()
    parameters = sum(p.numel() for name in modules for p in getattr(model, name).parameters())
    return {"parameters": parameters, "gflop": round(flop / 1e9, 3)}


# windows that miss


class Misses(NamedTuple):
    """How windows miss the true ones, arrays (N, 6): pixels, share of the true window's side, whether missed."""

    pixels_NP: np.ndarray
    share_NP: np.ndarray
    missed_NP: np.ndarray


def boxes_of(theta_BP23: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Windows as (centres_BP2, sides_BP2) in pixels of the photo (x, y); theta in the frame of each photo."""
    span_B12 = (sizes_B2.flip(-1).to(theta_BP23.dtype) - 1).unsqueeze(1)
    scale_BP2 = torch.diagonal(theta_BP23[..., :2], dim1=-2, dim2=-1).abs()
    return (theta_BP23[..., 2] + 1) / 2 * span_B12, scale_BP2 * span_B12 + 1


def part_boxes(labels_BHW: Tensor) -> Tensor:
    """Bounding boxes of the six parts, boxes_BP4 as (left, top, right, bottom), centres of pixels; missing: NaN."""
    boxes = torch.full((len(labels_BHW), NUM_PARTS, 4), torch.nan)
    for b, labels_HW in enumerate(labels_BHW.cpu()):
        for part, labels in enumerate(PART_LABELS):
            ys, xs = torch.nonzero((labels_HW >= labels[0]) & (labels_HW <= labels[-1]), as_tuple=True)
            if len(xs):
                boxes[b, part] = torch.stack([xs.min(), ys.min(), xs.max(), ys.max()]).float()
    return boxes.to(labels_BHW.device)


def misses(theta_BP23: Tensor, truth_BP23: Tensor, boxes_BP4: Tensor, sizes_B2: Tensor) -> Misses:
    """Windows against the true ones.

    A window misses when its centre is off by more than a quarter of the true window's side, or when it cuts the
    part's box that the true window holds. Only meaningful for parts that the photo has.
    """
    centres_BP2, sides_BP2 = boxes_of(theta_BP23.float(), sizes_B2)
    true_centres_BP2, true_sides_BP2 = boxes_of(truth_BP23.float(), sizes_B2)

    def holds(centres: Tensor, sides: Tensor) -> Tensor:
        low_BP2, high_BP2 = centres - (sides - 1) / 2, centres + (sides - 1) / 2
        slack = 1e-2  # pixels; theta is a float32
        return ((boxes_BP4[..., :2] >= low_BP2 - slack) & (boxes_BP4[..., 2:] <= high_BP2 + slack)).all(-1)

    pixels_BP = (centres_BP2 - true_centres_BP2).norm(dim=-1)
    share_BP = pixels_BP / true_sides_BP2.mean(-1)
    cut_BP = holds(true_centres_BP2, true_sides_BP2) & ~holds(centres_BP2, sides_BP2)
    return Misses(*(array.cpu().numpy() for array in (pixels_BP, share_BP, cut_BP | (share_BP > 0.25))))


def join(parts: Iterable[Misses]) -> Misses:
    """The misses of several batches in one."""
    return Misses(*map(np.concatenate, zip(*parts, strict=True)))


def summary(of: Misses, counted_NP: np.ndarray) -> dict[str, float | int] | None:
    """Miss rate, mean and median distance over the counted windows (bool); None where there are none."""
    if not counted_NP.any():
        return None
    pixels, share, missed = (array[counted_NP] for array in of)
    return {
        "windows": int(counted_NP.sum()),
        "miss_rate": round(float(missed.mean()), 5),
        "pixels_mean": round(float(pixels.mean()), 3),
        "pixels_median": round(float(np.median(pixels)), 3),
        "share_mean": round(float(share.mean()), 5),
        "share_median": round(float(np.median(share)), 5),
    }


def batches(args: argparse.Namespace, faces: Faces, device: torch.device) -> Iterable[Batch]:
    """Every face of a split once, on the device."""
    return (batch.to(device) for batch in evaluation_batches(faces, args.batch_size or 8, workers=args.workers))


# output


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]], digits: int = 4) -> str:
    """A Markdown table; floats with so many digits, None as a dash."""

    def cell(value: object) -> str:
        if value is None:
            return "–"
        text = f"{value:.{digits}f}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|")

    lines = [" | ".join(header), " | ".join(["---", *["---:"] * (len(header) - 1)])]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(map(cell, row)) for row in rows)]) + "\n"


def panels(count: int, height: float = 3.6) -> tuple[Figure, list[Any]]:
    """A figure of so many plots in a row."""
    figure = Figure(figsize=(4.6 * count, height), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def bars(result: dict[str, Any], titles: Sequence[str]) -> Figure:
    """Bars of both F1 of each of the result's rows, under these titles."""
    figure, (ax,) = panels(1, height=5)
    places = np.arange(len(titles))[::-1]
    for offset, key in ((0.2, "overall"), (-0.2, "strict")):
        ax.barh(places + offset, [row["f1"][key] or 0 for row in result["rows"]], 0.38, label=key)
    ax.set_yticks(places, titles)
    ax.set(xlabel="F1", title=f"{result['faces']} faces, {result['split']} split")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """PNG without the date or version of what wrote it: the same numbers give the same bytes."""
    figure.savefig(path, dpi=110, metadata={"Software": None})


def write(
    script: str,
    name: str,
    args: argparse.Namespace,
    argv: list[str] | None,
    numbers: dict[str, Any],
    draw: Callable[[dict[str, Any]], Figure],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """The script's NAME.json (command, options, numbers) and NAME.png into ``--out``; prints the table.

    Raises InputError where they cannot be written.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for k, word in enumerate(words[:-1]):
        if word in ("--data", "--cache"):  # folders that say nothing elsewhere
            words[k + 1] = "DIR"
    settings = {key: value for key, value in sorted(vars(args).items()) if not isinstance(value, Path)}
    result = {
        "command": f"python -m experiments.{script} {shlex.join(words)}",
        "options": settings,
        "git": runtime.git_revision(),
        "torch": torch.__version__,
        **numbers,
    }
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        save_figure(draw(result), args.out / f"{name}.png")
        partial = args.out / f"{name}.json.tmp"
        partial.write_text(json.dumps(result, indent=1, default=str) + "\n")
        os.replace(partial, args.out / f"{name}.json")
    except OSError as error:
        raise InputError(f"--out {args.out} could not be written ({error.strerror or error})") from error
    print("\n" + table(result) + f"\nwritten: {args.out / name}.json, .png")
