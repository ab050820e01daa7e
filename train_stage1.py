"""Stage 1: the coarse iCNN, resized photo -> rough mask of nine labels (paper section 2.2)."""

import sys

import torch
from torch import Tensor

from data.batch import Batch
from data.view import View
from models.loading import read_weights
from models.parser import Parsed
from models.stn_icnn.model import STNiCNN
from training import options
from training.engine import fit
from training.losses import segmentation_loss
from training.recipes import BEST_MODEL, Recipes, best, paper, paper_short
from training.task import ParserTask, Plan
from utils.runtime import run_main

RECIPES = Recipes(
    paper_helen=paper(32, {"coarse": 0.0023}, crop_size=81),
    paper_celebamask=paper(64, {"coarse": 1e-3}, crop_size=127),
    paper_short=paper_short(5, {"coarse": 2e-3}, crop_size=81),
    best=best(40, 32, {"coarse": 4e-3}, clip=1.0, model=BEST_MODEL, dice=0.5),
)


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
    model = STNiCNN(plan.config(STNiCNN, start, "coarse_channels", "kernel"))
    if start:
        model.load(start, ("coarse",))
    return Stage1(plan, model, ("coarse",), photos=View.needs_photos(model.config.coarse_size))


def main(argv: list[str] | None = None) -> int:
    starts = {"--init-from": "checkpoint to initialise the coarse network from"}
    cli = options.training_parser(__doc__, ["coarse"], starts)
    cli.add_argument("--coarse-size", type=int, metavar="N", help="side of the resized photo, pixels; default: 128")
    options.add_network_options(cli, "coarse")
    args = cli.parse_args(argv)
    sizes = {"coarse_size": args.coarse_size, "coarse_channels": args.coarse_channels, "kernel": args.kernel}
    task = build(options.plan(args, RECIPES, ("init_from",), **sizes))
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
