"""Trains the identity embedding on aligned faces, one folder per person, in two steps.

Step 1 trains only the classifier on a given network, step 2 everything; training from scratch begins with step 2.
Validation: the last photo of every fourth person with several photos is searched among all others; top-1 decides the
best epoch; head_top1 is the accuracy of the classifier.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from data.batch import Batch, photo_batch
from data.labels import NINE
from data.loaders import require_batch, require_pair
from data.view import NO_AUGMENTATION, Augmentation, View
from retrieval.losses import Head, centre_loss, weight_penalty
from retrieval.network import KIND, EmbeddingConfig, InceptionResnetV1, load_published, read_checkpoint
from retrieval.people import INSIDE, People, list_people, read_crops
from retrieval.ranking import NEAREST, accuracy, embed, features, search
from scoring import options
from training import batchnorm
from training.engine import Optimisation, Run, Scores, Task, fit, refuse_used
from training.options import require_shares
from training.recipes import Recipe
from utils import checkpoint, distributed, files
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import Machine, run_main

EVERY = 4  # every fourth person with several photos has one in the validation split


@dataclass(frozen=True)
class IdentityRecipe(Recipe):
    """steps: of an epoch; 0: one pass over the photos. scale, margin: of the cosine loss; scale 0: softmax over a
    linear layer. centre, alpha: factor of the centre loss, and how much of a centre stays. penalty: factor of half the
    weights' squares. dropout: before the last layer, and after it. moving: whether a frozen network's batch statistics
    still move. model: of the network's configuration, from scratch."""

    steps: int = 0
    scale: float = 0.0
    margin: float = 0.0
    centre: float = 0.0
    alpha: float = 0.0
    penalty: float = 0.0
    dropout: float = 0.5
    moving: bool = False


SEED = {  # the fine-tuning of the release that this follows; its 20 steps times 100 epochs
    1: IdentityRecipe(
        Optimisation(100, {"embedding": 0.0, "head": 0.1}, "adagrad", "step 0.8 20"),
        batch_size=100,
        steps=20,
        centre=1.0,
        alpha=0.95,
        penalty=0.01,
        moving=True,
    ),
    2: IdentityRecipe(
        Optimisation(100, {"embedding": 0.01, "head": 0.01}, "adagrad", "step 0.8 20"),
        batch_size=300,
        steps=20,
        centre=2.0,
        alpha=0.25,
        penalty=0.001,
    ),
}
COSINE = {
    1: IdentityRecipe(
        Optimisation(20, {"embedding": 0.0, "head": 0.01}, "adamw", "onecycle", weight_decay=1e-2),
        batch_size=64,
        scale=16.0,
        margin=0.2,
        dropout=0.2,
        augmentation=Augmentation(mirror=0.5, tone=0.5),
    ),
    2: IdentityRecipe(
        Optimisation(40, {"embedding": 1e-3, "head": 1e-2}, "adamw", "onecycle", weight_decay=5e-2, clip=5.0),
        batch_size=64,
        steps=70,
        scale=16.0,
        margin=0.2,
        dropout=0.2,
        model={"size": 96, "momentum": 0.1},
        augmentation=Augmentation(
            rotation=8, shift=0.06, scale=(0.88, 1.14), noise=0.03, tone=0.6, blur=0.8, mirror=0.5
        ),
    ),
}
RECIPES = {"seed": SEED, "cosine": COSINE}
RANGES = {  # of the options that change a recipe: least, greatest, help
    "decay": (0.0, 1.0, "multiply learning rates by X every --decay-epochs, instead of the recipe's schedule"),
    "decay_epochs": (1, 10**6, "epochs between decays; default: 20, by 0.8"),
    "weight_decay": (0.0, 100.0, "L2 penalty, or AdamW's weight decay"),
    "keep": (0.01, 1.0, "keep probability of the embedding's dropout"),
    "centre": (0.0, 1000.0, "weight of the centre loss"),
    "alpha": (0.0, 1.0, "momentum of the centres"),
    "save_every": (1, 10**6, "save last.pt every N epochs; default: 1"),
    "validate_every": (1, 10**6, "validate every N epochs; default: 1"),
}


@dataclass(frozen=True)
class Plan:
    """One training of one step. start: name of an option -> the file to start from; weights: those of the networks in
    it."""

    people: People
    recipe: IdentityRecipe
    step: int
    config: EmbeddingConfig
    machine: Machine
    folder: Path
    seed: int = 0
    resume: bool = False
    start: dict[str, Path] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    save_every: int = 1
    validate_every: int = 1


