"""DeepLabV3+ with a thinned MobileNetV2: resized photo -> all labels of the data set, or those of --labels.

With --self-distill N, confident predictions after N epochs replace training labels. The new maps are written to the run
folder; the data set is not changed.
"""

import sys
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.batch import Batch
from data.loaders import open_faces, require_pair
from data.view import Augmentation
from models.deeplab import DeepLab
from models.loading import read_weights
from training import options
from training.engine import Optimisation, Run, fit
from training.losses import batch_dice_loss, focal_loss, segmentation_loss
from training.recipes import WholeFaceRecipe, WholeFaceRecipes
from training.relabel import INSIDE, Rule, add_rule_options, relabel, table
from training.task import Plan, WholeFaceTask
from utils import checkpoint, distributed, files
from utils.errors import InputError
from utils.runtime import run_main

DICE_FROM = 21  # the epoch, from 0, in which the authors' loss takes in the Dice


@dataclass(frozen=True)
class DeepLabRecipe(WholeFaceRecipe):
    """loss: "seed", the authors' focal loss, cross-entropy and Dice; or "dice", cross-entropy and ``dice`` times the
    Dice of the labels that a photo holds."""

    loss: str = "dice"


RECIPES = WholeFaceRecipes(
    # The authors' code multiplies the learning rate of its command line by 0.0015, so that their README's command
    # trains at 1.5e-6, at which a network from scratch hardly moves. Here it is the 0.001 that they name; with
    # --lr 1.5e-6 it is what their code does.
    seed=DeepLabRecipe(
        Optimisation(epochs=400, lr={"network": 1e-3}, schedule="restarts", weight_decay=1e-5),
        batch_size=32,
        loss="seed",
    ),
    best=DeepLabRecipe(
        Optimisation(60, {"network": 3e-3}, "adamw", "onecycle", weight_decay=1e-2, clip=5.0),
        batch_size=16,
        augmentation=Augmentation(rotation=15, shift=0.06, scale=(0.8, 1.25), tone=0.5, mirror=0.5),
        dice=1.0,
        balance=0.25,
        least_share=0.002,
    ),
)


def seed_loss(logits_BKHW: Tensor, targets_BHW: Tensor, epoch: int) -> Tensor:
    """The authors' loss: 0.1 focal + 0.9 cross-entropy; from ``DICE_FROM`` on 0.4 of it and 0.6 Dice. A scalar."""
    loss = 0.1 * focal_loss(logits_BKHW, targets_BHW) + 0.9 * segmentation_loss(logits_BKHW, targets_BHW)
    return loss if epoch < DICE_FROM else 0.4 * loss + 0.6 * batch_dice_loss(logits_BKHW, targets_BHW)


@dataclass(frozen=True)
class SelfDistillation:
    """After how many epochs the network's own labels replace training labels, and which ones."""

    after: int
    rule: Rule


class TrainDeepLab(WholeFaceTask):
    """The loss on half the grid of the stretched photo, the authors' on all of it; mean F1 of the labels decides.

    distillation: None to train on the data set's labels throughout. The new labels go into ``labels/`` of the run's
    folder, next to ``labeller.pt``, the weights that gave them.
    """

    stage = "deeplab"
    model: DeepLab
    epoch = 0
    distillation: SelfDistillation | None = None
    distilled = False

    @property
    def run(self) -> Run:
        run = super().run
        asked = asdict(self.distillation) if self.distillation else None
        return replace(run, description={**run.description, "self_distillation": asked})

    def batches(self, epoch: int) -> DataLoader:
        self.epoch = epoch
        if self.distillation and epoch >= self.distillation.after and not self.distilled:
            self.distil(self.distillation, epoch)
        return super().batches(epoch)

    def distil(self, how: SelfDistillation, epoch: int) -> None:
        """From now on, train on the labels that the network gave after ``how.after`` epochs; what an interrupted run
        has written of them is kept. epoch: that is about to begin."""
        plan, faces = self.plan, self.train_faces
        labeller, folder = plan.folder / "labeller.pt", plan.folder / "labels"
        if epoch == how.after and distributed.rank() == 0:
            modules = {name: network.state_dict() for name, network in self.networks.items()}
            checkpoint.save(labeller, {"stage": self.stage, **self.run.description, "modules": modules})
        distributed.barrier()
        record = relabel([labeller], faces, folder, how.rule, plan.machine)
        if distributed.rank() == 0:
            print(
                f"{self.stage}: {record['changed']} pixels of {len(faces)} faces relabelled, {folder}\n{table(record)}"
            )
        data = replace(plan.data, train_labels=folder)
        self.train_faces = open_faces(
            data, "train", self.model.labels, faces.with_photos, plan.machine.threads, faces.camera
        )
        self.distilled = True

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, size = self.plan.recipe, self.model.config.size
        assert isinstance(recipe, DeepLabRecipe)
        if recipe.loss == "seed":
            view = recipe.augmentation.view(batch)
            return {"segmentation": seed_loss(self.model.network(view.photo(size)), view.label_map(size), self.epoch)}
        return {"segmentation": self.half_grid_loss(batch, self.model.network.coarse_logits)}


def build(plan: Plan, distillation: SelfDistillation | None = None) -> TrainDeepLab:
    """The task of a plan. plan.start: "init_from", a checkpoint of DeepLab, ours or the authors', to start from.

    Raises InputError for a single face a batch, of which the pooled features have no variance, and for labels that
    could not be distilled.
    """
    recipe = plan.recipe
    assert isinstance(recipe, DeepLabRecipe)
    require_pair(recipe.batch_size, "pooled features")
    if recipe.loss == "seed" and recipe.least_share:
        raise InputError("--least-share: the loss of --recipe seed has no class weights; leave it out")
    if distillation:
        epochs, after = plan.recipe.optimisation.epochs, distillation.after
        if not 1 <= after < epochs:
            raise InputError(f"--self-distill {after}: must be at least 1 and less than the number of epochs, {epochs}")
        if plan.labels != plan.data.labels:
            raise InputError("--self-distill replaces labels of the data set's own set: leave out --labels")
        files.require_outside("--run-dir", plan.folder, plan.data.root, INSIDE)
        if not plan.resume and (plan.folder / "labels").exists():
            raise InputError(f"{plan.folder / 'labels'} already exists: choose another --run-dir")
    torch.manual_seed(plan.seed)
    model = DeepLab(plan.config(DeepLab), plan.labels)
    if path := plan.start.get("init_from"):
        model.load(read_weights(path), model.networks)
    task = TrainDeepLab(plan, model)
    task.distillation = distillation
    return task


def main(argv: list[str] | None = None) -> int:
    starts = {"--init-from": "DeepLab checkpoint to start from"}
    cli = options.training_parser(__doc__, ["network"], starts, whole_face=True)
    cli.add_argument(
        "--input-size", type=int, metavar="N", help="side of the resized photo, pixels; default: 512, on a CPU try 256"
    )
    group = cli.add_argument_group("self-distilled labels")
    group.add_argument(
        "--self-distill", type=int, metavar="N", help="after N epochs, replace training labels by confident predictions"
    )
    add_rule_options(group)
    args = cli.parse_args(argv)
    options.check(args)
    rule = Rule(args.threshold, args.rare)
    if args.self_distill is None and rule != Rule():
        raise InputError("--threshold and --rare say what --self-distill N replaces: add it, or leave them out")
    distillation = None if args.self_distill is None else SelfDistillation(args.self_distill, rule)
    task = build(options.plan(args, RECIPES, ("init_from",), size=args.input_size), distillation)
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
