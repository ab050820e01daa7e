"""The command-line options that the training scripts share, and the plan that they make."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.stn_icnn.parts import NETWORKS
from scoring.options import add_seed_option, base_parser, check, face_data, machine
from training.engine import refuse_used
from training.recipes import AUGMENTATIONS, RECIPE_NAMES, WHOLE_FACE_RECIPE_NAMES, Recipes, WholeFaceRecipes
from training.task import Plan
from utils import distributed
from utils.cli import Parser
from utils.errors import InputError


def add_recipe_option(cli: argparse._ActionsContainer) -> None:
    cli.add_argument(
        "--recipe",
        choices=RECIPE_NAMES,
        default="paper",
        help="paper: the paper's hyperparameters; paper-short: on a short schedule, for a CPU (use --face-size 320); "
        "best: ours; wide: best with stronger augmentation",
    )


def training_parser(
    description: str | None,
    trained: Sequence[str],
    needs: dict[str, str],
    whole_face: bool = False,
    recipes: bool = True,
) -> Parser:
    """The command line of every training script.

    trained: networks with a learning rate. needs: checkpoint option -> what it holds. whole_face: with the recipes of
    ``WholeFaceRecipes`` instead of the paper's, and for any label set that the data set can serve. recipes: False:
    without ``--recipe``, "best" is the only one.
    """
    cli = base_parser(description)
    cli.set_defaults(any_labels=whole_face)
    group = cli.add_argument_group("training")
    cli.set_defaults(recipe="best")
    if recipes and whole_face:
        what = "best: our hyperparameters; seed: the authors'"
        group.add_argument("--recipe", choices=WHOLE_FACE_RECIPE_NAMES, default="best", help=what)
    elif recipes:
        add_recipe_option(group)
    add_seed_option(group)
    group.add_argument("--epochs", type=int, metavar="N", help="training epochs; default: the recipe's")
    for name in trained:
        flag = "--lr" if len(trained) == 1 else f"--lr-{name}"
        group.add_argument(flag, type=float, metavar="X", help=f"learning rate ({name}); default: the recipe's")
    for name in NETWORKS if "parts" in trained else ():
        dest, what = f"lr_parts.nets.{name}", f"learning rate of the {name} network; default: that of the parts"
        group.add_argument(f"--lr-{name}", type=float, dest=dest, metavar="X", help=what)
    group.add_argument("--weight-decay", type=float, metavar="X", help="weight decay; default: the recipe's")
    group.add_argument(
        "--augmentation", choices=AUGMENTATIONS, help="augmentation of the training faces; default: the recipe's"
    )
    group.add_argument(
        "--train-labels",
        type=Path,
        metavar="DIR",
        help="train on the label maps in this folder (from python -m tools.relabel) instead of the data set's; "
        "validation is unchanged",
    )
    if whole_face:
        group.add_argument(
            "--mirror-probability", type=float, metavar="P", help="probability of mirroring; default: the recipe's"
        )
        what = "range of random scaling, 1: unchanged; default: the recipe's"
        group.add_argument("--scale-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help=what)
        group.add_argument(
            "--balance",
            type=float,
            metavar="SHARE",
            help="oversample faces with labels that fewer than this share of the faces have; 0: each face once per "
            "epoch; default: the recipe's",
        )
        group.add_argument(
            "--least-share",
            type=float,
            metavar="SHARE",
            help="weight labels below this share of all pixels as if they had it; 0: no class weights; default: the "
            "recipe's",
        )
    for flag, what in needs.items():
        group.add_argument(flag, type=Path, metavar="FILE", help=what)
    group.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="folder for checkpoints and logs")
    group.add_argument("--resume", action="store_true", help="continue the run in --run-dir")
    return cli


def add_network_options(cli: argparse._ActionsContainer, *networks: str) -> None:
    """``--coarse-channels``, ``--part-channels`` and ``--kernel``. networks: "coarse", "part"."""
    for network in networks:
        what = f"channels of each {network} network's four rows, finest first; default: 8 16 24 32, or the checkpoint's"
        cli.add_argument(f"--{network}-channels", type=int, nargs=4, metavar="N", help=what)
    cli.add_argument("--kernel", type=int, metavar="N", help="kernel size of the convolutions: 3 or 5 (default)")


def plan(
    args: argparse.Namespace, recipes: Recipes | WholeFaceRecipes, starts: Sequence[str] = (), **model: Any
) -> Plan:
    """Check a training script's options, join the other processes, and settle recipe and device.

    starts: the options that name a checkpoint to start from. model: fields of the parser's ``Config`` that options set
    (None: the recipe's). Raises InputError naming every option out of range, and for a run folder in use.
    """
    check(args)
    if not args.resume:
        refuse_used(args.run_dir)
    recipe = recipes.choose(args.recipe, args.dataset)
    given = {name: value for name, value in vars(args).items() if name.split("_")[0] == "lr" and value is not None}
    rates = {next(iter(recipe.optimisation.lr)) if name == "lr" else name[3:]: value for name, value in given.items()}
    recipe = recipe.changed(args.epochs, args.batch_size, rates, args.weight_decay, args.augmentation)
    mirror, scale = (getattr(args, name, None) for name in ("mirror_probability", "scale_range"))
    if mirror is not None or scale:
        changes = {**({} if mirror is None else {"mirror": mirror}), **({"scale": tuple(scale)} if scale else {})}
        try:
            recipe = replace(recipe, augmentation=replace(recipe.augmentation, **changes))
        except ValueError:
            message = "the probability must be 0 to 1, the range above 0 and rising"
            raise InputError(f"--mirror-probability {mirror}, --scale-range {scale}: {message}") from None
    shares = {name: share for name in ("balance", "least_share") if (share := getattr(args, name, None)) is not None}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"--{name.replace('_', '-')} {share}: must be between 0 and 1")
    recipe = replace(recipe, **shares)
    lr = recipe.optimisation.lr
    if not any(rate for name, rate in lr.items() if any(f"{name}.nets.{part}" not in lr for part in NETWORKS)):
        raise InputError("every learning rate is 0: nothing would be trained")
    require_shares(recipe.batch_size)
    where = machine(args)
    distributed.start_processes(where.device)
    start = {name: path for name in starts if (path := getattr(args, name)) is not None}
    data = face_data(args)
    labels = args.labels if args.labels and args.any_labels else data.labels
    try:
        data.labels.map_to(labels)
    except InputError as error:
        raise InputError(f"--labels {args.labels.name}: {error}") from None
    return Plan(data, recipe, where, args.run_dir, args.seed, args.resume, start, settled(model), labels)


def settled(model: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a parser's ``Config`` that options set, as it holds them: no None, tuples for lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in model.items() if v is not None}


def require_shares(batch_size: int) -> None:
    """Raises InputError for a global batch that the processes cannot share evenly."""
    if batch_size % distributed.world_size():
        raise InputError(
            f"--batch-size {batch_size}: must be a multiple of the {distributed.world_size()} processes sharing it"
        )
