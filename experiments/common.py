"""What the experiments share: options, loading, trainings, windows that miss, plots and files."""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import reproduce
from data.batch import Batch
from data.labels import NINE, NUM_PARTS, LabelSet
from data.loaders import Faces, evaluation_batches, open_faces
from models.loading import load_for_inference
from models.parser import FaceParser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from scoring import options
from scoring.evaluation import Request
from scoring.metrics import Array, confusion_matrices, confusion_matrix, headline, scores
from scoring.pictures import encode
from training.recipes import Recipe
from utils import distributed, files, runtime
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import Machine

CROPPERS = {"old cropper": "baseline", "STN": "predicted"}  # title -> where its windows come from
COLOURS = ("tab:orange", "tab:blue")  # of the croppers, and of other pairs
BATCH_SIZE = 8  # faces at once
HEADLINES = ("overall", "strict")
FOLDERS = ("out", "runs", "pictures")  # options that name one
Result = dict[str, Any]  # what an experiment writes

AnyParser = TypeVar("AnyParser", bound=FaceParser)


# options


def parser(description: str | None, batch_size: int | None = None) -> Parser:
    """Options of every experiment: data, machine, ``--split`` (default: val, on which things are chosen), ``--out``."""
    cli = options.base_parser(description, splits=True, batch_size=batch_size)
    cli.set_defaults(split="val")
    add_out_option(cli)
    return cli


def add_out_option(cli: Parser) -> None:
    """``--out``."""
    cli.add_argument(
        "--out",
        type=Path,
        default=Path("runs/experiments"),
        metavar="DIR",
        help="folder for results and plot; use results/experiments to update the report",
    )


def checkpoint_parser(description: str | None, random: bool = False) -> Parser:
    """``parser`` with ``--checkpoint`` and ``--mirror``, for experiments with a trained parser. random: ``--seed``."""
    cli = parser(description, BATCH_SIZE)
    options.add_checkpoint_option(cli)
    options.add_mirror_option(cli)
    if random:
        options.add_seed_option(cli)
    return cli


def add_training_options(cli: Parser, stages: str, nargs: int | str) -> None:
    """``--seed``, ``--epochs`` of ``stages``, and ``--runs``, the folder of the trainings."""
    options.add_seed_option(cli)
    cli.add_argument("--epochs", type=int, nargs=nargs, metavar="N", help=f"of {stages}; default: the recipe's")
    cli.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/experiments"),
        metavar="DIR",
        help="folder for training runs, which are continued if interrupted",
    )


def parse(
    cli: Parser, argv: list[str] | None, check: Callable[[argparse.Namespace], object] = lambda args: None
) -> argparse.Namespace:
    """The options, checked, with the folders that they name made, before anything takes time.

    check: raises InputError for options of this experiment alone. Raises InputError.
    """
    args = cli.parse_args(argv)
    options.check(args)
    if distributed.world_size() > 1:
        raise InputError("experiments run in one process: start them without torchrun")
    check(args)
    for name in FOLDERS:
        if folder := getattr(args, name, None):
            files.make_folder(folder, f"--{name}")
            if not os.access(folder, os.W_OK):
                raise InputError(f"--{name} {folder}: no right to write there, choose another folder")
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


def configs_of_sizes(field: str, sizes: Sequence[int]) -> dict[int, STNiCNNConfig]:
    """Size -> the configuration with this field. sizes: of ``--sizes``. Raises InputError for one that cannot be."""
    try:
        return {size: STNiCNNConfig(**{field: size}) for size in sizes}  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"--sizes {' '.join(map(str, sizes))}: {error}") from error


def setup(args: argparse.Namespace, **sizes: int | None) -> reproduce.Setup:
    """What the trainings of an experiment share. sizes: see ``reproduce.Setup``."""
    return reproduce.Setup(options.face_data(args), options.machine(args), args.seed, sizes)


# parsers, faces and scores


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
    return model, open_split(args, model.labels), machine


def open_split(args: argparse.Namespace, labels: LabelSet) -> Faces:
    """The faces of ``--split``."""
    return open_faces(options.face_data(args), args.split, labels, threads=options.machine(args).threads)


