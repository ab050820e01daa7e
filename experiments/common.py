"""What the experiments share: options, loading, setups of trainings, windows that miss, plots and files."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import reproduce
from data.batch import Batch
from data.labels import NINE, NUM_PARTS
from data.loaders import Faces, evaluation_batches, open_faces
from models.loading import load_for_inference
from models.parser import FaceParser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from scoring.pictures import encode
from training import options
from training.recipes import Recipe
from utils import distributed, files, runtime
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import Machine

CROPPERS = {"old cropper": "baseline", "STN": "predicted"}  # title -> where its windows come from
BATCH_SIZE = 8  # faces at once

AnyParser = TypeVar("AnyParser", bound=FaceParser)


# options


def parser(description: str | None, batch_size: int | None = None) -> Parser:
    """Options of every experiment: data, machine, ``--split`` (default: val, on which things are chosen), ``--out``."""
    made = options.base_parser(description, splits=True, batch_size=batch_size)
    made.set_defaults(split="val")
    add_out_option(made)
    return made


def add_out_option(made: Parser) -> None:
    """``--out``."""
    made.add_argument(
        "--out",
        type=Path,
        default=Path("runs/experiments"),
        metavar="DIR",
        help="where numbers and plot go; results/experiments puts them into the report",
    )


def checkpoint_parser(description: str | None) -> Parser:
    """``parser`` with ``--checkpoint`` and ``--mirror``, for experiments with a trained parser."""
    made = parser(description, BATCH_SIZE)
    options.add_checkpoint_option(made)
    options.add_mirror_option(made)
    return made


def add_training_options(made: Parser, stages: str, nargs: int | str) -> None:
    """``--epochs``, and ``--runs``, the folder of the trainings. stages: which stages are trained, for the help."""
    made.add_argument("--epochs", type=int, nargs=nargs, metavar="N", help=f"of {stages}; default: the recipe's")
    made.add_argument(
        "--runs", type=Path, default=Path("runs/experiments"), metavar="DIR", help="where trainings go, and go on"
    )


def parse(made: Parser, argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    args = made.parse_args(argv)
    options.check(args)
    if distributed.world_size() > 1:
        raise InputError("experiments run in one process: start them without torchrun")
    return args


def epochs_of_stages(args: argparse.Namespace, stages: Sequence[str]) -> dict[str, int | None]:
    """``--epochs`` of each stage; None: the recipe's. Raises InputError for another number of them."""
    if args.epochs is None:
        return dict.fromkeys(stages)
    if len(args.epochs) != len(stages):
        given = " ".join(map(str, args.epochs))
        raise InputError(f"--epochs {given}: give {len(stages)}, of {', '.join(stages)}")
    return dict(zip(stages, args.epochs, strict=True))


def recipes_of_stages(args: argparse.Namespace, stages: Sequence[str]) -> dict[str, Recipe]:
    """``--recipe`` of each stage, changed by ``--epochs`` and ``--batch-size``. Raises InputError, see above."""
    return {
        stage: reproduce.STAGES[stage].script.RECIPES.choose(args.recipe, args.dataset).changed(epochs, args.batch_size)
        for stage, epochs in epochs_of_stages(args, stages).items()
    }


def configs_of_sizes(config_of: Callable[[int], STNiCNNConfig], sizes: Sequence[int]) -> dict[int, STNiCNNConfig]:
    """Size -> its configuration. sizes: those of ``--sizes``. Raises InputError for a size that cannot be."""
    try:
        return {size: config_of(size) for size in sizes}
    except ValueError as error:
        raise InputError(f"--sizes {' '.join(map(str, sizes))}: {error}") from error


def setup(args: argparse.Namespace, **sizes: int | None) -> reproduce.Setup:
    """What the trainings of an experiment share. sizes: see ``reproduce.Setup``."""
    return reproduce.Setup(options.face_data(args), options.machine(args), args.seed, sizes)


# parsers and faces


def load(args: argparse.Namespace, kind: type[AnyParser]) -> tuple[AnyParser, Faces, Machine]:
    """The parser, the split and the machine that the options of ``checkpoint_parser`` name.

    kind: ``FaceParser``, or ``STNiCNN`` for experiments that compare windows. Raises InputError for another parser.
    """
    machine, paths = options.machine(args), options.checkpoints(args)
    model = load_for_inference(paths, machine.device, mirror=args.mirror)
    if not isinstance(model, kind):
        names = ", ".join(map(str, paths))
        raise InputError(
            f"--checkpoint {names} holds {model.kind}, but this experiment compares windows of {kind.kind}"
        )
    return model, open_faces(options.face_data(args), args.split, model.labels, threads=machine.threads), machine


