"""Trains the four stages on one data set, then scores every row of the F1 table. Finished stages are skipped.

--seeds trains once per seed, seed N into OUT-seedN. --hybrid is the paper's section 3.1: the four stages on HELEN, into
OUT-helen, then end to end on 2,000 faces of CelebAMask-HQ.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import train_cropper
import train_end2end
import train_stage1
import train_stage2
from data.labels import NINE, label_set
from data.loaders import open_faces, require_batch
from data.source import FaceData, open_source
from models.stn_icnn.model import STNiCNN
from scoring import options
from scoring.evaluation import Request, describe, score_model
from scoring.files import save
from scoring.metrics import headline, table
from scoring.published import published_rows
from training.engine import fit
from training.options import add_network_options, add_recipe_option, require_shares, settled
from training.recipes import Recipe
from training.task import Plan
from utils import distributed, files, locks
from utils.errors import InputError
from utils.runtime import Machine, run_main
from utils.tables import markdown


class Stage(NamedTuple):
    """A stage of the chain: its script, the earlier stages that it starts from (name in ``Plan.start`` -> stage), and
    the sizes of the model that it settles."""

    script: ModuleType
    sources: dict[str, str]
    sizes: tuple[str, ...]


class Row(NamedTuple):
    """A row of the F1 table: the stages whose checkpoints it takes, and where its windows come from."""

    stages: tuple[str, ...]
    crops: str


@dataclass(frozen=True)
class Setup:
    """What the trainings of one chain share.

    sizes: fields of the parser's ``Config`` that options set, None for the recipe's; a stage takes those it settles.
    """

    data: FaceData
    machine: Machine
    seed: int = 0
    sizes: Mapping[str, Any] = field(default_factory=dict)


STAGES = {
    "stage1": Stage(train_stage1, {}, ("coarse_size", "coarse_channels", "kernel")),
    "cropper": Stage(train_cropper, {"init_from": "stage1"}, ("crop_size",)),
    "stage2": Stage(train_stage2, {}, ("crop_size", "part_channels", "kernel")),
    "end2end": Stage(train_end2end, {"init_from_cropper": "cropper", "init_from_stage2": "stage2"}, ()),
}
ROWS = {
    "coarse mask enlarged": Row(("stage1",), "none"),
    "iCNN (old cropper)": Row(("cropper", "stage2"), "baseline"),
    "STN-iCNN before end-to-end": Row(("cropper", "stage2"), "predicted"),
    "STN-iCNN": Row(("end2end",), "predicted"),
    "STN-iCNN, true windows": Row(("end2end",), "truth"),
}

HYBRID_FACES = 2000  # of CelebAMask-HQ, paper §3.1


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    sizes = {name: getattr(args, name) for stage in STAGES.values() for name in stage.sizes}
    setup = Setup(options.face_data(args), options.machine(args), args.seed, sizes)
    distributed.start_processes(setup.machine.device)
    with distributed.explain_lost():
        for seed in args.seeds or [args.seed]:
            out = args.out.with_name(f"{args.out.name}-seed{seed}") if args.seeds else args.out
            (hybrid if args.hybrid else chain)(args, replace(setup, seed=seed), out)
    return 0


def chain(args: argparse.Namespace, setup: Setup, out: Path) -> Path:
    """Train and score the four stages on the data of a setup; returns the end-to-end checkpoint."""
    plans = plan_stages(recipes_of(args, setup.data), setup, out)
    require_readable(setup.data, args.split, setup.machine)
    with locks.one_run(out, "--out"):
        best = {name: train_stage(name, plan) for name, plan in plans.items()}
        score_rows(best, setup, args.split, out)
    return best["end2end"]


def hybrid(args: argparse.Namespace, setup: Setup, out: Path) -> Path:
    """The chain on HELEN, then end-to-end training on the first faces of CelebAMask-HQ with that data set's recipe and
    windows; returns the checkpoint."""
    data = replace(setup.data, max_images=setup.data.max_images or HYBRID_FACES)
    require_readable(setup.data, args.split, setup.machine)
    helen = replace(setup, data=replace(setup.data, dataset="helen", root=args.hybrid, partition=None))
    start = {"init_from": chain(args, helen, out.with_name(f"{out.name}-helen"))}
    window = setup.sizes.get("crop_size") or train_stage2.RECIPES.choose(args.recipe, data.dataset).model.get(
        "crop_size"
    )
    recipe = recipes_of(args, data)["end2end"]
    plan = Plan(data, recipe, setup.machine, out / "end2end", setup.seed, True, start, settled({"crop_size": window}))
    with locks.one_run(out, "--out"):
        best = train_stage("end2end", plan)
        score_rows({"end2end": best}, setup, args.split, out)
    return best


def recipes_of(args: argparse.Namespace, data: FaceData, stages: Sequence[str] = tuple(STAGES)) -> dict[str, Recipe]:
    """Each stage's recipe for a data set, changed by the options (``--epochs``: one for each stage)."""
    epochs = dict(zip(stages, args.epochs or [None] * len(stages), strict=True))
    chosen = {name: STAGES[name].script.RECIPES.choose(args.recipe, data.dataset) for name in stages}
    return {name: recipe.changed(epochs[name], args.batch_size) for name, recipe in chosen.items()}


