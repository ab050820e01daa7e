"""The released networks' own numbers (golden.json), from weights made by formula under the official keys."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from data.labels import PAPER_GROUPS
from models.grid import crop, paste, window_theta
from models.icnn import ICNN, ICNNConfig
from models.localizer import ReleasedLocalizer, ResNetLocalizer
from models.parts import PartNets
from models.released import convert
from utils.metrics import confusion_matrix, f1

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
KEYS = GOLDEN["official_state_dict_keys"]
VALUES = next(part for name, part in GOLDEN.items() if name not in ("formula", "official_state_dict_keys"))


def expected(start: str):
    return next(value for name, value in VALUES.items() if name.startswith(start))


def formula_state(network: str) -> dict[str, Tensor]:
    state = {}
    for j, (key, shape) in enumerate(sorted(KEYS[network].items())):
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.long)
            continue
        wave = torch.sin(1 + 0.37 * j + 0.013 * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)
        if key.endswith("running_var"):
            wave = 1 + 0.1 * wave**2
        elif len(shape) >= 2:
            wave = wave * math.sqrt(2 / math.prod(shape[1:]))
        elif key.endswith("weight"):
            wave = 1 + 0.1 * wave
        else:
            wave = 0.1 * wave
        state[key] = wave.float()
    return state


def formula_image(*shape: int) -> Tensor:
    b, k, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    return (0.5 + 0.5 * torch.sin(0.05 * x + 0.07 * y + k + 2 * b)).float()


def assert_golden(actual: Tensor, start: str) -> None:
    """Within 1e-4 of the largest value: the golden numbers are float32, whose rounding errors the coarse network
    amplifies to 2e-4 of one small value (exact arithmetic is as far from it)."""
    golden = expected(start)
    assert list(actual.shape) == golden["shape"]
    assert actual.double().mean().item() == pytest.approx(golden["mean"], rel=1e-4, abs=1e-4 * golden["std"])
    assert actual.double().std().item() == pytest.approx(golden["std"], rel=1e-4)
    values = actual.flatten()[golden["index"]].tolist()
    assert values == pytest.approx(golden["value"], rel=0, abs=1e-4 * max(map(abs, golden["value"])))


def imported(module: nn.Module, entries: dict[str, str], name: str) -> nn.Module:
    module.load_state_dict(convert({entry: formula_state(network) for entry, network in entries.items()})[name])
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def coarse_probs() -> Tensor:
    network = imported(ICNN(ICNNConfig()), {"model1": "model1"}, "coarse")
    logits = network(formula_image(2, 3, 128, 128))
    assert_golden(logits, "model1: image")
    return logits.softmax(1)


@pytest.fixture(scope="module")
def part_nets() -> nn.Module:
    return imported(PartNets(), {"model2": "model2"}, "parts")


@pytest.fixture(scope="module")
def theta() -> Tensor:
    centres = torch.tensor(expected("centres")).float()
    return window_theta(centres[None], torch.full((1, 6), 81.0), torch.tensor([[1024, 1024]]))


def test_the_coarse_network_gives_the_released_logits(coarse_probs: Tensor) -> None:
    assert coarse_probs.shape == (2, 9, 128, 128)


@pytest.mark.parametrize(("kind", "build"), [("custom", ReleasedLocalizer), ("resnet18", ResNetLocalizer)])
def test_both_released_localizers_give_their_theta(coarse_probs: Tensor, kind: str, build: type[nn.Module]) -> None:
    localizer = imported(build(), {"model1": "model1", "select_net": f"select_net.{kind}"}, "localizer")
    assert_golden(localizer(coarse_probs), f"select_net.{kind}")


def test_the_four_part_networks_give_the_released_logits_of_six_parts(part_nets: nn.Module) -> None:
    logits = part_nets(formula_image(1, 18, 81, 81).view(1, 6, 3, 81, 81))
    for part, part_logits in enumerate(logits):
        assert_golden(part_logits, f"model2: image(1,18,81,81) viewed as (1,6,3,81,81) -> logits of part {part}")


def test_crop_paste_and_labels_on_the_canvas_are_the_released_ones(part_nets: nn.Module, theta: Tensor) -> None:
    crops = crop(formula_image(1, 3, 1024, 1024), theta, 81)
    assert_golden(crops, "crop")
    canvas = paste([logits.softmax(1) for logits in part_nets(crops)], theta, 1024, 1024)
    assert_golden(canvas, "mapback")
    assert canvas.argmax(1).flatten().bincount(minlength=9).tolist() == expected("argmax")


def test_overall_f1_is_the_released_one() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    pred, truth = (x // 8 + (y + 2) // 8) % 9, (x // 8 + y // 8) % 9
    assert f1(confusion_matrix(pred, truth), PAPER_GROUPS["overall"]) == pytest.approx(expected("overall"), rel=1e-9)


@pytest.mark.parametrize(
    ("network", "official", "ours", "build"),
    [
        ("model1", 822_943, 559_931, lambda: ICNN(ICNNConfig())),
        ("model2", 3_237_084, 2_186_632, PartNets),
        ("select_net.custom", 5_172, 5_172, ReleasedLocalizer),
        ("select_net.resnet18", 11_213_796, 11_213_796, ResNetLocalizer),
    ],
)
def test_parameter_counts_are_those_of_the_paper_without_its_unused_layers(network, official, ours, build) -> None:
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(math.prod(s) for key, s in KEYS[network].items() if not key.endswith(buffers)) == official
    assert sum(parameter.numel() for parameter in build().parameters()) == ours
