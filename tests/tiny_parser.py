"""A parser of 19 labels, a few convolutions large: what a parser of your own has to write, and no more."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.labels import CELEBAMASK, LabelSet
from data.view import Augmentation, View
from models.parser import WholeFaceParser
from training import options
from training.engine import Optimisation, fit
from training.losses import segmentation_loss
from training.recipes import Recipe, Recipes
from training.task import ParserTask, Plan


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


RECIPE = Recipe(
    Optimisation(epochs=3, lr={"network": 0.02}, optimizer="adamw", schedule="onecycle"),
    batch_size=2,
    augmentation=Augmentation(rotation=10, shift=0.05, mirror=0.5),
    model={"channels": 12},
)
RECIPES = Recipes(RECIPE, RECIPE, RECIPE, RECIPE)


class TrainTiny(ParserTask):
    stage = "tiny"
    model: TinyParser

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, size = self.plan.recipe.augmentation.view(batch), self.model.config.size
        logits_BKhw = self.model.network(view.photo(size))
        return {"segmentation": segmentation_loss(logits_BKhw, view.label_map(logits_BKhw.shape[-1]))}


def build(plan: Plan) -> TrainTiny:
    torch.manual_seed(plan.seed)
    model = TinyParser(plan.config(TinyParser), CELEBAMASK)
    return TrainTiny(plan, model, model.networks, photos=View.needs_photos(model.config.size))


def main(argv: list[str] | None = None) -> int:
    args = options.training_parser(__doc__, ["network"], {}).parse_args(argv)
    task = build(options.plan(args, RECIPES))
    fit(task, task.run)
    return 0
