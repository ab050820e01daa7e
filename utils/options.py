"""The command-line options that the scripts share, and their checks."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch.utils.data import DataLoader

from data.augment import NO_AUGMENTATION, WIDE_AUGMENTATION, Augmentation
from data.loading import Faces, open_faces, training_batches
from data.source import SPLITS
from models.stn_icnn import STNiCNNConfig
from utils import runtime
from utils.engine import Optimisation, refuse_used
from utils.errors import InputError

DATASETS = ("synthetic", "helen", "celebamask")
SHIPPED_WEIGHTS = Path(__file__).resolve().parent.parent / "checkpoints" / "stn_icnn.pt"


@dataclass(frozen=True)
class Recipe:
    """Everything a stage is trained with: the defaults of its options.

    batch_size: over all processes. model: fields of STNiCNNConfig that differ from its defaults.
    dice, theta_beta, jitter, coarse_weight, theta_weight: see the stages that use them.
    """

    optimisation: Optimisation
    batch_size: int
    augmentation: Augmentation = NO_AUGMENTATION
    model: dict[str, Any] = field(default_factory=dict)
    dice: float = 0.0
    theta_beta: float = 1.0
    jitter: float = 0.0
    coarse_weight: float = 0.0
    theta_weight: float = 0.0


class Recipes(NamedTuple):
    """A stage's recipes: the paper's for each of its data sets (synthetic faces use HELEN's), the paper's method in
    few steps (one-cycle, each face once an epoch), and ours."""

    paper_helen: Recipe
    paper_celebamask: Recipe
    paper_short: Recipe
    best: Recipe


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors: one line, exit status 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def base_parser(description: str | None, splits: bool = False, batch_size: int | None = None) -> Parser:
    """A parser with the options of every script that reads a data set.

    splits: with --split. batch_size: the default; None: the recipe's.
    """
    parser = Parser(description)
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default="synthetic", help="which data set")
    group.add_argument("--data", type=Path, metavar="DIR", help="its folder; synthetic faces need none")
    group.add_argument(
        "--partition", choices=("standard", "paper"), help="how to split CelebAMask-HQ's official layout"
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


def add_checkpoint_option(parser: argparse._ActionsContainer, nargs: str | int = "+") -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="extend",
        nargs=nargs,
        metavar="FILE",
        help="an end-to-end checkpoint, or several that hold its modules between them; default: the weights that ship",
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
        return [Path(os.path.relpath(SHIPPED_WEIGHTS))]  # as scores.json tells it: no folder of this machine
    raise InputError(f"--checkpoint FILE is needed: no weights lie at {SHIPPED_WEIGHTS}")


def add_recipe_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--recipe",
        choices=("paper", "paper-short", "best", "wide"),
        default="paper",
        help="the paper's hyperparameters, its method in few steps (for a CPU; with --face-size 320), ours, "
        "or ours with wider augmentation",
    )


def add_machine_options(parser: argparse.ArgumentParser, batch_size: int | None = None) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
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
        help="bfloat16 arithmetic; auto: where the hardware has it",
    )


def training_parser(description: str | None, trained: Sequence[str], needs: dict[str, str]) -> Parser:
    """A parser with the options of every training script.

    trained: modules with a learning rate. needs: checkpoint option -> what it holds.
    """
    parser = base_parser(description)
    group = parser.add_argument_group("training")
    add_recipe_option(group)
    group.add_argument("--epochs", type=int, metavar="N", help="default: the recipe's")
    for name in trained:
        flag = "--lr" if len(trained) == 1 else f"--lr-{name}"
        group.add_argument(
            flag, type=float, dest=f"lr_{name}", metavar="X", help=f"learning rate of {name}; default: the recipe's"
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
    if getattr(args, "dataset", "synthetic") != "synthetic" and args.data is None:
        problems.append(f"--data is needed for --dataset {args.dataset}: name its folder")
    if problems:
        raise InputError("; ".join(problems))
    if args.workers is None:
        args.workers = 0 if runtime.pick_device(args.device).type == "cpu" else 2


def threads(workers: int) -> int:
    """How many threads decode and write photos: what ``--workers`` says, two at least."""
    return max(2, workers)


def open_split(args: argparse.Namespace, split: str, photos: bool = True) -> Faces:
    """One split of the data set that the options name, through its cache. photos: see ``data.loading.open_faces``."""
    return open_faces(
        args.dataset,
        args.data,
        split,
        args.cache,
        args.max_images,
        threads(args.workers),
        args.partition,
        args.face_size,
        photos,
    )


@dataclass(frozen=True)
class Run:
    """A training run as its options describe it."""

    args: argparse.Namespace
    recipe: Recipe
    config: STNiCNNConfig
    device: torch.device

    @property
    def eval_batch(self) -> int:
        """Faces at once in validation, over all processes."""
        return 16 * runtime.world_size()

    def with_config(self, config: STNiCNNConfig) -> "Run":
        """The same run for a model that a checkpoint describes."""
        return replace(self, config=config)

    def batches(self, train: Faces) -> Callable[[int], DataLoader]:
        """Epoch -> this process's share of the training batches."""
        return lambda epoch: training_batches(
            train,
            self.recipe.batch_size,
            self.args.seed,
            epoch,
            self.recipe.augmentation.folds,
            runtime.rank(),
            runtime.world_size(),
            self.args.workers,
        )

    def fit_options(self, train: Faces) -> dict[str, Any]:
        """The arguments of ``utils.engine.fit`` that every stage fills alike."""
        return {
            "batches": self.batches(train),
            "optimisation": self.recipe.optimisation,
            "amp": self.args.amp,
            "device": self.device,
            "run_dir": self.args.run_dir,
            "resume": self.args.resume,
            "description": {
                "config": asdict(self.config),
                "dataset": self.args.dataset,
                "partition": self.args.partition,
                "face_size": self.args.face_size,
                "images": len(train),
                "seed": self.args.seed,
                "recipe": asdict(self.recipe),
            },
        }


def start(args: argparse.Namespace, recipes: Recipes, **model: Any) -> Run:
    """Check the options, join the other processes, seed, and settle the recipe and the device.

    model: fields of STNiCNNConfig that options set (None: the recipe's). Raises InputError naming every option out
    of range, and for a run folder in use.
    """
    check(args)
    if not args.resume:
        refuse_used(args.run_dir)
    recipe = {
        "paper": recipes.paper_celebamask if args.dataset == "celebamask" else recipes.paper_helen,
        "paper-short": recipes.paper_short,
        "best": recipes.best,
        "wide": replace(recipes.best, augmentation=WIDE_AUGMENTATION),
    }[args.recipe]
    lr = {
        name: given if (given := getattr(args, f"lr_{name}", None)) is not None else value
        for name, value in recipe.optimisation.lr.items()
    }
    if not any(lr.values()):
        raise InputError("every learning rate is 0: nothing would be trained")
    recipe = replace(
        recipe,
        optimisation=replace(recipe.optimisation, lr=lr, epochs=args.epochs or recipe.optimisation.epochs),
        batch_size=args.batch_size or recipe.batch_size,
    )
    if recipe.batch_size % runtime.world_size():
        raise InputError(
            f"--batch-size {recipe.batch_size}: must be a multiple of the {runtime.world_size()} processes sharing it"
        )
    device = runtime.pick_device(args.device)
    runtime.start_processes(args.device)
    torch.manual_seed(args.seed)
    given = {name: value for name, value in model.items() if value is not None}
    try:
        config = STNiCNNConfig(**{**recipe.model, **given})
    except ValueError as error:
        raise InputError(
            f"{' '.join(f'--{name} {value}'.replace('_', '-') for name, value in given.items())}: {error}"
        ) from error
    return Run(args, recipe, config, device)
