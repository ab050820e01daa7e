"""A parser of 19 labels, a few convolutions large: what a parser of your own has to write, and no more."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.labels import LabelSet
from data.view import Augmentation
from models.parser import WholeFaceParser
from training import options
from training.engine import Optimisation, fit
from training.recipes import WholeFaceRecipe, WholeFaceRecipes
from training.task import Plan, WholeFaceTask


@dataclass(frozen=True)
class TinyConfig:
    """size: side of the stretched photo, pixels. channels: of the hidden layers."""

    size: int = 32
    channels: int = 8


class TinyParser(WholeFaceParser):
    kind = "tiny"
    Config = TinyConfig

    def __init__(self, config: TinyConfig, labels: LabelSet) -> None:
        wide = config.channels
        network = nn.Sequential(
            nn.Conv2d(3, wide, 5, 2, 2),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 5, padding=2),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, len(labels), 1),
        )
        super().__init__(config, labels, network)


RECIPE = WholeFaceRecipe(
    Optimisation(epochs=3, lr={"network": 0.02}, optimizer="adamw", schedule="onecycle"),
    batch_size=2,
    augmentation=Augmentation(rotation=10, shift=0.05, mirror=0.5),
    model={"channels": 12},
)
RECIPES = WholeFaceRecipes(RECIPE)


class TrainTiny(WholeFaceTask):
    stage = "tiny"
    model: TinyParser

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"segmentation": self.half_grid_loss(batch, self.model.logits)}


def build(plan: Plan) -> TrainTiny:
    torch.manual_seed(plan.seed)
    return TrainTiny(plan, TinyParser(plan.config(TinyParser), plan.labels))


def main(argv: list[str] | None = None) -> int:
    args = options.training_parser(__doc__, ["network"], {}, whole_face=True, recipes=False).parse_args(argv)
    task = build(options.plan(args, RECIPES))
    fit(task, task.run)
    return 0
