"""Stage 1: the coarse iCNN, stretched photo -> rough mask of nine labels (paper section 2.2)."""

import sys
from dataclasses import replace

import torch
from torch import Tensor

from data.batch import Batch
from data.view import PAPER_AUGMENTATION, Augmentation, View
from models.loading import read_weights
from models.parser import Parsed
from models.stn_icnn.model import STNiCNN
from training import options
from training.engine import Optimisation, fit
from training.losses import segmentation_loss
from training.recipes import Recipe, Recipes
from training.task import ParserTask, Plan
from utils.runtime import run_main

PAPER_HELEN = Recipe(
    Optimisation(epochs=25, lr={"coarse": 0.0023}),
    batch_size=32,
    augmentation=PAPER_AUGMENTATION,
    model={"crop_size": 81},
)
PAPER_CELEBAMASK = Recipe(
    Optimisation(epochs=25, lr={"coarse": 1e-3}),
    batch_size=64,
    augmentation=PAPER_AUGMENTATION,
    model={"crop_size": 127},
)
PAPER_SHORT = Recipe(
    Optimisation(epochs=5, lr={"coarse": 2e-3}, schedule="onecycle"),
    batch_size=8,  # in few epochs steps are what counts
    augmentation=replace(PAPER_AUGMENTATION, folds=1),
    model={"crop_size": 81},
)
BEST = Recipe(
    Optimisation(epochs=40, lr={"coarse": 4e-3}, optimizer="adamw", schedule="onecycle", weight_decay=1e-2, clip=1.0),
    batch_size=32,
    augmentation=Augmentation(rotation=15, shift=0.08, scale=(0.8, 1.25), noise=0.03, tone=0.8, mirror=0.5),
    model={"window_margin": 1.6, "window_aspect": 0.5, "paste": "bilinear"},
    dice=0.5,
)
RECIPES = Recipes(paper_helen=PAPER_HELEN, paper_celebamask=PAPER_CELEBAMASK, paper_short=PAPER_SHORT, best=BEST)


class Stage1(ParserTask):
    """Cross-entropy of the rough mask; validation scores the mask enlarged to the photo."""

    stage = "stage1"
    model: STNiCNN

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, size = self.plan.recipe, self.model.config.coarse_size
        view = recipe.augmentation.view(batch)
        logits_BKSS = self.model.coarse(view.photo(size))
        return {"coarse": segmentation_loss(logits_BKSS, view.label_map(size), recipe.dice)}

    def parse(self, batch: Batch) -> Parsed:
        return self.model.parse(batch, "none")


def build(plan: Plan) -> Stage1:
    """The task of a plan. plan.start: "init_from", a checkpoint whose coarse network to start from."""
    torch.manual_seed(plan.seed)
    start = read_weights(path) if (path := plan.start.get("init_from")) else None
    model = STNiCNN(plan.config(STNiCNN, start, "coarse_channels"))
    if start:
        model.load(start, ("coarse",))
    return Stage1(plan, model, ("coarse",), photos=View.needs_photos(model.config.coarse_size))


def main(argv: list[str] | None = None) -> int:
    starts = {"--init-from": "a checkpoint whose coarse network to start from"}
    cli = options.training_parser(__doc__, ["coarse"], starts)
    cli.add_argument("--coarse-size", type=int, metavar="N", help="side of the resized photo, pixels; default: 128")
    options.add_channels_option(cli, "coarse")
    args = cli.parse_args(argv)
    sizes = {"coarse_size": args.coarse_size, "coarse_channels": args.coarse_channels}
    task = build(options.plan(args, RECIPES, ("init_from",), **sizes))
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
