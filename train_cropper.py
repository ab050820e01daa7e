"""Cropper stage: the localizer behind a trained coarse iCNN, rough mask -> theta of six windows (paper section 2.3)."""

import sys

import numpy as np
import torch

from data.augment import PAPER_AUGMENTATION, draw, parts_of, whole
from data.loading import Batch, evaluation_batches
from models.pretrained import load_into, read_weights
from models.stn_icnn import STNiCNN
from models.windows import target_theta
from train_stage1 import BEST as BEST_STAGE1
from train_stage1 import PAPER_SHORT
from utils import options, runtime
from utils.engine import Optimisation, fit
from utils.losses import theta_loss
from utils.options import Recipe, Recipes
from utils.parsing import first_batch, label_batch, progress_picture, true_theta
from utils.runtime import run_main

RECIPES = Recipes(
    paper_helen=Recipe(
        Optimisation(epochs=25, lr={"coarse": 0.0, "localizer": 0.0017}),
        batch_size=32,
        augmentation=PAPER_AUGMENTATION,
        model={"crop_size": 81},
    ),
    paper_celebamask=Recipe(
        Optimisation(epochs=25, lr={"coarse": 0.0, "localizer": 1e-3}),
        batch_size=64,
        augmentation=PAPER_AUGMENTATION,
        model={"crop_size": 127},
    ),
    paper_short=Recipe(
        Optimisation(epochs=4, lr={"coarse": 0.0, "localizer": 2e-3}, schedule="onecycle"),
        batch_size=PAPER_SHORT.batch_size,
        augmentation=PAPER_SHORT.augmentation,
        model=PAPER_SHORT.model,
    ),
    best=Recipe(
        Optimisation(
            epochs=20,
            lr={"coarse": 0.0, "localizer": 3e-3},
            optimizer="adamw",
            schedule="onecycle",
            weight_decay=1e-2,
            clip=1.0,
        ),
        batch_size=32,
        augmentation=BEST_STAGE1.augmentation,
        model=BEST_STAGE1.model,
        theta_beta=0.02,
    ),
)


def main(argv: list[str] | None = None, recipes: Recipes = RECIPES) -> int:
    parser = options.training_parser(
        __doc__,
        ["coarse", "localizer"],
        {
            "--init-from": "the checkpoint of stage 1 (its coarse network); a localizer in it is trained further",
            "--init-from-cropper": "a checkpoint whose localizer is trained further instead",
        },
    )
    parser.add_argument(
        "--localizer",
        choices=("paper", "resnet18", "released"),
        help="its architecture; default: that of the one to train further, else paper",
    )
    parser.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    args = parser.parse_args(argv)
    options.check(args, required=["init_from"])
    stage1 = read_weights(args.init_from)
    cropper = read_weights(args.init_from_cropper) if args.init_from_cropper else stage1
    held = cropper.config.localizer if args.init_from_cropper or "localizer" in stage1.modules else None
    run = options.start(
        args,
        recipes,
        localizer=args.localizer or held or "paper",
        crop_size=args.crop_size,
        coarse_size=stage1.config.coarse_size,
    )
    model = STNiCNN(run.config)
    load_into(model, stage1, ("coarse",))
    if run.config.localizer == held or args.init_from_cropper:
        load_into(model, cropper, ("localizer",))
    train, val = options.open_split(args, "train", photos=False), options.open_split(args, "val")
    size = run.config.coarse_size

    def step(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        view = draw(run.recipe.augmentation, batch)
        with torch.set_grad_enabled(run.recipe.optimisation.lr["coarse"] > 0):
            logits_B9SS = model.coarse(whole(batch, view, size))
        theta_BP23 = model.locate(logits_B9SS, batch.sizes_B2)
        centres_BP2, extents_BP2, present_BP = parts_of(batch, view)
        target_BP23 = target_theta(centres_BP2, extents_BP2, present_BP, batch.sizes_B2, *run.config.windows)
        return theta_loss(theta_BP23, target_BP23, present_BP, run.recipe.theta_beta), {}

    def validate() -> dict[str, float]:
        """Smooth L1 of theta, and how far the windows' centres miss in pixels of the photo."""
        sums_3 = torch.zeros(3, dtype=torch.float64, device=run.device)
        for batch in evaluation_batches(val, run.eval_batch, runtime.rank(), runtime.world_size(), args.workers):
            batch = batch.to(run.device)
            theta_BP23 = model.locate(model.coarse(whole(batch, None, size)), batch.sizes_B2)
            target_BP23 = true_theta(batch, model)
            span_B12 = (batch.sizes_B2.flip(-1) - 1).unsqueeze(1) / 2
            miss_BP = ((theta_BP23 - target_BP23)[..., 2] * span_B12).norm(dim=-1) * batch.present_BP
            loss = theta_loss(theta_BP23, target_BP23, batch.present_BP, run.recipe.theta_beta) * len(theta_BP23)
            sums_3 += torch.stack([loss * theta_BP23.shape[1], miss_BP.sum(), batch.present_BP.sum()])
        loss, miss, count = runtime.sum_over_processes(sums_3).tolist()
        return {"theta_loss": loss / max(count, 1), "centre_px": miss / max(count, 1)}

    def picture() -> np.ndarray:
        batch = first_batch(val, 8, run.device)
        theta_BP23 = model.locate(model.coarse(whole(batch, None, size)), batch.sizes_B2)
        return progress_picture(batch, label_batch(model, batch, "none"), theta_BP23)

    fit(
        stage="cropper",
        modules={"coarse": model.coarse, "localizer": model.localizer},
        step=step,
        validate=validate,
        picture=picture,
        score="theta_loss",
        maximise=False,
        **run.fit_options(train),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
