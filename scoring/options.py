"""The command-line options that the scripts share (data, weights, machine), and their checks."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.datasets.celebamask import PARTITIONS
from data.labels import LABEL_SETS, LabelSet, read_label_set
from data.listing import SPLITS
from data.source import DATASETS, FaceData
from models.loading import SHIPPED_WEIGHTS
from utils import runtime
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import Machine


def base_parser(description: str | None, splits: bool = False, batch_size: int | None = None) -> Parser:
    """The command line of every script that reads a data set.

    splits: with --split. batch_size: the default; None: the recipe's.
    """
    cli = Parser(description)
    group = cli.add_argument_group("data")
    add_data_options(group)
    what = "longer side of resized photos and label maps, pixels; default: unresized; synthetic faces: 192"
    group.add_argument("--face-size", type=int, metavar="N", help=what)
    group.add_argument("--cache", type=Path, default=Path("cache"), metavar="DIR", help="cache of decoded faces")
    what = "use the first N faces of each split; synthetic faces: generate N for training"
    group.add_argument("--max-images", type=int, metavar="N", help=what)
    if splits:
        group.add_argument("--split", choices=SPLITS, default="test", help="split of the data set")
    add_machine_options(cli, batch_size)
    return cli


def add_data_options(cli: argparse._ActionsContainer, required: bool = False) -> None:
    """``--dataset``, ``--data``, ``--partition``, ``--labels`` and ``--ignore-255``. required: a data set has to be
    named."""
    default = None if required else "synthetic"
    cli.add_argument("--dataset", choices=tuple(DATASETS), required=required, default=default, help="data set")
    cli.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set (not needed for synthetic)")
    cli.add_argument("--partition", choices=PARTITIONS, help="how to split CelebAMask-HQ's official layout")
    cli.add_argument(
        "--labels",
        type=_read_label_set,
        metavar="SET",
        help=f"label set: {', '.join(LABEL_SETS)}, or a .json file with your own; with --dataset list: that of the "
        "files; whole-face parsers: labels to train on (default: those of the data set); evaluate.py --predictions: "
        "labels to compare",
    )
    cli.add_argument("--ignore-255", action="store_true", help="leave pixels with id 255 out of losses and scores")


def _read_label_set(text: str) -> LabelSet:
    try:
        return read_label_set(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_checkpoint_option(cli: argparse._ActionsContainer) -> None:
    cli.add_argument(
        "--checkpoint",
        type=Path,
        action="extend",
        nargs="+",
        metavar="FILE",
        help="checkpoint, or several: of STN-iCNN's stages, of whole-face parsers (averaged), or of both; default: the "
        "shipped weights",
    )


def add_mirror_option(cli: argparse._ActionsContainer) -> None:
    cli.add_argument(
        "--mirror", action="store_true", help="test-time mirroring: average with the mirrored photo, 1.5 times the time"
    )


def checkpoints(args: argparse.Namespace) -> list[Path]:
    """The checkpoints that the options name, or the shipped weights. Raises InputError where there are neither."""
    if args.checkpoint:
        return args.checkpoint
    if SHIPPED_WEIGHTS.is_file():
        return [Path(os.path.relpath(SHIPPED_WEIGHTS))]  # scores.json names it: no folder of this machine
    raise InputError(f"--checkpoint FILE is needed: no weights at {SHIPPED_WEIGHTS}")


def add_device_option(cli: argparse._ActionsContainer) -> None:
    cli.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_seed_option(cli: argparse._ActionsContainer) -> None:
    cli.add_argument("--seed", type=int, default=0, help="random seed")


def add_machine_options(cli: argparse.ArgumentParser, batch_size: int | None = None) -> None:
    group = cli.add_argument_group("machine")
    add_device_option(group)
    what = "worker processes for data loading, and decoding threads; default: 2 on a GPU, 0 on the CPU"
    group.add_argument("--workers", type=int, metavar="N", help=what)
    group.add_argument(
        "--batch-size",
        type=int,
        default=batch_size,
        metavar="N",
        help="batch size in faces, over all processes" + ("; default: the recipe's" if batch_size is None else ""),
    )
    what = "bfloat16 autocast; auto: where the hardware is fast at it, except for the paper's recipes"
    group.add_argument("--amp", choices=("auto", "off", "bf16"), default="auto", help=what)


def check(
    args: argparse.Namespace, required: Sequence[str] = (), folders: Sequence[str] = ("run_dir", "out", "coloured")
) -> None:
    """Check the shared options' ranges; settle ``--workers``. folders: options that name a folder to write.

    Raises one InputError that names every problem.
    """
    problems: list[str] = []

    def need(name: str, holds: Callable[[Any], bool], rule: str, flag: str = "") -> None:
        given = getattr(args, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is None or holds(value):
                continue
            problems.append(f"--{(flag or name).replace('_', '-')} {value}: must be {rule}")

    dataset, partition = getattr(args, "dataset", "synthetic"), getattr(args, "partition", None)
    need("max_images", lambda v: v >= 1, "at least 1")
    need("face_size", lambda v: 16 <= v <= 2048, "between 16 and 2048")
    need("image_size", lambda v: 16 <= v <= 2048, "between 16 and 2048")
    need("margin", lambda v: 0 <= v <= 2048, "between 0 and 2048")
    need("workers", lambda v: 0 <= v <= 256, "between 0 and 256")
    need("batch_size", lambda v: 1 <= v <= 65536, "between 1 and 65536")
    need("seed", lambda v: 0 <= v < 2**63, "between 0 and 2**63 - 1")
    need("seeds", lambda v: 0 <= v < 2**63, "between 0 and 2**63 - 1")
    need("epochs", lambda v: v >= 1, "at least 1")
    need("threshold", lambda v: 0 <= v < 1, "at least 0 and below 1")
    need("rare", lambda v: 0 <= v <= 1, "between 0 and 1")
    for name in ("weight_decay", *vars(args)):
        if name == "weight_decay" or name.split("_")[0] == "lr":
            need(name, lambda v: 0 <= v < 100, "at least 0 and below 100", name.replace("parts.nets.", ""))
    for name in required:
        if getattr(args, name) is None:
            problems.append(f"--{name.replace('_', '-')} is needed")
    if "dataset" in args and dataset == "synthetic" and getattr(args, "data", None) is not None:
        problems.append(
            f"--data {args.data} is given, but --dataset is missing (synthetic faces need no folder): "
            "add --dataset, or leave --data out"
        )
    if dataset != "synthetic" and args.data is None:
        problems.append(f"--data is needed for --dataset {dataset}: give its folder")
    if partition is not None and not DATASETS[dataset].partitions:
        problems.append(f"--partition {partition}: --dataset {dataset} has only one split; leave it out")
    if hasattr(args, "labels"):
        any_ids = DATASETS[dataset].labels is None
        if any_ids and args.labels is None:
            problems.append(f"--dataset {dataset} needs --labels: the label set of its ids")
        if args.labels and not any_ids and dataset != "synthetic" and not getattr(args, "any_labels", False):
            problems.append(f"--labels {args.labels.name}: --dataset {dataset} has its own label set; leave it out")
    try:
        device = runtime.pick_device(getattr(args, "device", "cpu"))
    except InputError as error:
        problems.append(str(error))
    for name in folders:
        if folder := getattr(args, name, None):
            problems += _blocked(f"--{name.replace('_', '-')} {folder}", folder)
    if problems:
        raise InputError("; ".join(problems))
    if getattr(args, "workers", 0) is None:
        args.workers = 0 if device.type == "cpu" else 2


def refuse_existing(flag: str, path: Path, overwrite: bool) -> None:
    """Raises InputError for a file that is there and not to be replaced, and for a folder in its place."""
    if os.path.isdir(path):
        raise InputError(f"{flag} {path} is a folder: give a file")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path} already exists: choose another {flag}, or add --overwrite")


def _blocked(flag: str, folder: Path) -> list[str]:
    """The problem of a folder that cannot be made since a file stands in its way."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if there is None or there.is_dir():
        return []
    return [f"{flag}: {'it' if there == folder else there} is a file; give a folder"]


def face_data(args: argparse.Namespace) -> FaceData:
    """Which faces the options name."""
    relabelled = getattr(args, "train_labels", None)
    chosen = getattr(args, "any_labels", False) and DATASETS[args.dataset].labels is not None  # of what is trained
    ids = None if chosen else args.labels
    sizes = args.face_size, args.max_images
    return FaceData(args.dataset, args.data, args.partition, *sizes, args.cache, ids, relabelled, args.ignore_255)


def machine(args: argparse.Namespace) -> Machine:
    """Where the options let the script run. Raises InputError where there is no such device."""
    papers = args.amp == "auto" and getattr(args, "recipe", "").startswith("paper")
    return Machine(runtime.pick_device(args.device), args.workers, "off" if papers else args.amp)
