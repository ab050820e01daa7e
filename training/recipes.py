"""What a stage is trained with."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from data.view import NO_AUGMENTATION, PAPER_AUGMENTATION, WIDE_AUGMENTATION, Augmentation
from training.engine import Optimisation

AnyRecipe = TypeVar("AnyRecipe", bound="Recipe")
AUGMENTATIONS = {"none": NO_AUGMENTATION, "paper": PAPER_AUGMENTATION, "wide": WIDE_AUGMENTATION}


@dataclass(frozen=True)
class Recipe:
    """Everything a stage is trained with: the defaults of its options.

    batch_size: over all processes. model: fields of the parser's ``Config`` that differ from its defaults.
    dice, theta_beta, jitter, coarse_weight, theta_weight: see the stages that use them.
    """

    optimisation: Optimisation
    batch_size: int
    augmentation: Augmentation = NO_AUGMENTATION
    model: dict[str, Any] = field(default_factory=dict)
    dice: float = 0.0
    theta_beta: float = 1.0
    jitter: float = 0.0
    coarse_weight: float = 0.0
    theta_weight: float = 0.0

    def changed(
        self: AnyRecipe,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: dict[str, float] | None = None,
        weight_decay: float | None = None,
        augmentation: str | None = None,
    ) -> AnyRecipe:
        """The recipe with these values in place of its own; None leaves one as it is. augmentation: one of
        ``AUGMENTATIONS``."""
        old = self.optimisation
        optimisation = replace(
            old,
            epochs=old.epochs if epochs is None else epochs,
            lr={**old.lr, **(lr or {})},
            weight_decay=old.weight_decay if weight_decay is None else weight_decay,
        )
        chosen = self.augmentation if augmentation is None else AUGMENTATIONS[augmentation]
        return replace(self, optimisation=optimisation, batch_size=batch_size or self.batch_size, augmentation=chosen)


class Recipes(NamedTuple):
    """A stage's recipes: the paper's for each of its data sets (synthetic faces use HELEN's), the paper's method in
    few steps (one-cycle, each face once an epoch), and ours."""

    paper_helen: Recipe
    paper_celebamask: Recipe
    paper_short: Recipe
    best: Recipe

    def choose(self, name: str, dataset: str) -> Recipe:
        """The recipe of one of ``RECIPE_NAMES`` for a data set."""
        return {
            "paper": self.paper_celebamask if dataset == "celebamask" else self.paper_helen,
            "paper-short": self.paper_short,
            "best": self.best,
            "wide": replace(self.best, augmentation=WIDE_AUGMENTATION),
        }[name]


RECIPE_NAMES = ("paper", "paper-short", "best", "wide")
BEST_AUGMENTATION = Augmentation(
    rotation=15, shift=0.08, scale=(0.8, 1.25), noise=0.03, tone=0.8, mirror=0.5, camera=0.5
)
BEST_MODEL = {"window_margin": 1.6, "window_aspect": 0.5, "paste": "bilinear"}


def paper(batch_size: int, lr: dict[str, float], **model: Any) -> Recipe:
    """As the paper trains: 25 epochs of Adam at constant rates. model: see ``Recipe``, as below."""
    return Recipe(Optimisation(25, lr), batch_size, PAPER_AUGMENTATION, model)


def paper_short(epochs: int, lr: dict[str, float], **model: Any) -> Recipe:
    """The paper's method in few steps, which are what counts: small batches, one-cycle, each face once an epoch."""
    return Recipe(Optimisation(epochs, lr, schedule="onecycle"), 8, replace(PAPER_AUGMENTATION, folds=1), model)


def best(
    epochs: int, batch_size: int, lr: dict[str, float], clip: float, model: dict[str, Any], **losses: float
) -> Recipe:
    """Ours: AdamW, one-cycle, clipped gradients, more augmentation. losses: further fields of ``Recipe``."""
    optimisation = Optimisation(epochs, lr, "adamw", "onecycle", weight_decay=1e-2, clip=clip)
    return Recipe(optimisation, batch_size, BEST_AUGMENTATION, model, **losses)


@dataclass(frozen=True)
class WholeFaceRecipe(Recipe):
    """What a parser of the whole face is trained with.

    balance: labels that fewer than this share of the faces have are drawn more often, see ``Faces.balance``; 0: each
    face once an epoch. least_share: see ``Faces.class_weights``; 0: no weights.
    """

    balance: float = 0.0
    least_share: float = 0.0


class WholeFaceRecipes(NamedTuple):
    """The recipes of a parser of the whole face: ours, and that of its authors' code if there is one; the same for
    every data set."""

    best: WholeFaceRecipe
    seed: WholeFaceRecipe | None = None

    def choose(self, name: str, dataset: str) -> WholeFaceRecipe:
        """The recipe of one of ``WHOLE_FACE_RECIPE_NAMES``."""
        return getattr(self, name)


WHOLE_FACE_RECIPE_NAMES = WholeFaceRecipes._fields
