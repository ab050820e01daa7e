"""Stage 2: the four part iCNNs, crops around the true parts -> part masks (paper section 2.2)."""

import sys

import numpy as np
import torch

from data.augment import PAPER_AUGMENTATION, crops_of, draw, jitter_windows, mirror_labels, parts_of, theta_frame
from data.loading import Batch
from models.grid import compose, crop, crop_labels
from models.parts import part_targets
from models.pretrained import load_into, read_weights
from models.stn_icnn import STNiCNN
from models.windows import target_theta
from train_stage1 import BEST as BEST_STAGE1
from train_stage1 import PAPER_SHORT
from utils import options
from utils.engine import Optimisation, fit
from utils.losses import parts_loss
from utils.options import Recipe, Recipes
from utils.parsing import first_batch, label_maps, progress_picture, validation_f1
from utils.runtime import run_main

RECIPES = Recipes(
    paper_helen=Recipe(
        Optimisation(epochs=25, lr={"parts": 8e-4}),
        batch_size=64,
        augmentation=PAPER_AUGMENTATION,
        model={"crop_size": 81},
    ),
    paper_celebamask=Recipe(
        Optimisation(epochs=25, lr={"parts": 8e-4}),
        batch_size=64,
        augmentation=PAPER_AUGMENTATION,
        model={"crop_size": 127},
    ),
    paper_short=Recipe(
        Optimisation(epochs=3, lr={"parts": 3e-3}, schedule="onecycle"),
        batch_size=PAPER_SHORT.batch_size,
        augmentation=PAPER_SHORT.augmentation,
        model=PAPER_SHORT.model,
    ),
    best=Recipe(
        Optimisation(
            epochs=40, lr={"parts": 5e-3}, optimizer="adamw", schedule="onecycle", weight_decay=1e-2, clip=5.0
        ),
        batch_size=16,
        augmentation=BEST_STAGE1.augmentation,
        model=BEST_STAGE1.model,
        dice=0.5,
        jitter=0.08,
    ),
)


def main(argv: list[str] | None = None, recipes: Recipes = RECIPES) -> int:
    parser = options.training_parser(
        __doc__, ["parts"], {"--init-from": "a checkpoint whose part networks to start from"}
    )
    parser.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    args = parser.parse_args(argv)
    run = options.start(args, recipes, crop_size=args.crop_size)
    model = STNiCNN(run.config)
    if args.init_from:
        load_into(model, read_weights(args.init_from), ("parts",))
    train, val = options.open_split(args, "train"), options.open_split(args, "val")
    size = run.config.crop_size

    def step(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        view = draw(run.recipe.augmentation, batch)
        theta_BP23 = target_theta(*parts_of(batch, view), batch.sizes_B2, *run.config.windows)
        theta_BP23 = jitter_windows(theta_BP23, batch, run.recipe.jitter)
        source_BP23 = compose(theta_frame(view, batch.sizes_B2), theta_BP23)
        crops_BP3SS = crops_of(view, crop(batch.photos_BHW3, source_BP23, size, batch.sizes_B2))
        labels_BPSS = mirror_labels(crop_labels(batch.labels_BHW, source_BP23, size, batch.sizes_B2), view.mirrored_B)
        return parts_loss(model.parts(crops_BP3SS), part_targets(labels_BPSS), run.recipe.dice), {}

    def picture() -> np.ndarray:
        batch = first_batch(val, 8, run.device)
        labels_BHW, theta_BP23 = label_maps(model, batch, "truth")
        return progress_picture(batch, labels_BHW, theta_BP23)

    fit(
        stage="stage2",
        modules={"parts": model.parts},
        step=step,
        validate=lambda: validation_f1(model, val, "truth", run.eval_batch, run.device, args.workers),
        picture=picture,
        score="f1",
        maximise=True,
        **run.fit_options(train),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
