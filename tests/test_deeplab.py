"""DeepLabV3+: numbers of the original network under formula-made weights, its losses, schedule, metrics and files."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.deeplab import STAGES, DeepLab, DeepLabConfig, DeepLabV3Plus

GOLDEN = json.loads((Path(__file__).parent / "golden_side.json").read_text())["deeplab"]


def formula_weights(network: torch.nn.Module) -> None:
    """Fill a network as the golden file says: sines, by the place of a key in the sorted list of all keys."""
    state = network.state_dict()
    for j, key in enumerate(sorted(state)):
        value = state[key]
        if not value.is_floating_point():
            continue
        s = torch.sin(1 + 0.37 * j + 0.013 * torch.arange(value.numel(), dtype=torch.float64)).view(value.shape)
        if key.endswith("running_var"):
            s = 1 + 0.1 * s**2
        elif value.ndim >= 2:
            s = s * math.sqrt(2 / (value.numel() / len(value)))
        else:
            s = 1 + 0.1 * s if key.endswith("weight") else 0.1 * s
        value.copy_(s)


def _indices(*shape: int) -> list[Tensor]:
    return list(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"))


def formula_image(*shape: int) -> Tensor:
    b, k, y, x = _indices(*shape)
    return (0.5 + 0.5 * torch.sin(0.05 * x + 0.07 * y + k + 2 * b)).float()


def labels19(*shape: int) -> Tensor:
    b, y, x = (index.long() for index in _indices(*shape))
    return (x // 3 + 2 * (y // 2) + b) % (17 - 12 * b)


def hinted_logits() -> Tensor:
    b, k, y, x = _indices(2, 19, 24, 20)
    hint = (k == labels19(2, 24, 20)[:, None]) & ((x + y + b) % 2 == 0)
    return (2 * torch.sin(0.31 * x + 0.17 * y + 0.9 * k + 1.3 * b) + 4 * hint).float()


def assert_golden(value: Tensor, entry: dict, tolerance: float = 1e-4) -> None:
    assert list(value.shape) == entry["shape"]
    flat = value.flatten().double()
    wanted = torch.tensor(entry["value"], dtype=torch.float64)
    scale = max(wanted.abs().max().item(), entry["std"])
    assert (flat[entry["index"]] - wanted).abs().max() < tolerance * scale
    assert flat.mean().item() == pytest.approx(entry["mean"], abs=tolerance * entry["std"])
    assert flat.std().item() == pytest.approx(entry["std"], rel=tolerance)


@pytest.fixture(scope="module")
def network() -> DeepLabV3Plus:
    network = DeepLabV3Plus(19).eval()
    formula_weights(network)
    return network


def test_it_has_the_original_number_of_parameters_and_key_names() -> None:
    network = DeepLabV3Plus(19)
    assert sum(p.numel() for p in network.parameters()) == 1_992_599
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == GOLDEN["keys"]


@pytest.mark.parametrize("size", ["512,512", "256,320"])
@torch.inference_mode()
def test_every_stage_of_the_network_gives_the_original_numbers(network: DeepLabV3Plus, size: str) -> None:
    image, entries = formula_image(1, 3, *map(int, size.split(","))), GOLDEN[size]
    low, high = network.backbone(image)
    head = network.classifier
    assert_golden(network.backbone.low_level_features[0](image), entries["stem"])
    assert_golden(low, entries["low level features"])
    assert_golden(high, entries["high level features"])
    assert_golden(head.project(low), entries["low level projection"])
    assert_golden(head.aspp(high), entries["ASPP output"])
    assert_golden(head(low, high), entries["logits before the last upsampling"])
    assert_golden(network(image), entries["logits"])


@torch.inference_mode()
def test_odd_sizes_give_the_original_numbers_too(network: DeepLabV3Plus) -> None:
    assert_golden(network(formula_image(2, 3, 65, 97)), GOLDEN["65,97"]["logits"])


@torch.inference_mode()
def test_folding_keeps_the_logits() -> None:
    from data.labels import CELEBAMASK

    parser = DeepLab(DeepLabConfig(64), CELEBAMASK)
    formula_weights(parser.network)
    parser.eval()
    image = formula_image(2, 3, 64, 64)
    before = parser.network(image)
    parser.fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in parser.network.modules())
    torch.testing.assert_close(parser.network(image), before, rtol=1e-4, atol=1e-4 * before.abs().max().item())
    assert STAGES[-1][1] == 162
