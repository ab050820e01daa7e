"""Stage 2: the four part iCNNs, crops around the true parts -> part masks (paper section 2.2)."""

import sys

import torch
from torch import Tensor

from data.batch import Batch
from data.view import PAPER_AUGMENTATION
from models.loading import read_weights
from models.parser import Parsed
from models.stn_icnn.model import STNiCNN
from models.stn_icnn.parts import part_targets
from train_stage1 import BEST as BEST_STAGE1
from train_stage1 import PAPER_SHORT
from training import options
from training.engine import Optimisation, fit
from training.losses import parts_loss
from training.recipes import Recipe, Recipes
from training.task import ParserTask, Plan
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


class Stage2(ParserTask):
    """Cross-entropy of the parts in windows around the true ones, which ``recipe.jitter`` moves a little."""

    stage = "stage2"
    model: STNiCNN

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, size = self.plan.recipe, self.model.config.crop_size
        view = recipe.augmentation.view(batch)
        theta_BP23, _ = self.model.true_windows(view, recipe.jitter)
        logits = self.model.parts(view.crops(theta_BP23, size))
        return {"parts": parts_loss(logits, part_targets(view.crop_labels(theta_BP23, size)), recipe.dice)}

    def parse(self, batch: Batch) -> Parsed:
        return self.model.parse(batch, "truth")


def build(plan: Plan) -> Stage2:
    """The task of a plan. plan.start: "init_from", a checkpoint whose part networks to start from."""
    torch.manual_seed(plan.seed)
    start = read_weights(path) if (path := plan.start.get("init_from")) else None
    model = STNiCNN(plan.config(STNiCNN, start, "part_channels"))
    if start:
        model.load(start, ("parts",))
    return Stage2(plan, model, ("parts",))


def main(argv: list[str] | None = None) -> int:
    starts = {"--init-from": "a checkpoint whose part networks to start from"}
    cli = options.training_parser(__doc__, ["parts"], starts)
    cli.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    options.add_channels_option(cli, "part")
    args = cli.parse_args(argv)
    sizes = {"crop_size": args.crop_size, "part_channels": args.part_channels}
    task = build(options.plan(args, RECIPES, ("init_from",), **sizes))
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
