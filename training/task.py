"""One training as plain values, and what the training of a face parser shares."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from data.batch import Batch
from data.labels import NINE, LabelSet
from data.loaders import evaluation_batches, open_faces, training_batches
from data.source import FaceData
from data.view import View
from models.parser import FaceParser, Parsed, Weights, WholeFaceParser
from scoring.evaluation import evaluate
from scoring.metrics import headline, scores
from scoring.pictures import progress_picture
from training.engine import Run, Scores, Task
from training.losses import segmentation_loss
from training.recipes import Recipe, WholeFaceRecipe
from utils import distributed, files
from utils.errors import InputError
from utils.runtime import Machine

SHOWN_FACES = 8  # in the pictures of an epoch
OPTIONS = {"size": "input-size"}  # what options call a field of a parser's ``Config``, where that differs


EVAL_BATCH = 16  # faces at once in validation, for each process


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

    def config(self, kind: type[FaceParser], start: Weights | None = None, *kept: str, **settled: Any) -> Any:
        """The parser's configuration: the recipe's fields, under ``kept`` ones of the checkpoint that it starts from,
        under those that options set, under ``settled`` ones.

        Raises InputError naming the options that cannot be.
        """
        try:
            held = {name: getattr(start.config, name) for name in kept if hasattr(start.config, name)} if start else {}
            return kind.Config(**{**self.recipe.model, **held, **self.model, **settled})
        except ValueError as error:
            options = {name: OPTIONS.get(name, name.replace("_", "-")) for name in self.model}
            flags = " ".join(f"--{options[name]} {_typed(value)}" for name, value in self.model.items())
            raise InputError(f"{flags}: {error}" if flags else str(error)) from error


def _typed(value: Any) -> str:
    """An option's value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class ParserTask(Task):
    """The training of a face parser on a data set; F1 on the validation split decides.

    A stage gives ``forward(batch)``. goes_on: whether "init_from" of its plan holds all that is trained.
    photos: whether its training batches hold photos (see ``View.needs_photos``).
    often_N: see ``data.loaders.training_batches``.
    Raises InputError for a bad data folder, and for training faces without any label.
    """

    goes_on = True

    def __init__(self, plan: Plan, model: FaceParser, networks: Sequence[str], photos: bool = True) -> None:
        super().__init__({name: getattr(model, name) for name in networks}, plan.recipe.optimisation)
        self.plan, self.model = plan, model
        self.is_parser = {*networks} == {*model.networks}
        self.often_N: np.ndarray | None = None
        threads = plan.machine.threads
        camera = plan.recipe.augmentation.camera
        self.train_faces = open_faces(plan.data, "train", model.labels, photos, threads, camera)
        self.val_faces = open_faces(plan.data, "val", model.labels, threads=threads)
        if self.val_faces.note and distributed.rank() == 0:
            print(self.val_faces.note)
        if not self.train_faces.count_labelled():
            raise InputError(
                f"the {len(self.train_faces)} faces to train on have no label but background in label set "
                f"{model.labels.name}: look at their masks with python -m tools.check"
            )

    @property
    def run(self) -> Run:
        """How ``training.engine.fit`` trains this task."""
        plan, model = self.plan, self.model
        description = {
            "parser": model.kind,
            "labels": model.labels.stored,
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
        score_start = self.goes_on and "init_from" in plan.start
        where = plan.machine
        return Run(plan.folder, plan.resume, where.device, where.amp, description, score_start=score_start)

    def batches(self, epoch: int) -> DataLoader:
        plan = self.plan
        key = (plan.seed, epoch, distributed.rank())
        torch.manual_seed(int(np.random.default_rng(key).integers(2**63)))  # of dropout
        return training_batches(
            self.train_faces,
            plan.recipe.batch_size,
            plan.seed,
            epoch,
            plan.recipe.augmentation.folds,
            distributed.rank(),
            distributed.world_size(),
            plan.machine,
            self.often_N,
        )

    def parse(self, batch: Batch) -> Parsed:
        """How validation and pictures label faces at this stage."""
        return self.model.parse(batch)

    def val_batches(self) -> DataLoader:
        """This process's share of the validation split."""
        world = distributed.world_size()
        return evaluation_batches(self.val_faces, EVAL_BATCH * world, distributed.rank(), world, self.plan.machine)

    def validate(self) -> Scores:
        """As "strict" the mean F1 of the labels; as "f1" the paper's overall F1, for other label sets than the paper's
        the mean again."""
        device, labels = self.plan.machine.device, self.model.labels
        _, matrices_NKK = evaluate(lambda batch: self.parse(batch).labels_BHW, self.val_batches(), device, len(labels))
        total_KK = distributed.sum_over_processes(matrices_NKK.sum(0))
        found = headline(scores(total_KK.numpy(), labels))
        strict = found["strict"] or 0.0
        return {"f1": (found["overall"] or 0.0) if labels == NINE else strict, "strict": strict}

    def picture(self) -> np.ndarray:
        """Upper row: parsed, with windows where the parser has them; lower row: the truth."""
        batch = self.val_faces.first(SHOWN_FACES).to(self.plan.machine.device)
        return progress_picture(batch, *self.parse(batch))


class WholeFaceTask(ParserTask):
    """The training of a parser of the whole face. class_weights_K: factors of the cross-entropy, float32, or None."""

    class_weights_K: Tensor | None

    def __init__(self, plan: Plan, model: WholeFaceParser) -> None:
        super().__init__(plan, model, model.networks, photos=View.needs_photos(model.config.size))
        assert isinstance(plan.recipe, WholeFaceRecipe)
        if plan.recipe.balance:
            self.often_N = self.train_faces.balance(plan.recipe.balance)
        share = plan.recipe.least_share
        class_weights_K = torch.from_numpy(self.train_faces.class_weights(share)) if share else None
        self.register_buffer("class_weights_K", class_weights_K, persistent=False)

    def half_grid_loss(self, batch: Batch, logits: Callable[[Tensor], Tensor]) -> Tensor:
        """``segmentation_loss`` on half the grid of the stretched photo: most networks' logits are as coarse or
        coarser, and the full grid takes a sixth to a third of a step's time. logits: images_B3SS to logits_BKhw."""
        recipe, size = self.plan.recipe, self.model.config.size
        view = recipe.augmentation.view(batch)
        logits_BKGG = F.interpolate(logits(view.photo(size)), (size // 2, size // 2), mode="bilinear")
        return segmentation_loss(logits_BKGG, view.label_map(size // 2), recipe.dice, self.class_weights_K)
