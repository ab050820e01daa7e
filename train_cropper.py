"""Cropper stage: the localizer behind a trained coarse iCNN, rough mask -> theta of six windows (paper section 2.3)."""

import sys

import torch
from torch import Tensor

from data.batch import Batch
from data.view import View
from models.loading import read_weights
from models.parser import Parsed, Weights
from models.stn_icnn.localizer import KINDS
from models.stn_icnn.model import STNiCNN
from training import options
from training.engine import Scores, fit
from training.losses import theta_loss
from training.recipes import BEST_MODEL, Recipes, best, paper, paper_short
from training.task import ParserTask, Plan
from utils import distributed
from utils.errors import InputError
from utils.runtime import run_main

RECIPES = Recipes(
    paper_helen=paper(32, {"coarse": 0.0, "localizer": 0.0017}, crop_size=81),
    paper_celebamask=paper(64, {"coarse": 0.0, "localizer": 1e-3}, crop_size=127),
    paper_short=paper_short(4, {"coarse": 0.0, "localizer": 2e-3}, crop_size=81),
    best=best(20, 32, {"coarse": 0.0, "localizer": 3e-3}, clip=1.0, model=BEST_MODEL, theta_beta=0.02),
)


class Cropper(ParserTask):
    """Smooth L1 between the predicted windows and those around the true parts."""

    stage = "cropper"
    goes_on = False  # of the coarse network alone
    score = "theta_loss"
    maximise = False
    model: STNiCNN

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, model = self.plan.recipe, self.model
        view = recipe.augmentation.view(batch)
        with torch.set_grad_enabled(recipe.optimisation.lr["coarse"] > 0):
            logits_BKSS = model.coarse(view.photo(model.config.coarse_size))
        theta_BP23 = model.locate(logits_BKSS, view.sizes_B2)
        return {"theta": theta_loss(theta_BP23, *model.true_windows(view), recipe.theta_beta)}

    def validate(self) -> Scores:
        """Smooth L1 of theta, and how far the windows' centres miss, in pixels of the photo."""
        device = self.plan.machine.device
        sums_3 = torch.zeros(3, dtype=torch.float64, device=device)
        for batch in self.val_batches():
            batch = batch.to(device)
            theta_BP23 = self.model.windows_of(batch, "predicted")
            target_BP23, _ = self.model.true_windows(View(batch))
            span_B12 = (batch.sizes_B2.flip(-1) - 1).unsqueeze(1) / 2
            miss_BP = ((theta_BP23 - target_BP23)[..., 2] * span_B12).norm(dim=-1) * batch.present_BP
            loss = theta_loss(theta_BP23, target_BP23, batch.present_BP, self.plan.recipe.theta_beta)
            sums_3 += torch.stack([loss * batch.present_BP.numel(), miss_BP.sum(), batch.present_BP.sum()])
        loss, miss, count = distributed.sum_over_processes(sums_3.cpu()).tolist()
        return {"theta_loss": loss / max(count, 1), "centre_px": miss / max(count, 1)}

    def parse(self, batch: Batch) -> Parsed:
        """The rough mask, and the windows."""
        return Parsed(self.model.parse(batch, "none").labels_BHW, self.model.windows_of(batch, "predicted"))


def build(plan: Plan) -> Cropper:
    """The task of a plan.

    plan.start: "init_from", the checkpoint of stage 1, or of a later one whose localizer is trained further;
    "init_from_cropper", a checkpoint whose localizer is trained further instead.
    """
    torch.manual_seed(plan.seed)
    stage1 = read_weights(plan.start["init_from"])
    cropper = read_weights(path) if (path := plan.start.get("init_from_cropper")) else stage1
    further = _goes_on(cropper, plan.model.get("localizer"), named="init_from_cropper" in plan.start)
    settled = _kept_windows(plan, cropper) if further else {}
    model = STNiCNN(plan.config(STNiCNN, stage1, "coarse_size", "coarse_channels", "kernel", **settled))
    model.load(stage1, ("coarse",))
    if further:
        model.load(cropper, ("localizer",))
    return Cropper(plan, model, ("coarse", "localizer"), photos=View.needs_photos(model.config.coarse_size))


def _goes_on(cropper: Weights, localizer: str | None, named: bool) -> bool:
    """Whether the checkpoint's localizer is trained further: it has one, of the architecture asked for.

    named: whether a file was named for its localizer, which must fit then.
    """
    return named or ("localizer" in cropper.modules and localizer in (None, cropper.config.localizer))


def _kept_windows(plan: Plan, cropper: Weights) -> dict[str, object]:
    """What a localizer that is trained further keeps: its frame and how its windows follow the parts.

    Raises InputError where --crop-size asks for other windows.
    """
    config = cropper.config
    crop_size = plan.model.get("crop_size", config.crop_size)
    if config.window_margin == 0 and crop_size != config.crop_size:
        raise InputError(
            f"--crop-size {crop_size}: the localizer of {cropper.path} places windows of {config.crop_size} photo "
            "pixels; leave the option out, or train a new localizer from a checkpoint of stage 1"
        )
    kept = {name: getattr(config, name) for name in ("frame", "canvas", "window_margin", "window_aspect")}
    return {**kept, "crop_size": crop_size, "localizer": plan.model.get("localizer", config.localizer)}


def main(argv: list[str] | None = None) -> int:
    starts = {
        "--init-from": "stage 1's checkpoint (coarse network); a localizer in it is fine-tuned",
        "--init-from-cropper": "checkpoint whose localizer is fine-tuned; keeps its window settings",
    }
    cli = options.training_parser(__doc__, ["coarse", "localizer"], starts)
    cli.add_argument(
        "--localizer", choices=KINDS, help="architecture; default: that of a localizer to fine-tune, else paper"
    )
    cli.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    args = cli.parse_args(argv)
    options.check(args, required=["init_from"])
    sizes = {"localizer": args.localizer, "crop_size": args.crop_size}
    task = build(options.plan(args, RECIPES, ("init_from", "init_from_cropper"), **sizes))
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
