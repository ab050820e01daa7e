"""End to end: coarse iCNN, localizer and part iCNNs fine-tuned together through the differentiable crop
(paper section 2.4): the predicted theta crops the photo and its labels, and the part loss reaches all three."""

import sys
from dataclasses import fields

import torch
from torch import Tensor

from data.batch import Batch
from models.loading import read_weights
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from models.stn_icnn.parts import part_targets
from training import options
from training.engine import fit
from training.losses import parts_loss, segmentation_loss, theta_loss
from training.recipes import Recipes, best, paper, paper_short
from training.task import ParserTask, Plan
from utils import distributed
from utils.errors import InputError
from utils.runtime import run_main

TEACHING = {"theta_beta": 0.02, "coarse_weight": 1.0, "theta_weight": 10.0}  # earlier stages keep their losses
RECIPES = Recipes(
    paper_helen=paper(32, {"coarse": 1e-4, "localizer": 1e-4, "parts": 1e-2}),
    paper_celebamask=paper(64, {"coarse": 1e-6, "localizer": 1e-6, "parts": 1e-3}),
    # the part loss sees only what is in the windows: at 1e-4 they drift to where labelling is easy
    paper_short=paper_short(1, {"coarse": 1e-6, "localizer": 1e-6, "parts": 1e-3}),
    best=best(20, 16, {"coarse": 1e-4, "localizer": 1e-4, "parts": 1e-3}, clip=5.0, model={}, dice=0.5, **TEACHING),
)

# What training may start from.
STARTS = (("init_from",), ("init_from_cropper",), ("init_from_cropper", "init_from_stage2"))


class EndToEnd(ParserTask):
    """The part loss in the predicted windows; recipes may keep teaching the rough mask and the windows too."""

    stage = "end2end"
    model: STNiCNN

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, model, config = self.plan.recipe, self.model, self.model.config
        view = recipe.augmentation.view(batch)
        logits_BKSS = model.coarse(view.photo(config.coarse_size))
        theta_BP23 = model.locate(logits_BKSS, view.sizes_B2)
        part_logits = model.parts(view.crops(theta_BP23, config.crop_size))
        targets = part_targets(view.crop_labels(theta_BP23, config.crop_size))
        losses = {"parts": parts_loss(part_logits, targets, recipe.dice)}
        if recipe.coarse_weight > 0:
            coarse_loss = segmentation_loss(logits_BKSS, view.label_map(config.coarse_size), recipe.dice)
            losses["coarse"] = recipe.coarse_weight * coarse_loss
        if recipe.theta_weight > 0:
            window_loss = theta_loss(theta_BP23, *model.true_windows(view), recipe.theta_beta)
            losses["theta"] = recipe.theta_weight * window_loss
        return losses


def build(plan: Plan) -> EndToEnd:
    """The task of a plan.

    plan.start: "init_from_cropper" (coarse network, localizer and how its windows follow the parts), with
    "init_from_stage2" or with random part networks (the released --pretrainC 0), or "init_from", an end-to-end
    checkpoint. Raises InputError for other combinations.
    """
    if tuple(sorted(plan.start)) not in STARTS:
        raise InputError(
            "start from --init-from-cropper, with --init-from-stage2 or with random part networks, or from --init-from "
            "alone"
        )
    torch.manual_seed(plan.seed)
    found = [read_weights(plan.start[name]) for name in sorted(plan.start)]
    config = plan.config(STNiCNN, found[0], *(field.name for field in fields(STNiCNNConfig)))
    if "init_from_cropper" in plan.start and len(found) == 1:
        model = STNiCNN(config)
        model.load(found[0], ("coarse", "localizer"))
        if distributed.rank() == 0:
            print("no --init-from-stage2: the part networks start with random weights")
    else:
        model = STNiCNN.from_weights(found, **plan.model)
    return EndToEnd(plan, model, STNiCNN.networks)


def main(argv: list[str] | None = None) -> int:
    starts = {
        "--init-from-cropper": "the cropper stage's checkpoint (coarse network and localizer)",
        "--init-from-stage2": "stage 2's checkpoint (part networks); without it, they are initialised randomly",
        "--init-from": "end-to-end checkpoint to fine-tune, instead of the two above",
    }
    cli = options.training_parser(__doc__, ["coarse", "localizer", "parts"], starts)
    options.add_network_options(cli, "part")
    args = cli.parse_args(argv)
    names = [flag.removeprefix("--").replace("-", "_") for flag in starts]
    task = build(options.plan(args, RECIPES, names, part_channels=args.part_channels, kernel=args.kernel))
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
