"""End to end: coarse iCNN, localizer and part iCNNs fine-tuned together through the differentiable crop
(paper section 2.4): the predicted theta crops the photo and its labels, and the part loss reaches all three."""

import sys

import numpy as np
import torch

from data.augment import PAPER_AUGMENTATION, crops_of, draw, mirror_labels, parts_of, theta_frame, whole, whole_labels
from data.loading import Batch
from models.grid import compose, crop, crop_labels
from models.parts import part_targets
from models.pretrained import load_model
from models.windows import target_theta
from train_stage1 import BEST as BEST_STAGE1
from train_stage1 import PAPER_SHORT
from utils import options
from utils.engine import Optimisation, fit
from utils.errors import InputError
from utils.losses import parts_loss, segmentation_loss, theta_loss
from utils.options import Recipe, Recipes
from utils.parsing import first_batch, label_maps, progress_picture, validation_f1
from utils.runtime import run_main

RECIPES = Recipes(
    paper_helen=Recipe(
        Optimisation(epochs=25, lr={"coarse": 1e-4, "localizer": 1e-4, "parts": 1e-2}),
        batch_size=32,
        augmentation=PAPER_AUGMENTATION,
    ),
    paper_celebamask=Recipe(
        Optimisation(epochs=25, lr={"coarse": 1e-6, "localizer": 1e-6, "parts": 1e-3}),
        batch_size=64,
        augmentation=PAPER_AUGMENTATION,
    ),
    paper_short=Recipe(
        # the part loss sees only what is in the windows: at 1e-4 they drift to where labelling is easy
        Optimisation(epochs=1, lr={"coarse": 1e-6, "localizer": 1e-6, "parts": 1e-3}, schedule="onecycle"),
        batch_size=PAPER_SHORT.batch_size,
        augmentation=PAPER_SHORT.augmentation,
    ),
    best=Recipe(
        Optimisation(
            epochs=20,
            lr={"coarse": 1e-4, "localizer": 1e-4, "parts": 1e-3},
            optimizer="adamw",
            schedule="onecycle",
            weight_decay=1e-2,
            clip=5.0,
        ),
        batch_size=16,
        augmentation=BEST_STAGE1.augmentation,
        dice=0.5,
        theta_beta=0.02,
        coarse_weight=1.0,
        theta_weight=10.0,
    ),
)


def main(argv: list[str] | None = None, recipes: Recipes = RECIPES) -> int:
    parser = options.training_parser(
        __doc__,
        ["coarse", "localizer", "parts"],
        {
            "--init-from-cropper": "the cropper stage's checkpoint (coarse network and localizer)",
            "--init-from-stage2": "stage 2's checkpoint (part networks)",
            "--init-from": "instead of both: an end-to-end checkpoint to fine-tune",
        },
    )
    args = parser.parse_args(argv)
    sources = [path for path in (args.init_from_cropper, args.init_from_stage2) if path]
    if (args.init_from is None) == (not sources) or len(sources) == 1:
        raise InputError("start from --init-from-cropper and --init-from-stage2 together, or from --init-from alone")
    run = options.start(args, recipes)
    model = load_model(sources or [args.init_from])
    run = run.with_config(model.config)
    train, val = options.open_split(args, "train"), options.open_split(args, "val")
    config, recipe = run.config, run.recipe

    def step(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        view = draw(recipe.augmentation, batch)
        logits_B9SS = model.coarse(whole(batch, view, config.coarse_size))
        theta_BP23 = model.locate(logits_B9SS, batch.sizes_B2)
        source_BP23 = compose(theta_frame(view, batch.sizes_B2), theta_BP23)
        crops_BP3SS = crops_of(view, crop(batch.photos_BHW3, source_BP23, config.crop_size, batch.sizes_B2))
        labels_BPSS = crop_labels(batch.labels_BHW, source_BP23.detach(), config.crop_size, batch.sizes_B2)
        labels_BPSS = mirror_labels(labels_BPSS, view.mirrored_B)
        losses = {"parts": parts_loss(model.parts(crops_BP3SS), part_targets(labels_BPSS), recipe.dice)}
        if recipe.coarse_weight > 0:
            labels_BSS = whole_labels(batch, view, config.coarse_size)
            losses["coarse"] = recipe.coarse_weight * segmentation_loss(logits_B9SS, labels_BSS, recipe.dice)
        if recipe.theta_weight > 0:
            centres_BP2, extents_BP2, present_BP = parts_of(batch, view)
            target_BP23 = target_theta(centres_BP2, extents_BP2, present_BP, batch.sizes_B2, *config.windows)
            losses["theta"] = recipe.theta_weight * theta_loss(theta_BP23, target_BP23, present_BP, recipe.theta_beta)
        return torch.stack(list(losses.values())).sum(), losses

    def picture() -> np.ndarray:
        batch = first_batch(val, 8, run.device)
        labels_BHW, theta_BP23 = label_maps(model, batch, "predicted")
        return progress_picture(batch, labels_BHW, theta_BP23)

    fit(
        stage="end2end",
        modules={"coarse": model.coarse, "localizer": model.localizer, "parts": model.parts},
        step=step,
        validate=lambda: validation_f1(model, val, "predicted", run.eval_batch, run.device, args.workers),
        picture=picture,
        score="f1",
        maximise=True,
        **run.fit_options(train),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