class Identity(Task):
    """The training of an embedding."""

    score, maximise = "top1", True

    def __init__(self, plan: Plan) -> None:
        recipe, people = plan.recipe, plan.people
        known, asked = split(people, recipe.batch_size)
        embedding = InceptionResnetV1(plan.config, recipe.dropout)
        head = Head(len(people.names), recipe.scale, recipe.margin, recipe.dropout)
        super().__init__({"embedding": embedding, "head": head}, recipe.optimisation)
        self.stage, self.plan = f"identity{plan.step}", plan
        self.embedding, self.head = embedding, head
        if recipe.moving:
            batchnorm.prepare(embedding, plan.machine.device)
        for path in plan.start.values():  # one at most
            for name, weights in plan.weights.items():
                checkpoint.load_module(self.networks[name], weights, path, name)
        head.centres.zero_()
        self.known, self.asked = known, asked
        self.labels_N: Tensor
        self.register_buffer("labels_N", torch.from_numpy(known.labels_N), persistent=False)
        self.known_crops, self.asked_crops = read_crops(known.files), read_crops(asked.files)

    @property
    def run(self) -> Run:
        """How ``training.engine.fit`` trains this task."""
        plan = self.plan
        description = {
            "parser": KIND,
            "config": asdict(plan.config),
            "people": len(plan.people.names),
            "names": plan.people.names_digest(),
            "photos": plan.people.fingerprint(),
            "seed": plan.seed,
            "recipe": asdict(plan.recipe),
            "started_from": {name: files.sha256(path) for name, path in plan.start.items()},
        }
        every = plan.save_every, plan.validate_every
        return Run(plan.folder, plan.resume, plan.machine.device, plan.machine.amp, description, *every)

    def batches(self, epoch: int) -> DataLoader:
        plan = self.plan
        rank, world = distributed.rank(), distributed.world_size()
        torch.manual_seed(plan.seed + 2**16 * (epoch * world + rank + 1))  # of dropout
        steps = plan.recipe.steps or len(self.known) // plan.recipe.batch_size
        with_images_256 = not View.needs_photos(plan.config.size)
        photos = partial(batch_at, self.known_crops, plan.seed, epoch, with_images_256)
        steps_places: Any = places(epoch, steps, plan.recipe.batch_size, rank, world)
        cuda, workers = plan.machine.device.type == "cuda", plan.machine.workers
        return DataLoader(steps_places, None, collate_fn=photos, num_workers=workers, pin_memory=cuda)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, labels_B = self.plan.recipe, self.labels_N[batch.index_B]
        if recipe.moving:
            self.embedding.train()
        view = View(batch) if recipe.augmentation == NO_AUGMENTATION else recipe.augmentation.view(batch)
        features_BE = self.head.dropout(self.embedding(view.photo(self.plan.config.size)).float())
        with torch.autocast(features_BE.device.type, enabled=False):
            losses = {"names": F.cross_entropy(self.head(features_BE, labels_B), labels_B)}
            if recipe.centre:
                losses["centre"] = recipe.centre * centre_loss(features_BE, labels_B, self.head.centres, recipe.alpha)
            if recipe.penalty:
                losses["penalty"] = recipe.penalty * weight_penalty(self)
        return losses

    def validate(self) -> Scores:
        """Top-1 and top-5 of the photos that were left out, among all others. Each process does it all: minutes of
        training stand against seconds."""
        device = self.plan.machine.device
        known_NE, asked_NE = (
            embed(self.embedding, self.known_crops, device),
            features(self.embedding, self.asked_crops, device),
        )
        found = accuracy(search(known_NE, F.normalize(asked_NE, eps=1e-5).numpy()), self.known, self.asked)
        assert found  # everyone who is asked for has further photos
        labels_N = torch.from_numpy(self.asked.labels_N)
        named_N = self.head(asked_NE.to(device), labels_N.to(device)).argmax(1).cpu()
        return {"top1": found.top1, "top5": found.top5, "head_top1": float((named_N == labels_N).float().mean())}


