"""Stage 2: the four part iCNNs, crops around the true parts -> part masks (paper section 2.2)."""

import sys

import torch
from torch import Tensor

from data.batch import Batch
from models.loading import read_weights
from models.parser import Parsed
from models.stn_icnn.model import STNiCNN
from models.stn_icnn.parts import part_targets
from training import options
from training.engine import fit
from training.losses import parts_loss
from training.recipes import BEST_MODEL, Recipes, best, paper, paper_short
from training.task import ParserTask, Plan
from utils.runtime import run_main

RECIPES = Recipes(
    paper_helen=paper(64, {"parts": 8e-4}, crop_size=81),
    paper_celebamask=paper(64, {"parts": 8e-4}, crop_size=127),
    paper_short=paper_short(3, {"parts": 3e-3}, crop_size=81),
    best=best(40, 16, {"parts": 5e-3}, clip=5.0, model=BEST_MODEL, dice=0.5, jitter=0.08),
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
    model = STNiCNN(plan.config(STNiCNN, start, "part_channels", "kernel"))
    if start:
        model.load(start, ("parts",))
    return Stage2(plan, model, ("parts",))


def main(argv: list[str] | None = None) -> int:
    starts = {"--init-from": "checkpoint to initialise the part networks from"}
    cli = options.training_parser(__doc__, ["parts"], starts)
    cli.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples; default: the recipe's")
    options.add_network_options(cli, "part")
    args = cli.parse_args(argv)
    sizes = {"crop_size": args.crop_size, "part_channels": args.part_channels, "kernel": args.kernel}
    task = build(options.plan(args, RECIPES, ("init_from",), **sizes))
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
