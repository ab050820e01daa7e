"""DeepLabV3+ with a thinned MobileNetV2: stretched photo -> all labels of the data set's own set."""

import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from data.batches import Batch
from data.view import Augmentation, View
from models.deeplab import DeepLab
from models.loading import read_weights
from utils import distributed, options
from utils.engine import Optimisation, fit
from utils.errors import InputError
from utils.losses import batch_dice_loss, focal_loss, segmentation_loss
from utils.runtime import run_main
from utils.training import GuestRecipes, ParserTask, Plan, Recipe

DICE_FROM = 21  # the epoch, from 0, in which the authors' loss takes in the Dice


@dataclass(frozen=True)
class DeepLabRecipe(Recipe):
    """loss: "seed", the authors' focal loss, cross-entropy and Dice; or "dice", cross-entropy and ``dice`` times the
    Dice of the labels that a photo holds."""

    loss: str = "dice"


RECIPES = GuestRecipes(
    # The authors' code multiplies the learning rate of its command line by 0.0015, so that their README's command
    # trains at 1.5e-6, at which a network from scratch hardly moves. Here it is the 0.001 that they name; with
    # --lr 1.5e-6 it is what their code does.
    seed=DeepLabRecipe(
        Optimisation(epochs=400, lr={"network": 1e-3}, schedule="restarts", weight_decay=1e-5),
        batch_size=32,
        loss="seed",
    ),
    best=DeepLabRecipe(
        Optimisation(
            epochs=60, lr={"network": 3e-3}, optimizer="adamw", schedule="onecycle", weight_decay=1e-2, clip=5.0
        ),
        batch_size=16,
        augmentation=Augmentation(rotation=15, shift=0.06, scale=(0.8, 1.25), tone=0.5, mirror=0.5),
        dice=1.0,
    ),
)


def seed_loss(logits_BKHW: Tensor, targets_BHW: Tensor, epoch: int) -> Tensor:
    """The authors' loss: 0.1 focal + 0.9 cross-entropy; from ``DICE_FROM`` on 0.4 of it and 0.6 Dice. A scalar."""
    loss = 0.1 * focal_loss(logits_BKHW, targets_BHW) + 0.9 * F.cross_entropy(logits_BKHW.float(), targets_BHW.long())
    return loss if epoch < DICE_FROM else 0.4 * loss + 0.6 * batch_dice_loss(logits_BKHW, targets_BHW)


class TrainDeepLab(ParserTask):
    """The loss on the grid of the stretched photo; mean F1 of the labels decides."""

    stage = "deeplab"
    model: DeepLab
    epoch = 0

    def batches(self, epoch: int) -> DataLoader:
        self.epoch = epoch
        key = (self.plan.seed, epoch, distributed.rank())
        torch.manual_seed(int(np.random.default_rng(key).integers(2**63)))  # of the dropout
        return super().batches(epoch)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, size = self.plan.recipe, self.model.config.size
        assert isinstance(recipe, DeepLabRecipe)
        view = recipe.augmentation.view(batch)
        logits_BKSS, targets_BSS = self.model.network(view.photo(size)), view.label_map(size)
        if recipe.loss == "seed":
            return {"segmentation": seed_loss(logits_BKSS, targets_BSS, self.epoch)}
        return {"segmentation": segmentation_loss(logits_BKSS, targets_BSS, recipe.dice)}


def build(plan: Plan) -> TrainDeepLab:
    """The task of a plan. plan.start: "init_from", a checkpoint of DeepLab, ours or the authors', to start from.

    Raises InputError for a single face a batch, of which the pooled features have no variance.
    """
    if plan.recipe.batch_size < 2:
        raise InputError("--batch-size 1: DeepLab's batch normalisation of pooled features needs at least 2")
    torch.manual_seed(plan.seed)
    model = DeepLab(plan.config(DeepLab), plan.data.labels)
    if path := plan.start.get("init_from"):
        model.load(read_weights(path), model.networks)
    return TrainDeepLab(plan, model, model.networks, photos=View.needs_photos(model.config.size))


def main(argv: list[str] | None = None) -> int:
    starts = {"--init-from": "a checkpoint of DeepLab to start from"}
    parser = options.training_parser(__doc__, ["network"], starts, guest=True)
    parser.add_argument(
        "--input-size",
        type=int,
        metavar="N",
        help="side of the stretched photo, pixels; default: 512, on a CPU try 256",
    )
    args = parser.parse_args(argv)
    task = build(options.plan(args, RECIPES, ("init_from",), size=args.input_size))
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
