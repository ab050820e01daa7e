"""What the experiments share: options, loading, trainings, windows that miss, and files."""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes
from tqdm import tqdm

import reproduce
from data.batch import Batch
from data.labels import NINE, NUM_PARTS, LabelSet, among
from data.loaders import Faces, evaluation_batches, open_faces
from models.loading import load_for_inference
from models.parser import FaceParser
from scoring import options
from scoring.metrics import Array, confusion_matrices, confusion_matrix, headline, scores
from utils import distributed, files, runtime
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import Machine

CROPPERS = {"old cropper": "baseline", "STN": "predicted"}  # title -> where its windows come from
BATCH_SIZE = 8  # faces at once
HEADLINES = ("overall", "strict")
FOLDERS = ("out", "runs", "pictures")  # options that name one
OUT = "folder for results; use results/experiments to update the report"
Result = dict[str, Any]  # what an experiment writes

AnyParser = TypeVar("AnyParser", bound=FaceParser)


# options


def parser(description: str | None, batch_size: int | None = None) -> Parser:
    """Options of every experiment: data, machine, ``--split`` (default: val, on which things are chosen), ``--out``."""
    cli = options.base_parser(description, splits=True, batch_size=batch_size)
    cli.set_defaults(split="val")
    add_out_option(cli)
    return cli


def add_out_option(cli: Parser, flag: str = "--out", what: str = OUT) -> None:
    """A folder to write into. what: its help text."""
    cli.add_argument(flag, type=Path, default=Path("runs/experiments"), metavar="DIR", help=what)


def checkpoint_parser(description: str | None, random: bool = False) -> Parser:
    """``parser`` with ``--checkpoint`` and ``--mirror``, for experiments with a trained parser. random: ``--seed``."""
    cli = parser(description, BATCH_SIZE)
    options.add_checkpoint_option(cli)
    options.add_mirror_option(cli)
    if random:
        options.add_seed_option(cli)
    return cli


def add_training_options(cli: Parser, stages: str, nargs: int | None) -> None:
    """``--seed``, ``--epochs`` of ``stages``, ``--crop-size``, and ``--runs``, the folder of the trainings."""
    options.add_seed_option(cli)
    cli.add_argument("--epochs", type=int, nargs=nargs, metavar="N", help=f"epochs of {stages}; default: the recipe's")
    cli.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    add_out_option(cli, "--runs", "folder for training runs, which are continued if interrupted")


def parse(cli: Parser, argv: list[str] | None) -> argparse.Namespace:
    """The options, checked, with the folders that they name made, before anything takes time. Raises InputError."""
    args = cli.parse_args(argv)
    options.check(args)
    if distributed.world_size() > 1:
        raise InputError("experiments run in one process: start them without torchrun")
    for name in FOLDERS:
        if folder := getattr(args, name, None):
            files.make_folder(folder, f"--{name}")
            if not os.access(folder, os.W_OK):
                raise InputError(f"--{name} {folder}: no right to write there, choose another folder")
    return args


def setup(args: argparse.Namespace, **sizes: int | None) -> reproduce.Setup:
    """What the trainings of an experiment share. sizes: further ones, see ``reproduce.Setup``."""
    sizes = {"crop_size": args.crop_size, **sizes}
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


def batches(faces: Faces, machine: Machine, batch_size: int = BATCH_SIZE) -> Iterable[Batch]:
    """Every face of a split once, on the device, with a bar of progress."""
    found = evaluation_batches(faces, batch_size, machine=machine)
    return (batch.to(machine.device) for batch in tqdm(found, disable=None, leave=False))


@contextmanager
def inference(machine: Machine) -> Iterator[None]:
    """Without gradients, in the machine's precision."""
    with torch.inference_mode(), runtime.autocast(machine.device, machine.amp):
        yield


def smoothed(photo_HW3: np.ndarray, scale: float) -> np.ndarray:
    """A photo before it is resized: blurred as far as it shrinks, since what is left out would show as false edges."""
    return cv2.GaussianBlur(photo_HW3, (0, 0), 0.5 * (scale**-2 - 1) ** 0.5) if scale < 1 else photo_HW3


