"""The command-line options that the scripts share, and their checks."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.datasets.celebamask import PARTITIONS
from data.labels import LABEL_SETS
from data.listing import SPLITS
from data.source import DATASETS, FaceData
from models.loading import SHIPPED_WEIGHTS
from training.engine import refuse_used
from training.recipes import GUEST_RECIPE_NAMES, RECIPE_NAMES, GuestRecipes, Recipes
from training.task import Plan
from utils import distributed, runtime
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import Machine


def base_parser(description: str | None, splits: bool = False, batch_size: int | None = None) -> Parser:
    """A parser with the options of every script that reads a data set.

    splits: with --split. batch_size: the default; None: the recipe's.
    """
    parser = Parser(description)
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=tuple(DATASETS), default="synthetic", help="which data set")
    group.add_argument("--data", type=Path, metavar="DIR", help="its folder; synthetic faces need none")
    group.add_argument("--partition", choices=PARTITIONS, help="how to split CelebAMask-HQ's official layout")
    group.add_argument(
        "--labels",
        choices=tuple(LABEL_SETS),
        help="what the ids of --dataset list mean; of training the whole face: what to label, default all that the "
        "data set does; of evaluate.py --predictions: the label set to compare in",
    )
    group.add_argument(
        "--face-size",
        type=int,
        metavar="N",
        help="longer side of the faces, pixels; default: 192 for synthetic faces, photos as they are",
    )
    group.add_argument("--cache", type=Path, default=Path("cache"), metavar="DIR", help="where decoded faces are kept")
    group.add_argument(
        "--max-images",
        type=int,
        metavar="N",
        help="use the first N faces of each split, for a quick look; of synthetic faces, draw N to train on",
    )
    if splits:
        group.add_argument("--split", choices=SPLITS, default="test", help="which part of the data set")
    add_machine_options(parser, batch_size)
    return parser


def add_checkpoint_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="extend",
        nargs="+",
        metavar="FILE",
        help="a checkpoint of a parser, or several that hold its networks between them; default: the weights that ship",
    )


def add_mirror_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--mirror", action="store_true", help="label the mirrored photo too and average: about 1.5 times the time"
    )


def checkpoints(args: argparse.Namespace) -> list[Path]:
    """The checkpoints that the options name, or the weights that ship. Raises InputError where there are neither."""
    if args.checkpoint:
        return args.checkpoint
    if SHIPPED_WEIGHTS.is_file():
        return [Path(os.path.relpath(SHIPPED_WEIGHTS))]  # scores.json names it: no folder of this machine
    raise InputError(f"--checkpoint FILE is needed: no weights lie at {SHIPPED_WEIGHTS}")


def add_recipe_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--recipe",
        choices=RECIPE_NAMES,
        default="paper",
        help="the paper's hyperparameters, its method in few steps (for a CPU; with --face-size 320), ours, "
        "or ours with wider augmentation",
    )


def add_guest_recipe_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--recipe", choices=GUEST_RECIPE_NAMES, default="best", help="the authors' hyperparameters, or ours"
    )


def add_device_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_machine_options(parser: argparse.ArgumentParser, batch_size: int | None = None) -> None:
    group = parser.add_argument_group("machine")
    add_device_option(group)
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that load faces beside the main one, and threads that decode photos; default: 2, but on the "
        "CPU, where loading takes a hundredth of a step, 0 processes",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        default=batch_size,
        metavar="N",
        help="faces at once, over all processes" + ("; default: the recipe's" if batch_size is None else ""),
    )
    group.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    group.add_argument(
        "--amp",
        choices=("auto", "off", "bf16"),
        default="auto",
        help="bfloat16 arithmetic; auto: where the hardware has it, but never for the paper's recipes",
    )


def training_parser(
    description: str | None, trained: Sequence[str], needs: dict[str, str], guest: bool = False
) -> Parser:
    """A parser with the options of every training script.

    trained: networks with a learning rate. needs: checkpoint option -> what it holds. guest: with the recipes of
    ``GuestRecipes`` in place of the paper's, and for any label set that the data set can serve.
    """
    parser = base_parser(description)
    parser.set_defaults(any_labels=guest)
    group = parser.add_argument_group("training")
    (add_guest_recipe_option if guest else add_recipe_option)(group)
    group.add_argument("--epochs", type=int, metavar="N", help="default: the recipe's")
    for name in trained:
        flag = "--lr" if len(trained) == 1 else f"--lr-{name}"
        group.add_argument(
            flag, type=float, dest=f"lr_{name}", metavar="X", help=f"learning rate of {name}; default: the recipe's"
        )
    group.add_argument(
        "--train-labels",
        type=Path,
        metavar="DIR",
        help="train on the label maps of this folder, which python -m tools.relabel has written, in place of the data "
        "set's own; validation keeps its own",
    )
    for flag, what in needs.items():
        group.add_argument(flag, type=Path, metavar="FILE", help=what)
    group.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="where this run's files go")
    group.add_argument("--resume", action="store_true", help="go on with the run in --run-dir")
    return parser


def check(args: argparse.Namespace, required: Sequence[str] = ()) -> None:
    """Check the shared options' ranges; settle ``--workers``. Raises one InputError that names every problem."""
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
    need("workers", lambda v: 0 <= v <= 256, "between 0 and 256")
    need("batch_size", lambda v: 1 <= v <= 65536, "between 1 and 65536")
    need("seed", lambda v: 0 <= v < 2**63, "between 0 and 2**63 - 1")
    need("epochs", lambda v: v >= 1, "at least 1")
    rates = sum(name.startswith("lr_") for name in vars(args))  # a single one is called --lr
    for name in vars(args):
        if name.startswith("lr_"):
            need(name, lambda v: 0 <= v < 100, "at least 0 and below 100", "lr" if rates == 1 else name)
    for name in required:
        if getattr(args, name) is None:
            problems.append(f"--{name.replace('_', '-')} is needed")
    if dataset != "synthetic" and args.data is None:
        problems.append(f"--data is needed for --dataset {dataset}: name its folder")
    if partition is not None and not DATASETS[dataset].partitions:
        problems.append(f"--partition {partition}: there is but one way to split --dataset {dataset}; leave it out")
    if hasattr(args, "labels"):
        any_ids = DATASETS[dataset].labels is None
        if any_ids and args.labels is None:
            problems.append(f"--labels is needed for --dataset {dataset}: say what the ids of its label maps mean")
        if args.labels and not any_ids and dataset != "synthetic" and not getattr(args, "any_labels", False):
            problems.append(f"--labels {args.labels}: --dataset {dataset} has its own; leave it out")
    try:
        device = runtime.pick_device(args.device)
    except InputError as error:
        problems.append(str(error))
    for name in ("run_dir", "out", "coloured"):
        if folder := getattr(args, name, None):
            problems += _blocked(f"--{name.replace('_', '-')} {folder}", folder)
    if problems:
        raise InputError("; ".join(problems))
    if args.workers is None:
        args.workers = 0 if device.type == "cpu" else 2