def places(epoch: int, steps: int, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """For each step of an epoch where this process's photos are in endless shuffled passes over all of them, int64
    (B,). batch_size: over all processes."""
    share = batch_size // world
    return [(epoch * steps + step) * batch_size + rank * share + np.arange(share) for step in range(steps)]


def batch_at(crops_NSS3: np.ndarray, seed: int, epoch: int, with_images_256: bool, places_B: np.ndarray) -> Batch:
    """The photos at these ``places``. with_images_256: see ``photo_batch``."""
    turns_B, index_B = np.divmod(places_B, len(crops_NSS3))
    for turn in np.unique(turns_B):
        order_N = np.random.default_rng((seed, int(turn))).permutation(len(crops_NSS3))
        index_B[turns_B == turn] = order_N[index_B[turns_B == turn]]
    keys_B3 = torch.tensor([(seed, epoch, int(place)) for place in places_B])
    batch = photo_batch(list(crops_NSS3[index_B]), NINE, with_images_256)
    return replace(batch, index_B=torch.from_numpy(index_B), keys_B3=keys_B3)


def split(people: People, batch_size: int) -> tuple[People, People]:
    """Photos to train on, and photos to validate with, which are searched among those. Raises InputError where they
    are too few."""
    if len(people.names) < 2:
        raise InputError(f"one person only ({people.names[0]}): training needs at least two people")
    held_N = held_out(people)
    known, asked = people.keep(~held_N), people.keep(held_N)
    if not len(asked):
        raise InputError("no person has two photos: validation needs a person with two photos")
    require_batch(len(known), batch_size)
    if len(known) < NEAREST:
        raise InputError(f"{len(known)} photos to train on: {NEAREST} or more are needed, add photos")
    return known, asked


def held_out(people: People) -> np.ndarray:
    """Which photos are left out for validation (bool): the last of every fourth person with several photos."""
    counts_K = np.bincount(people.labels_N, minlength=len(people.names))
    chosen_K = np.flatnonzero(counts_K > 1)[::EVERY]
    held_N = np.zeros(len(people), bool)
    held_N[np.cumsum(counts_K)[chosen_K] - 1] = True
    return held_N


def read_start(
    start: dict[str, Path], step: int, recipe: IdentityRecipe, people: People
) -> tuple[EmbeddingConfig, dict[str, Any]]:
    """The network's configuration, and the weights to start from, see ``Plan``. Raises InputError."""
    if len(start) > 1:
        raise InputError("--pretrained and --init-from: give one of them")
    if path := start.get("pretrained"):
        return EmbeddingConfig(), {"embedding": load_published(path).state_dict()}
    if not (path := start.get("init_from")):
        if step == 1:
            raise InputError("--step 1 trains on a given network: name it with --pretrained or --init-from")
        return EmbeddingConfig(**recipe.model), {}
    state = checkpoint.read_tensors(path)
    config, modules = read_checkpoint(state, path)
    if step == 2 and state.get("names") != people.names_digest():
        raise InputError(f"--init-from {path} was trained on other people than --data: begin with --step 1")
    return config, {name: modules.get(name) for name in ("embedding", "head")[:step]}


def changed(recipe: IdentityRecipe, args: argparse.Namespace) -> IdentityRecipe:
    """The recipe with what the options set. Raises InputError for those out of range."""
    given = {name: value for name in RANGES if (value := getattr(args, name)) is not None}
    if wrong := [
        f"--{name.replace('_', '-')} {value}: must be from {RANGES[name][0]} to {RANGES[name][1]}"
        for name, value in given.items()
        if not RANGES[name][0] <= value <= RANGES[name][1]
    ]:
        raise InputError("; ".join(wrong))
    values: dict[str, Any] = {name: given[name] for name in ("centre", "alpha") if name in given}
    if "keep" in given:
        values["dropout"] = 1 - given["keep"]
    if "weight_decay" in given and recipe.penalty:
        values["penalty"] = given.pop("weight_decay")
    if "decay" in given or "decay_epochs" in given:
        schedule = f"step {given.get('decay', 0.8)} {given.get('decay_epochs', 20)}"
        values["optimisation"] = replace(recipe.optimisation, schedule=schedule)
    rates = {name: rate for name in recipe.optimisation.lr if (rate := getattr(args, f"lr_{name}")) is not None}
    return replace(recipe, **values).changed(args.epochs, args.batch_size, rates, given.get("weight_decay"))


def plan(args: argparse.Namespace) -> Plan:
    """The options, checked; joins the other processes. Raises InputError."""
    options.check(args)
    if not args.resume:
        refuse_used(args.run_dir)
    recipe = changed(RECIPES[args.recipe][args.step], args)
    require_shares(recipe.batch_size)
    require_pair(recipe.batch_size, "embeddings")
    files.require_outside("--run-dir", args.run_dir, args.data, INSIDE)
    where = options.machine(args)
    people = list_people(args.data)
    torch.manual_seed(args.seed)
    start = {name: path for name in ("pretrained", "init_from") if (path := getattr(args, name))}
    config, weights = read_start(start, args.step, recipe, people)
    distributed.start_processes(where.device)
    every = args.save_every or 1, args.validate_every or 1
    return Plan(people, recipe, args.step, config, where, args.run_dir, args.seed, args.resume, start, weights, *every)


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    cli.add_argument("--data", type=Path, required=True, metavar="DIR", help="aligned faces, one folder per person")
    cli.add_argument("--recipe", choices=tuple(RECIPES), default="cosine", help="seed: the release's; cosine: ours")
    cli.add_argument(
        "--step", type=int, choices=(1, 2), default=2, help="train the classifier alone (1) or everything (2)"
    )
    cli.add_argument("--pretrained", type=Path, metavar="FILE", help="facenet-pytorch's weights for VGGFace2")
    cli.add_argument("--init-from", type=Path, metavar="FILE", help="checkpoint of another run of this script")
    cli.add_argument("--epochs", type=int, metavar="N", help="default: the recipe's, as for all options below")
    cli.add_argument("--lr-embedding", type=float, metavar="X", help="learning rate of the network")
    cli.add_argument("--lr-head", type=float, metavar="X", help="learning rate of the classifier")
    for name, (low, _, what) in RANGES.items():
        kind = type(low)
        cli.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X", help=what)
    cli.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="folder for checkpoints and logs")
    cli.add_argument("--resume", action="store_true", help="continue the run in --run-dir")
    options.add_seed_option(cli)
    options.add_machine_options(cli)
    task = Identity(plan(cli.parse_args(argv)))
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