def batches(faces: Faces, machine: Machine, batch_size: int = BATCH_SIZE, title: str | None = None) -> Iterable[Batch]:
    """Every face of a split once, on the device, with a bar of progress."""
    found = evaluation_batches(faces, batch_size, machine=machine)
    return (batch.to(machine.device) for batch in tqdm(found, title, disable=None, leave=False))


@contextmanager
def inference(machine: Machine) -> Iterator[None]:
    """Without gradients, in the machine's precision."""
    with torch.inference_mode(), runtime.autocast(machine.device, machine.amp):
        yield


class Tally:
    """The confusion matrix of a label set, which grows: matrix_KK, int64, rows: truth."""

    def __init__(self, labels: LabelSet) -> None:
        self.labels, self.matrix_KK = labels, np.zeros((len(labels), len(labels)), np.int64)

    def add(self, predicted: Array, true: Array) -> None:
        """Count the pixels of label maps."""
        self.matrix_KK += confusion_matrix(predicted, true, len(self.labels))

    def add_batch(self, predicted_BHW: Tensor, true_BHW: Tensor, sizes_B2: Tensor) -> None:
        """Count the pixels of padded label maps."""
        counts_BKK, _ = confusion_matrices(predicted_BHW, true_BHW, sizes_B2, len(self.labels))
        self.matrix_KK += counts_BKK.sum(0).cpu().numpy()

    def scores(self) -> dict[str, Any]:
        return scores(self.matrix_KK, self.labels)

    def f1(self) -> dict[str, float | None]:
        """Both headline scores."""
        return headline(self.scores())


def score(setup: reproduce.Setup, checkpoint: Path, crops: str, folder: Path, split: str, title: str) -> dict[str, Any]:
    """The scores of a training's checkpoint, kept in a folder. crops: where its windows come from."""
    request = Request([checkpoint], setup.data, setup.machine, split, crops)
    return reproduce.score(request, folder / "scores" / split, title)


@cache
def cost(config: STNiCNNConfig, networks: tuple[str, ...]) -> dict[str, float]:
    """Parameters, and GFLOP (2 x MAC) of some networks of STN-iCNN for one face. Nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True):  # on the meta device autocast cannot be asked for
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


def save_figure(figure: Figure, path: Path) -> None:
    """PNG or PDF by its name, without the date or version of what wrote it: the same numbers give the same bytes.
    Raises OSError."""
    kind = "pdf" if path.suffix.lower() == ".pdf" else "png"
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    files.write_whole(path, partial(figure.savefig, format=kind, dpi=110, metadata=metadata))


def save_picture(path: Path, picture_HW3: np.ndarray) -> None:
    """A JPEG to look at, uint8 (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, encode(Image.fromarray(picture_HW3), "JPEG", quality=90))


def write(
    name: str,
    args: argparse.Namespace,
    argv: list[str] | None,
    numbers: Result,
    table: Callable[[Result], str],
    draw: Callable[[Result], Figure] | None = None,
    script: str | None = None,
) -> int:
    """Write NAME.json (command, options, split, numbers) and, with ``draw``, NAME.png into ``--out``; print the table.

    script: the experiment's module, where that has another name. Returns 0.
    """
    words = sys.argv[1:] if argv is None else argv
    settings = {key: value for key, value in sorted(vars(args).items()) if "Path(" not in repr(value)}
    result = {
        "command": f"python -m experiments.{script or name} {shlex.join(portable(words))}",
        "options": settings,
        "git": runtime.git_revision(),
        "torch": torch.__version__,
        **({"split": args.split} if "split" in args else {}),
        **numbers,
    }
    if draw:
        save_figure(draw(result), args.out / f"{name}.png")
    files.write_text(args.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    print("\n" + table(result) + f"\nwritten: {args.out / name}.json{', .png' if draw else ''}")
    return 0


def portable(words: Sequence[str]) -> list[str]:
    """Words of a command line without the folders of this machine: DIR stands for them."""
    text = "\0".join(words)
    text = re.sub(r"(^|\0)(--data|--cache)([=\0])[^\0]*", r"\1\2\3DIR", text)
    return re.sub(r"(^|[=\0])/[^\0]*/", r"\1DIR/", text).split("\0") if words else []