def _blocked(flag: str, folder: Path) -> list[str]:
    """The problem of a folder that cannot be made since a file stands in its way."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if there is None or there.is_dir():
        return []
    return [f"{flag}: {'it' if there == folder else there} is a file; name a folder"]


def face_data(args: argparse.Namespace) -> FaceData:
    """Which faces the options name."""
    relabelled = getattr(args, "train_labels", None)
    chosen = getattr(args, "any_labels", False) and DATASETS[args.dataset].labels is not None  # of what is trained
    ids = None if chosen else args.labels
    return FaceData(
        args.dataset, args.data, args.partition, args.face_size, args.max_images, args.cache, ids, relabelled
    )


def machine(args: argparse.Namespace) -> Machine:
    """Where the options let the script run. Raises InputError where there is no such device."""
    papers = args.amp == "auto" and getattr(args, "recipe", "").startswith("paper")
    return Machine(runtime.pick_device(args.device), args.workers, "off" if papers else args.amp)


def plan(args: argparse.Namespace, recipes: Recipes | GuestRecipes, starts: Sequence[str] = (), **model: Any) -> Plan:
    """Check a training script's options, join the other processes, and settle recipe and device.

    starts: the options that name a checkpoint to start from. model: fields of the parser's ``Config`` that options set
    (None: the recipe's). Raises InputError naming every option out of range, and for a run folder in use.
    """
    check(args)
    if not args.resume:
        refuse_used(args.run_dir)
    rates = {name.removeprefix("lr_"): value for name, value in vars(args).items() if name.startswith("lr_")}
    recipe = recipes.choose(args.recipe, args.dataset).changed(
        args.epochs, args.batch_size, {name: value for name, value in rates.items() if value is not None}
    )
    if not any(recipe.optimisation.lr.values()):
        raise InputError("every learning rate is 0: nothing would be trained")
    require_shares(recipe.batch_size)
    where = machine(args)
    distributed.start_processes(args.device)
    start = {name: path for name in starts if (path := getattr(args, name)) is not None}
    given = {name: value for name, value in model.items() if value is not None}
    data = face_data(args)
    labels = LABEL_SETS[args.labels] if args.labels and args.any_labels else data.labels
    try:
        data.labels.map_to(labels)
    except InputError as error:
        raise InputError(f"--labels {args.labels}: {error}") from None
    return Plan(data, recipe, where, args.run_dir, args.seed, args.resume, start, given, labels)


def require_shares(batch_size: int) -> None:
    """Raises InputError for a global batch that the processes cannot share evenly."""
    if batch_size % distributed.world_size():
        raise InputError(
            f"--batch-size {batch_size}: must be a multiple of the {distributed.world_size()} processes sharing it"
        )
