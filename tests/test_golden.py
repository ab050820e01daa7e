"""The released networks' own numbers (golden.json), from weights made by formula under the official keys."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.labels import NINE
from geometry.paste import paste
from geometry.sampling import crop
from geometry.theta import window_theta
from models.loading import load_parser, read_weights
from models.stn_icnn.icnn import ICNN, ICNNConfig
from models.stn_icnn.localizer import ReleasedLocalizer, ResNetLocalizer
from models.stn_icnn.model import STNiCNN
from models.stn_icnn.parts import PartNets
from models.stn_icnn.released import from_released
from scoring.metrics import confusion_matrix, f1
from tests.formula import assert_golden, formula_image, formula_state
from utils.errors import InputError

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
KEYS = GOLDEN["official_state_dict_keys"]
VALUES = next(part for name, part in GOLDEN.items() if name not in ("formula", "official_state_dict_keys"))


def expected(start: str):
    return next(value for name, value in VALUES.items() if name.startswith(start))


def imported(module: nn.Module, entries: dict[str, str], name: str) -> nn.Module:
    states = {entry: formula_state(KEYS[network]) for entry, network in entries.items()}
    module.load_state_dict(from_released(states)[1][name])
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def coarse_probs() -> Tensor:
    network = imported(ICNN(ICNNConfig()), {"model1": "model1"}, "coarse")
    logits = network(formula_image(2, 3, 128, 128))
    assert_golden(logits, expected("model1: image"))
    return logits.softmax(1)


@pytest.fixture(scope="module")
def part_nets() -> nn.Module:
    return imported(PartNets(), {"model2": "model2"}, "parts")


@pytest.fixture(scope="module")
def theta() -> Tensor:
    centres = torch.tensor(expected("centres")).float()
    return window_theta(centres[None], torch.full((1, 6, 1), 81.0), torch.tensor([[1024, 1024]]))


@pytest.mark.parametrize(("kind", "build"), [("custom", ReleasedLocalizer), ("resnet18", ResNetLocalizer)])
def test_both_released_localizers_give_their_theta(coarse_probs, kind, build):
    localizer = imported(build(), {"model1": "model1", "select_net": f"select_net.{kind}"}, "localizer")
    assert_golden(localizer(coarse_probs), expected(f"select_net.{kind}"))


def test_the_four_part_networks_give_the_released_logits_of_six_parts(part_nets):
    logits = part_nets(formula_image(1, 18, 81, 81).view(1, 6, 3, 81, 81))
    for part, part_logits in enumerate(logits):
        assert_golden(
            part_logits, expected(f"model2: image(1,18,81,81) viewed as (1,6,3,81,81) -> logits of part {part}")
        )


def test_crop_paste_and_labels_on_the_canvas_are_the_released_ones(part_nets, theta):
    crops = crop(formula_image(1, 3, 1024, 1024).permute(0, 2, 3, 1), theta, 81)
    assert_golden(crops, expected("crop"))
    canvas = paste([logits.softmax(1) for logits in part_nets(crops)], theta, 1024, 1024)
    assert_golden(canvas, expected("mapback"))
    assert canvas.argmax(1).flatten().bincount(minlength=9).tolist() == expected("argmax")


def test_overall_f1_is_the_released_one():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    pred, truth = (x // 8 + (y + 2) // 8) % 9, (x // 8 + y // 8) % 9
    assert f1(confusion_matrix(pred, truth, len(NINE)), NINE.group_ids("overall")) == pytest.approx(
        expected("overall"), rel=1e-9
    )


LAYOUTS = {
    "stage1": {"model1": "model1"},
    "cropper of option 0": {"model1": "model1", "select_net": "select_net.custom"},
    "stage2": {"model2": "model2"},
    "end2end": {"model1": "model1", "select_net": "select_net.resnet18", "model2": "model2"},
}


def blank(network: str) -> dict[str, Tensor]:
    """A state dict of the official keys and shapes, whose values do not matter."""
    whole = ("num_batches_tracked",)
    return {k: torch.zeros(s, dtype=torch.long if k.endswith(whole) else torch.float) for k, s in KEYS[network].items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_published_layout_is_read_with_its_numpy_scalar(tmp_path, layout):
    path = tmp_path / "best.pth.tar"
    checkpoint = {entry: blank(network) for entry, network in LAYOUTS[layout].items()}
    extra = {"step": 7, "epoch": 25, "best_error": np.float64(0.0235), "optimizer2": {"state": {}, "param_groups": []}}
    torch.save({**checkpoint, **extra}, path)
    weights = read_weights(path)
    config, modules = weights.config, weights.modules
    assert (weights.kind, weights.labels) == ("stn_icnn", NINE)
    assert (config.frame, config.canvas, config.crop_size, config.paste) == ("canvas", 1024, 81, "nearest")
    assert config.localizer == ("released" if "0" in layout else "resnet18")
    model = STNiCNN(config)
    for name, state in modules.items():
        getattr(model, name).load_state_dict(state)


@pytest.mark.parametrize("wrapped", ["", "module."])
def test_the_layout_with_prefixes_is_the_three_networks_together(wrapped):
    apart = {entry: formula_state(KEYS[network]) for entry, network in LAYOUTS["end2end"].items()}
    prefixes = {"model1": "modelA.", "select_net": "stn_model.", "model2": "modelC."}
    joined = {f"{wrapped}{prefixes[e]}{key}": value for e, state in apart.items() for key, value in state.items()}
    (config, one), (_, three) = from_released({"model": joined}), from_released(apart)
    assert {name: list(state) for name, state in one.items()} == {name: list(state) for name, state in three.items()}
    assert all(torch.equal(one[name][key], value) for name, state in three.items() for key, value in state.items())
    assert config.localizer == "resnet18"


def test_the_old_format_and_names_under_numpy_one_are_read(tmp_path):
    path = tmp_path / "old.pth.tar"
    torch.save({"model1": blank("model1"), "best_error": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert set(read_weights(path).modules) == {"coarse"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model1"].pop("last_conv3.bias"), r"coarse weights .*lacks head\.2\.bias"),
        (lambda c: c.update(model1={"a": 3}), "model1: not a state dict"),
        (lambda c: c.update(model3={}), "not a checkpoint of the STN-iCNN authors: entries model1, model3"),
        (lambda c: c.update(model=c.pop("model1")), "model: unknown keys input_conv"),
        (lambda c: c.update(select_net={"fc.weight": torch.zeros(1)}), "select_net: neither of the two"),
    ],
)
def test_what_the_importer_does_not_know_is_refused_by_name(tmp_path, change, message):
    checkpoint = {"model1": blank("model1"), "epoch": 3}
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"^{tmp_path}/x\.pth.*{message}.*$"):
        load_parser([tmp_path / "x.pth"], "none")