class Tally:
    """The confusion matrix of a label set, which grows: matrix_KK, int64, rows: truth."""

    def __init__(self, labels: LabelSet) -> None:
        self.labels, self.matrix_KK = labels, np.zeros((len(labels), len(labels)), np.int64)

    def add(self, predicted: Array, true: Array) -> None:
        """Count the pixels of label maps."""
        self.matrix_KK += confusion_matrix(predicted, true, len(self.labels))

    def add_batch(self, predicted_BHW: Tensor, true_BHW: Tensor, sizes_B2: Tensor) -> None:
        """Count the pixels of padded label maps."""
        counts_BKK = confusion_matrices(predicted_BHW, true_BHW, sizes_B2, len(self.labels))
        self.matrix_KK += counts_BKK.sum(0).cpu().numpy()

    def f1(self) -> dict[str, float | None]:
        """Both headline scores."""
        return headline(scores(self.matrix_KK, self.labels))


# windows that miss


def part_boxes(labels_BHW: Tensor) -> Tensor:
    """Bounding boxes of the six parts in a label map (integer, the nine labels).

    Returns boxes_BP4 as (left, top, right, bottom), the outermost pixels that are the part; NaN where it is missing.
    """
    boxes_BP4 = torch.full((len(labels_BHW), NUM_PARTS, 4), torch.nan, device=labels_BHW.device)
    for part, ids in enumerate(NINE.part_ids):
        part_BHW = among(labels_BHW, ids)
        there_B = part_BHW.any((1, 2))
        boxes_BP4[there_B, part] = masks_to_boxes(part_BHW[there_B])
    return boxes_BP4


class Misses:
    """How far windows are from the true ones, over all windows that were added."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []  # (N, 2) of each batch: see ``summary``

    def add(
        self, theta_BP23: Tensor, truth_BP23: Tensor, boxes_BP4: Tensor, sizes_B2: Tensor, counted_BP: Tensor
    ) -> None:
        """Compare the counted windows (bool) of a batch with the true ones; only parts that the photo shows count.

        A window misses when its centre is off by more than a quarter of the true window's side, or when it cuts the
        part's box and the true window does not. theta_BP23, truth_BP23: upright, in the frame of each photo.
        boxes_BP4: see ``part_boxes``.
        """
        span_B112 = (sizes_B2.flip(-1).float() - 1)[:, None, None]
        corners_BP22 = boxes_BP4.unflatten(-1, (2, 2))

        def window(theta_BP23: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Centre (B, P, 1, 2) and half of the sides, pixels; whether it holds the part's box (B, P)."""
            centre_BP12 = (theta_BP23[..., None, :, 2].float() + 1) / 2 * span_B112
            half_BP12 = torch.diagonal(theta_BP23[..., None, :, :2].float(), dim1=-2, dim2=-1).abs() / 2 * span_B112
            slack = 1e-2  # pixels; theta is a float32
            return centre_BP12, half_BP12, ((corners_BP22 - centre_BP12).abs() <= half_BP12 + slack).all((-1, -2))

        centre_BP12, _, holds_BP = window(theta_BP23)
        true_centre_BP12, true_half_BP12, true_holds_BP = window(truth_BP23)
        pixels_BP = (centre_BP12 - true_centre_BP12).norm(dim=(-1, -2))
        share_BP = pixels_BP / (2 * true_half_BP12 + 1).mean((-1, -2))
        missed_BP = (true_holds_BP & ~holds_BP) | (share_BP > 0.25)
        self.rows.append(torch.stack([missed_BP.float(), pixels_BP], -1)[counted_BP].cpu().numpy())

    def summary(self) -> dict[str, float] | None:
        """Share of windows that miss, and mean distance of the centres in pixels; None where no window was counted."""
        rows_N2 = np.concatenate(self.rows)
        if not len(rows_N2):
            return None
        miss_rate, pixels = rows_N2.astype(np.float64).mean(0).round(5).tolist()
        return {"miss_rate": miss_rate, "pixels_mean": pixels}


# output


def write(
    name: str, args: argparse.Namespace, argv: list[str] | None, numbers: Result, table: Callable[[Result], str]
) -> int:
    """Write NAME.json (command, split, numbers) into ``--out``; print the table. Returns 0."""
    result = {
        "command": f"python -m experiments.{name} {shlex.join(portable(sys.argv[1:] if argv is None else argv))}",
        "git": runtime.git_revision(),
        "torch": torch.__version__,
        **({"split": args.split} if "split" in args else {}),
        **numbers,
    }
    files.write_text(args.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    print("\n" + table(result) + f"\nwritten: {args.out / name}.json")
    return 0


def portable(words: Sequence[str]) -> list[str]:
    """Words of a command line without the folders of this machine: DIR stands for those of absolute paths."""
    return [re.sub(r"^(--[a-z-]+=)?/(.*/)?", r"\1DIR/", word) for word in words]