def batches(faces: Faces, machine: Machine, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Every face of a split once, on the device."""
    return (batch.to(machine.device) for batch in evaluation_batches(faces, batch_size, machine=machine))


@cache
def cost(config: STNiCNNConfig, networks: tuple[str, ...]) -> dict[str, float]:
    """Parameters, and GFLOP (2 x MAC) of some networks of STN-iCNN for one face. Nothing is computed."""
    with torch.device("meta"):
        model = STNiCNN(config).eval()
        coarse, crop = config.coarse_size, config.crop_size
        inputs = {
            "coarse": torch.empty(1, 3, coarse, coarse),
            "localizer": torch.empty(1, len(NINE), coarse, coarse),
            "parts": torch.empty(1, NUM_PARTS, 3, crop, crop),
        }
        flop = 0
        for name in networks:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                getattr(model, name)(inputs[name])
            flop += counter.get_total_flops()
    parameters = sum(p.numel() for name in networks for p in getattr(model, name).parameters())
    return {"parameters": parameters, "gflop": round(flop / 1e9, 3)}


# windows that miss


class Misses(NamedTuple):
    """How windows differ from the true ones, arrays (N, 6).

    pixels_NP: distance of the centres. share_NP: the same in sides of the true window. missed_NP: bool.
    """

    pixels_NP: np.ndarray
    share_NP: np.ndarray
    missed_NP: np.ndarray


def window_boxes(theta_BP23: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Windows as (centres_BP2, sides_BP2) in pixels of the photo (x, y); theta in the frame of each photo."""
    span_B12 = (sizes_B2.flip(-1).to(theta_BP23.dtype) - 1).unsqueeze(1)
    scale_BP2 = torch.diagonal(theta_BP23[..., :2], dim1=-2, dim2=-1).abs()
    return (theta_BP23[..., 2] + 1) / 2 * span_B12, scale_BP2 * span_B12 + 1


def misses(theta_BP23: Tensor, truth_BP23: Tensor, boxes_BP4: Tensor, sizes_B2: Tensor) -> Misses:
    """Compare windows with the true ones.

    A window misses when its centre is off by more than a quarter of the true window's side, or when it cuts the
    part's box and the true window does not. Only meaningful for parts that the photo shows.
    theta_BP23, truth_BP23: in the frame of each photo. boxes_BP4: see ``models.stn_icnn.baseline.part_boxes``.
    """
    centres_BP2, sides_BP2 = window_boxes(theta_BP23.float(), sizes_B2)
    true_centres_BP2, true_sides_BP2 = window_boxes(truth_BP23.float(), sizes_B2)

    def contains(centres: Tensor, sides: Tensor) -> Tensor:
        low_BP2, high_BP2 = centres - (sides - 1) / 2, centres + (sides - 1) / 2
        slack = 1e-2  # pixels; theta is a float32
        return ((boxes_BP4[..., :2] >= low_BP2 - slack) & (boxes_BP4[..., 2:] <= high_BP2 + slack)).all(-1)

    pixels_BP = (centres_BP2 - true_centres_BP2).norm(dim=-1)
    share_BP = pixels_BP / true_sides_BP2.mean(-1)
    cut_BP = contains(true_centres_BP2, true_sides_BP2) & ~contains(centres_BP2, sides_BP2)
    return Misses(*(array.cpu().numpy() for array in (pixels_BP, share_BP, cut_BP | (share_BP > 0.25))))


def join(parts: Iterable[Misses]) -> Misses:
    """The misses of several batches in one."""
    return Misses(*map(np.concatenate, zip(*parts, strict=True)))


def summary(found: Misses, counted_NP: np.ndarray) -> dict[str, float | int] | None:
    """Miss rate, mean and median distance over the counted windows (bool); None where there are none."""
    if not counted_NP.any():
        return None
    pixels, share, missed = (array[counted_NP] for array in found)
    return {
        "windows": int(counted_NP.sum()),
        "miss_rate": round(float(missed.mean()), 5),
        "pixels_mean": round(float(pixels.mean()), 3),
        "pixels_median": round(float(np.median(pixels)), 3),
        "share_mean": round(float(share.mean()), 5),
        "share_median": round(float(np.median(share)), 5),
    }


# output


def panels(count: int, height: float = 3.6) -> tuple[Figure, list[Any]]:
    """A figure of so many plots in a row. height: inches."""
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
    """PNG without the date or version of what wrote it: the same numbers give the same bytes. Raises OSError."""
    files.write_whole(path, partial(figure.savefig, format="png", dpi=110, metadata={"Software": None}))


def save_picture(path: Path, picture_HW3: np.ndarray) -> None:
    """A JPEG to look at, uint8 (H, W, 3). Raises InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, encode(Image.fromarray(picture_HW3), "JPEG", quality=90))
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror or error})") from error


def write(
    script: str,
    name: str,
    args: argparse.Namespace,
    argv: list[str] | None,
    numbers: dict[str, Any],
    draw: Callable[[dict[str, Any]], Figure],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Write NAME.json (command, options, numbers) and NAME.png into ``--out``; print the table.

    script: the experiment's module. Raises InputError where the files cannot be written.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for k, word in enumerate(words[:-1]):
        if word in ("--data", "--cache"):  # folders that mean nothing on another machine
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
        files.write_text(args.out / f"{name}.json", json.dumps(result, indent=1, default=str) + "\n")
    except OSError as error:
        raise InputError(f"--out {args.out} could not be written ({error.strerror or error})") from error
    print("\n" + table(result) + f"\nwritten: {args.out / name}.json, .png")
