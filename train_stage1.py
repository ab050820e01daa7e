"""Stage 1: the coarse iCNN, stretched photo -> rough mask of nine labels (paper section 2.2)."""

import sys
from dataclasses import replace

import numpy as np
import torch

from data.augment import PAPER_AUGMENTATION, Augmentation, draw, whole, whole_labels
from data.loading import Batch
from models.pretrained import load_into, read_weights
from models.stn_icnn import STNiCNN
from utils import options
from utils.engine import Optimisation, fit
from utils.losses import segmentation_loss
from utils.options import Recipe, Recipes
from utils.parsing import first_batch, label_batch, progress_picture, validation_f1
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


def main(argv: list[str] | None = None, recipes: Recipes = RECIPES) -> int:
    parser = options.training_parser(
        __doc__, ["coarse"], {"--init-from": "a checkpoint whose coarse network to start from"}
    )
    parser.add_argument(
        "--coarse-size", type=int, metavar="N", help="side of the stretched photo, pixels; default: 128"
    )
    args = parser.parse_args(argv)
    run = options.start(args, recipes, coarse_size=args.coarse_size)
    model = STNiCNN(run.config)
    if args.init_from:
        load_into(model, read_weights(args.init_from), ("coarse",))
    train, val = options.open_split(args, "train", photos=False), options.open_split(args, "val")
    size = run.config.coarse_size

    def step(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        view = draw(run.recipe.augmentation, batch)
        logits_B9SS = model.coarse(whole(batch, view, size))
        return segmentation_loss(logits_B9SS, whole_labels(batch, view, size), run.recipe.dice), {}

    def picture() -> np.ndarray:
        batch = first_batch(val, 8, run.device)
        return progress_picture(batch, label_batch(model, batch, "none"))

    fit(
        stage="stage1",
        modules={"coarse": model.coarse},
        step=step,
        validate=lambda: validation_f1(model, val, "none", run.eval_batch, run.device, args.workers),
        picture=picture,
        score="f1",
        maximise=True,
        **run.fit_options(train),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
