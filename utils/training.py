"""What the training of a face parser shares: recipes, one training as plain values, and the task itself."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.batches import Batch, evaluation_batches, open_faces, training_batches
from data.labels import LabelSet
from data.source import FaceData
from data.view import NO_AUGMENTATION, WIDE_AUGMENTATION, Augmentation
from models.parser import FaceParser, Parsed
from utils import distributed, files
from utils.engine import Optimisation, Run, Scores, Task, evaluate
from utils.errors import InputError
from utils.metrics import headline, scores
from utils.visualize import progress_picture

SHOWN_FACES = 8  # in the pictures of an epoch
OPTIONS = {"size": "input-size"}  # what options call a field of a parser's ``Config``, where that differs
EVAL_BATCH = 16  # faces at once in validation, for each process


@dataclass(frozen=True)
class Recipe:
    """Everything a stage is trained with: the defaults of its options.

    batch_size: over all processes. model: fields of the parser's ``Config`` that differ from its defaults.
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

    def changed(
        self, epochs: int | None = None, batch_size: int | None = None, lr: dict[str, float] | None = None
    ) -> "Recipe":
        """The recipe with these values in place of its own; None leaves one as it is."""
        optimisation = replace(
            self.optimisation,
            epochs=self.optimisation.epochs if epochs is None else epochs,
            lr={**self.optimisation.lr, **(lr or {})},
        )
        return replace(self, optimisation=optimisation, batch_size=batch_size or self.batch_size)


class Recipes(NamedTuple):
    """A stage's recipes: the paper's for each of its data sets (synthetic faces use HELEN's), the paper's method in
    few steps (one-cycle, each face once an epoch), and ours."""

    paper_helen: Recipe
    paper_celebamask: Recipe
    paper_short: Recipe
    best: Recipe

    def choose(self, name: str, dataset: str) -> Recipe:
        """The recipe of one of ``RECIPE_NAMES`` for a data set."""
        return {
            "paper": self.paper_celebamask if dataset == "celebamask" else self.paper_helen,
            "paper-short": self.paper_short,
            "best": self.best,
            "wide": replace(self.best, augmentation=WIDE_AUGMENTATION),
        }[name]


RECIPE_NAMES = ("paper", "paper-short", "best", "wide")


class GuestRecipes(NamedTuple):
    """A guest's recipes: that of its authors' code, and ours; the same for every data set."""

    seed: Recipe
    best: Recipe

    def choose(self, name: str, dataset: str) -> Recipe:
        """The recipe of one of ``GUEST_RECIPE_NAMES``."""
        return getattr(self, name)


GUEST_RECIPE_NAMES = GuestRecipes._fields


@dataclass(frozen=True)
class Machine:
    """Where a script runs. workers: loading processes. amp: "auto", "off" or "bf16" (see ``utils.runtime``)."""

    device: torch.device
    workers: int = 0
    amp: str = "auto"

    @property
    def threads(self) -> int:
        """How many threads decode and write photos."""
        return max(2, self.workers)


@dataclass(frozen=True)
class Plan:
    """One training of one stage.

    start: name of an option -> the checkpoint to start from. model: fields of the parser's ``Config`` that options set.
    label_set: what a parser of the whole face labels; None: all that the data set does.
    """

    data: FaceData
    recipe: Recipe
    machine: Machine
    folder: Path
    seed: int = 0
    resume: bool = False
    start: dict[str, Path] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    label_set: LabelSet | None = None

    @property
    def labels(self) -> LabelSet:
        """What a parser of the whole face labels."""
        return self.label_set or self.data.labels

    def config(self, kind: type[FaceParser], **settled: Any) -> Any:
        """The parser's configuration: the recipe's fields, under those that options set, under ``settled`` ones.

        Raises InputError naming the options that cannot be.
        """
        try:
            return kind.Config(**{**self.recipe.model, **self.model, **settled})
        except ValueError as error:
            options = {name: OPTIONS.get(name, name.replace("_", "-")) for name in self.model}
            flags = " ".join(f"--{options[name]} {value}" for name, value in self.model.items())
            raise InputError(f"{flags}: {error}" if flags else str(error)) from error


class ParserTask(Task):
    """The training of a face parser on a data set; F1 on the validation split decides.

    A stage gives ``forward(batch)``. photos: whether its training batches hold photos (see ``View.needs_photos``).
    Raises InputError for a bad data folder, and for training faces without any label.
    """

    def __init__(self, plan: Plan, model: FaceParser, networks: Sequence[str], photos: bool = True) -> None:
        super().__init__({name: getattr(model, name) for name in networks}, plan.recipe.optimisation)
        self.plan, self.model = plan, model
        threads = plan.machine.threads
        self.train_faces = open_faces(plan.data, "train", model.labels, photos, threads)
        self.val_faces = open_faces(plan.data, "val", model.labels, threads=threads)
        if not self.train_faces.count_labelled():
            raise InputError(
                f"the {len(self.train_faces)} faces to train on have no label but background in label set "
                f"{model.labels.name}: look at their masks with python -m data.check"
            )

    @property
    def run(self) -> Run:
        """How ``utils.engine.fit`` trains this task."""
        plan, model = self.plan, self.model
        description = {
            "parser": model.kind,
            "labels": model.labels.name,
            "config": asdict(model.config),
            "dataset": plan.data.dataset,
            "partition": plan.data.partition,
            "face_size": plan.data.face_size,
            "images": len(self.train_faces),
            "data": {"train": self.train_faces.fingerprint, "val": self.val_faces.fingerprint},
            "seed": plan.seed,
            "recipe": asdict(plan.recipe),
            "started_from": {name: files.sha256(path) for name, path in plan.start.items()},
        }
        return Run(plan.folder, plan.resume, plan.machine.device, plan.machine.amp, description)

    def batches(self, epoch: int) -> DataLoader:
        plan = self.plan
        return training_batches(
            self.train_faces,
            plan.recipe.batch_size,
            plan.seed,
            epoch,
            plan.recipe.augmentation.folds,
            distributed.rank(),
            distributed.world_size(),
            plan.machine.workers,
        )

    def parse(self, batch: Batch) -> Parsed:
        """How validation and pictures label faces at this stage."""
        return self.model.parse(batch)

    def val_batches(self) -> DataLoader:
        """This process's share of the validation split."""
        world = distributed.world_size()
        return evaluation_batches(
            self.val_faces, EVAL_BATCH * world, distributed.rank(), world, self.plan.machine.workers
        )

    def validate(self) -> Scores:
        """As "strict" the mean F1 of the labels; as "f1" the paper's overall F1, or the mean again where the label set
        has no groups."""
        device, labels = self.plan.machine.device, self.model.labels
        _, matrices_NKK = evaluate(lambda batch: self.parse(batch).labels_BHW, self.val_batches(), device, len(labels))
        total_KK = distributed.sum_over_processes(matrices_NKK.sum(0).to(device))
        found = headline(scores(total_KK.cpu().numpy(), labels))
        strict = found["strict"] or 0.0
        return {"f1": (found["overall"] or 0.0) if labels.groups else strict, "strict": strict}

    def picture(self) -> np.ndarray:
        """Upper row: parsed, with windows where the parser has them; lower row: the truth."""
        batch = self.val_faces.first(SHOWN_FACES).to(self.plan.machine.device)
        return progress_picture(batch, *self.parse(batch))
