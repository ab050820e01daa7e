"""EAGRNet: resized photo -> all labels of the data set, or those of --labels, and the edges between them."""

import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.batch import Batch
from data.edges import edges
from data.loaders import require_pair
from data.view import Augmentation, View
from models.eagrnet import EAGRNetParser, imagenet_start
from models.loading import read_weights
from scoring.pictures import face_pictures, tile
from training import options
from training.engine import Optimisation, fit
from training.losses import boundary_loss, edge_loss, segmentation_loss
from training.recipes import WholeFaceRecipe, WholeFaceRecipes
from training.task import SHOWN_FACES, Plan, WholeFaceTask
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import run_main


@dataclass(frozen=True)
class EAGRNetRecipe(WholeFaceRecipe):
    """weight: of all three losses."""

    weight: float = 1.0


RECIPES = WholeFaceRecipes(
    seed=EAGRNetRecipe(
        Optimisation(epochs=200, lr={"network": 1e-3}, optimizer="sgd", schedule="polynomial", weight_decay=5e-4),
        batch_size=7,
        augmentation=Augmentation(rotation=30, scale=(0.75, 1.25)),
        model={"bgr": True},
        weight=2.0,  # the authors' code adds the three losses once for each of the network's two outputs
    ),
    best=EAGRNetRecipe(
        Optimisation(60, {"network": 3e-4}, "adamw", "onecycle", weight_decay=1e-2, clip=5.0),
        batch_size=8,
        augmentation=Augmentation(rotation=15, shift=0.06, scale=(0.8, 1.25), tone=0.5, mirror=0.5),
        dice=1.0,
    ),
)


class TrainEAGRNet(WholeFaceTask):
    """The paper's three losses (section 3.5), on the grid of the stretched photo; mean F1 of the labels decides."""

    stage = "eagrnet"
    model: EAGRNetParser

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, size = self.plan.recipe, self.model.config.size
        assert isinstance(recipe, EAGRNetRecipe)
        view = recipe.augmentation.view(batch)
        targets_BSS = view.label_map(size)
        edges_BSS = edges(targets_BSS)
        labels_BKSS, edges_B2SS = (enlarge(logits, size) for logits in self.model.both(view.photo(size)))
        losses = {
            "segmentation": segmentation_loss(labels_BKSS, targets_BSS, recipe.dice, self.class_weights_K),
            "edge": edge_loss(edges_B2SS, edges_BSS),
            "boundary": boundary_loss(labels_BKSS, targets_BSS, edges_BSS),
        }
        return {name: recipe.weight * loss for name, loss in losses.items()}

    def picture(self) -> np.ndarray:
        """Parsed; the edges that the network sees; the truth."""
        batch = self.val_faces.first(SHOWN_FACES).to(self.plan.machine.device)
        edges_BHW = self.model.both(View(batch).photo(self.model.config.size)).edges_B2HW.float().softmax(1)[:, 1]
        grey_BHW1 = (edges_BHW[..., None] * 255).byte().cpu().numpy()
        faces = [*face_pictures(batch, self.parse(batch).labels_BHW), *grey_BHW1.repeat(3, -1)]
        return tile([*faces, *face_pictures(batch, batch.labels_BHW)], len(grey_BHW1), 192)


def enlarge(logits_BKHW: Tensor, size: int) -> Tensor:
    """As the authors' loss does it: edge to edge, not centre to centre as within their network."""
    return F.interpolate(logits_BKHW, (size, size), mode="bilinear")


def build(plan: Plan) -> TrainEAGRNet:
    """The task of a plan. plan.start: "init_from", a checkpoint of EAGRNet, ours or the authors'; or "imagenet", a
    ResNet-101 trained on ImageNet.

    Raises InputError for both of them, and for a single face a batch, of which pooled features have no variance.
    """
    require_pair(plan.recipe.batch_size, "pooled features")
    if len(plan.start) > 1:
        raise InputError("--init-from, --imagenet: give one of them; --init-from replaces all weights of --imagenet")
    torch.manual_seed(plan.seed)
    model = EAGRNetParser(plan.config(EAGRNetParser), plan.labels)
    if path := plan.start.get("init_from"):
        model.load(read_weights(path), model.networks)
    if path := plan.start.get("imagenet"):
        try:
            imagenet_start(model.network, checkpoint.read_tensors(path))
        except InputError as error:
            raise InputError(f"--imagenet {path}: {error}") from None
    return TrainEAGRNet(plan, model)


def main(argv: list[str] | None = None) -> int:
    starts = {
        "--init-from": "EAGRNet checkpoint to start from",
        "--imagenet": "ResNet-101 pre-trained on ImageNet, with a stem of three 3x3 layers as the authors'",
    }
    cli = options.training_parser(__doc__, ["network"], starts, whole_face=True)
    cli.add_argument("--input-size", type=int, metavar="N", help="side of the resized photo, pixels; default: 473")
    args = cli.parse_args(argv)
    task = build(options.plan(args, RECIPES, ("init_from", "imagenet"), size=args.input_size))
    fit(task, task.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