def require_readable(data: FaceData, split: str, machine: Machine) -> None:
    """Whatever cannot be read is reported before hours of training. Raises InputError."""
    for name in ("train", "val", split):
        open_faces(data, name, NINE, threads=machine.threads)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    cli = options.base_parser(__doc__, splits=True)
    add_recipe_option(cli)
    options.add_seed_option(cli)
    cli.add_argument("--epochs", type=int, nargs=4, metavar="N", help=f"of {', '.join(STAGES)}; default: the recipe's")
    cli.add_argument("--coarse-size", type=int, metavar="N", help="side of the resized photo, pixels")
    cli.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples")
    add_network_options(cli, "coarse", "part")
    cli.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for runs and scores")
    cli.add_argument("--seeds", type=int, nargs="+", metavar="N", help="train once per seed, into OUT-seedN")
    what = "HELEN's folder: train there, then fine-tune on 2,000 CelebAMask-HQ faces"
    cli.add_argument("--hybrid", type=Path, metavar="DIR", help=what)
    args = cli.parse_args(argv)
    options.check(args)
    if args.hybrid and args.dataset != "celebamask":
        raise InputError(f"--hybrid fine-tunes on CelebAMask-HQ: use --dataset celebamask, not {args.dataset}")
    return args


def plan_stages(recipes: Mapping[str, Recipe], setup: Setup, out: Path) -> dict[str, Plan]:
    """The trainings of the stages that have a recipe, in order: stage -> plan. Stage NAME goes into out/NAME.

    Raises InputError for options that cannot be, and for batches larger than an epoch.
    """
    count = len(open_source(setup.data, "train").samples)
    plans: dict[str, Plan] = {}
    for name, recipe in recipes.items():
        require_batch(count * recipe.augmentation.folds, recipe.batch_size)
        best = {stage: plan.folder / "best.pt" for stage, plan in plans.items()}
        plans[name] = plan_stage(name, recipe, setup, out / name, best)
    return plans


def plan_stage(name: str, recipe: Recipe, setup: Setup, folder: Path, best: Mapping[str, Path]) -> Plan:
    """The training of one stage, which continues where it was interrupted.

    best: checkpoints of the stages before it. Raises InputError for options that cannot be.
    """
    stage = STAGES[name]
    sizes = settled({size: setup.sizes.get(size) for size in stage.sizes})
    sources = {key: best[source] for key, source in stage.sources.items()}
    require_shares(recipe.batch_size)
    plan = Plan(setup.data, recipe, setup.machine, folder, setup.seed, True, sources, sizes)
    plan.config(STNiCNN)
    return plan


def train_stage(name: str, plan: Plan) -> Path:
    """Train a stage, or what is left of it; returns its best checkpoint."""
    task = STAGES[name].script.build(plan)
    fit(task, task.run)
    distributed.barrier()
    return plan.folder / "best.pt"


def score_rows(best: Mapping[str, Path], setup: Setup, split: str, out: Path) -> None:
    """Score every row of the table; write it into out/table_SPLIT.md, and print it.

    best: stage -> its checkpoint; rows of other stages are left out. The paper's rows follow ours. What is scored
    already, in out/scores/SPLIT, is not scored again.
    """
    results = {}
    for title, row in ((title, row) for title, row in ROWS.items() if best.keys() >= {*row.stages}):
        checkpoints = [best[stage] for stage in row.stages]
        request = Request(checkpoints, setup.data, setup.machine, split, row.crops)
        results[title] = score(request, out / "scores" / split / slug(title), title)
    if distributed.rank() == 0:
        labels = label_set(next(iter(results.values()))["labels"])
        text = f"{setup.data.dataset}, {split} split\n\n{table(results, labels)}"
        if split == "test" and (rows := published_rows(setup.data.dataset)):
            text += "\n" + markdown(["F1, paper", *labels.groups], rows)
        files.write_text(out / f"table_{split}.md", text)
        print("\n" + text)


def score(request: Request, folder: Path, title: str) -> dict[str, Any]:
    """scores.json in a folder, made again where it is not of these weights and faces. title: of the row, to print."""
    file = folder / "scores.json"
    if not all(distributed.gather(is_scored(file, request))):
        evaluation = score_model(request)
        if distributed.rank() == 0:
            found = headline(save(folder, evaluation))
            values = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)
            print(f"{title}, {request.split} split: {values}", flush=True)
        distributed.barrier()
    return files.read_json(file, "scores")


def is_scored(file: Path, request: Request) -> bool:
    """Whether scores.json is there and of the weights and faces that are asked for."""
    if not file.exists():
        return False
    about, data = files.read_json(file, "scores"), request.data
    faces = open_faces(data, request.split, data.labels, threads=request.machine.threads)
    return all(about.get(name) == value for name, value in describe(request, faces).items())


def slug(title: str) -> str:
    """A row's title as a folder name."""
    return "".join(c if c.isalnum() or c == "-" else "_" for c in title)


if __name__ == "__main__":
    sys.exit(run_main(main))
