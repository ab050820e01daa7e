"""Released weights: half the size, the same labels; averages of trainings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.loading import load_parser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.damage import refuses
from tests.fixtures import save_parser
from tools import release
from utils import checkpoint

# what training leaves in a checkpoint, beside weights
TRAINED = dict(dataset="synthetic", images=4, seed=0, recipe={"batch_size": 2}, epoch=0, best={"f1": 0.5}, optimizer={})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trained") / "best.pt"
    return save_parser(path, STNiCNN(STNiCNNConfig(coarse_size=32, crop_size=17)), **TRAINED)


@pytest.fixture
def ship(tmp_path: Path) -> Callable[..., Path]:
    """Calls the script for some checkpoints; returns what it wrote."""

    def run(*paths: Path, out: str = "shipped.pt", average: bool = False) -> Path:
        how = ["--average"] if average else []
        assert release.main([*how, "--checkpoint", *map(str, paths), "--out", str(tmp_path / out)]) == 0
        return tmp_path / out

    return run


def test_weights_that_ship_are_half_as_large_and_label_alike_without_what_only_training_needs(trained, ship):
    out = ship(trained)
    assert out.stat().st_size < 0.6 * trained.stat().st_size
    photos_BHW3 = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        one, two = (load_parser([path])(photos_BHW3).argmax(1) for path in (trained, out))
    assert (one == two).float().mean() > 0.99
    shipped, state = checkpoint.load(out), checkpoint.load(trained)
    assert shipped.keys() == state.keys() - {"optimizer"}
    assert all(shipped[key] == state[key] for key in shipped.keys() - {"modules"})


def test_modules_of_a_later_checkpoint_win(trained, ship, tmp_path):
    state = checkpoint.load(trained)
    localizer = {key: torch.zeros_like(value) for key, value in state["modules"]["localizer"].items()}
    other = {**state, "stage": "cropper", "modules": {"localizer": localizer}, "seed": 7}
    checkpoint.save(tmp_path / "other.pt", other)
    shipped = checkpoint.load(ship(trained, tmp_path / "other.pt"), ("end2end",))
    assert not any(value.any() for value in shipped["modules"]["localizer"].values())
    for key, value in state["modules"]["parts"].items():
        torch.testing.assert_close(shipped["modules"]["parts"][key].to(value.dtype), value, rtol=1e-3, atol=1e-4)
    assert shipped["seed"] == 7


def test_weights_that_are_not_finite_or_beyond_half_precision_do_not_ship(trained, ship, tmp_path):
    state = checkpoint.load(trained)
    for value, line in ((torch.nan, "holds NaN or infinity"), (1e6, "does not fit")):
        state["modules"]["parts"]["nets.brows.head.2.bias"].fill_(value)
        checkpoint.save(tmp_path / "odd.pt", state)
        with refuses(f"parts.nets.brows.head.2.bias {line}"):
            ship(tmp_path / "odd.pt")
    assert not (tmp_path / "shipped.pt").exists()


def test_the_average_of_trainings_is_the_mean_of_weights_and_statistics(trained, ship, tmp_path):
    state = checkpoint.load(trained)
    paths = [trained, tmp_path / "second.pt", tmp_path / "third.pt"]
    for factor, path in zip((4, 7), paths[1:], strict=True):
        modules = {
            name: {key: value * factor if value.is_floating_point() else value for key, value in weights.items()}
            for name, weights in state["modules"].items()
        }
        checkpoint.save(path, {**state, "modules": modules})
    shipped = checkpoint.load(ship(*paths, average=True), ("end2end",))
    assert not shipped.keys() & {"seed", "epoch", "best", "optimizer"}  # of one training, not of three
    for name, weights in state["modules"].items():
        for key, value in weights.items():
            mean = 4 * value if value.is_floating_point() else value
            torch.testing.assert_close(shipped["modules"][name][key].to(value.dtype), mean, rtol=1e-3, atol=1e-4)
