"""EAGRNet: numbers of the original network under formula-made weights, its losses, edges, schedule and files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import train_eagrnet
from data.edges import edges
from data.labels import CELEBAMASK, HELEN, LAPA
from models import eagrnet
from models.eagrnet import EAGRNet, EAGRNetConfig, EAGRNetParser, imagenet_start, released_names
from models.loading import load_parser
from tests.damage import refuses
from tests.fixtures import write_list
from tests.formula import assert_golden, formula_image, formula_state, indices, wave
from tools.edges import main as write_edges
from training.engine import learning_rate_factor
from training.losses import boundary_loss, edge_loss, segmentation_loss

GOLDEN = json.loads((Path(__file__).parent / "golden_side.json").read_text())["eagrnet"]
THIN = ((4, 1, 1, 1), (4, 1, 2, 1), (8, 1, 1, 1), (8, 1, 1, 2))  # in place of ResNet-101's layers


def formula_weights(network, damping=1.0):
    """Fill a network as the golden file says. damping: of the features, by the running variances."""
    state = formula_state(GOLDEN["keys"])
    state = {key: value * damping if key.endswith("running_var") else value for key, value in state.items()}
    network.load_state_dict({ours: state[theirs] for ours, theirs in released_names(network).items()})


def released_state(network: EAGRNet) -> dict[str, Tensor]:
    return {theirs: network.state_dict()[ours] for ours, theirs in released_names(network).items()}


def labels11(*shape: int) -> Tensor:
    b, y, x = (index.long() for index in indices(*shape))
    return ((x // 4 + 2 * (y // 4) + b) % 11).where((x + y) % 17 != 0, 255)


def formula_edges(*shape: int) -> Tensor:
    b, y, x = (index.long() for index in indices(*shape))
    return (x % (6 + 3 * b) == 0) | (y % (7 + 2 * b) == 0)


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eagrnet, "LAYERS", THIN)


@torch.inference_mode()
def test_a_network_of_the_original_s_weights_gives_its_numbers():
    network, golden = EAGRNet(11).eval(), GOLDEN["damped"]
    names, state = released_names(network), network.state_dict()
    assert {theirs: list(state[ours].shape) for ours, theirs in names.items()} == GOLDEN["keys"]
    formula_weights(network, damping=10)
    image = formula_image(1, 3, 129, 97)
    layers, logits = network.backbone(image), network(image)
    pooled = network.layer5(layers[3])
    for number, layer in enumerate(layers, 1):
        assert_golden(layer, golden[f"layer{number}"])
    assert_golden(pooled, golden["PSP output"])
    assert_golden(network.block1(pooled, logits.edges_B2HW), golden["graph module on the PSP output"])
    assert_golden(network.block2(layers[0], logits.edges_B2HW), golden["graph module on layer1"])
    assert_golden(logits.edges_B2HW, golden["edge logits"])
    assert_golden(logits.labels_BKHW, golden["seg logits"])


def test_losses_are_finite_without_any_edge():
    logits, targets = wave(2, 11, 9, 9).float().requires_grad_(), torch.zeros(2, 9, 9, dtype=torch.uint8)
    none = edges(targets)
    assert not none.any()
    losses = edge_loss(logits[:, :2], none), boundary_loss(logits, targets, none)
    assert [loss.item() for loss in losses] == [0, 0]
    sum(losses).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_training_step_is_that_of_the_original(monkeypatch):
    network, golden = EAGRNet(11), GOLDEN["step"]
    formula_weights(network)
    network.double().train()
    logits = network(formula_image(2, 3, 97, 97).double())
    assert_golden(logits.labels_BKHW.detach(), golden["seg logits"])
    assert_golden(logits.edges_B2HW.detach(), golden["edge logits"])
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)  # the losses compute in float32 otherwise
    labels, edge = (train_eagrnet.enlarge(value, 97) for value in logits)
    targets, drawn = labels11(2, 97, 97), formula_edges(2, 97, 97)
    losses = {
        "segmentation": segmentation_loss(labels, targets),
        "edge": edge_loss(edge, drawn.double() > 0),
        "boundary": boundary_loss(labels, targets, drawn),
    }
    for name, loss in losses.items():
        assert 2 * loss.item() == pytest.approx(golden[f"{name} loss as released"], rel=1e-5)
    (2 * torch.stack(list(losses.values())).sum()).backward()
    names = {theirs: ours for ours, theirs in released_names(network).items()}
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    for name, norm in golden["L2 norms of gradients"].items():
        assert parameters[names[name]].grad.norm().item() == pytest.approx(norm, rel=1e-4), name
    for name in (name for name in golden if name.endswith(" after the step")):
        assert_golden(buffers[names[name.removesuffix(" after the step")]], golden[name])


def test_edges_are_those_of_the_original_both_sides_of_a_border_and_never_the_photo_s_own():
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]])
    wanted = torch.tensor([[[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]]).bool()
    assert torch.equal(edges(labels), wanted)
    assert torch.equal(edges(labels.mT), wanted.mT)
    y, x = (index.long() for index in indices(40, 48))
    found = edges((((x * x + 3 * y * y) // 700) % 11)[None])[0]
    assert found.sum() == GOLDEN["edge pixels (value 255)"]
    assert found.sum(1).tolist() == GOLDEN["edge pixels of each row"]


def test_the_learning_rate_falls_as_the_original_one():
    steps = (0, 1, 2, 3, 4, 285, 5700, 28500, 51300, 56999)
    for step, wanted in zip(steps, GOLDEN["lr"], strict=True):
        assert 1e-3 * learning_rate_factor("polynomial", 200 * step / 57000, 200) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("classes", "labels", "prefix"), [(11, HELEN, ""), (19, CELEBAMASK, "module.")])
def test_a_checkpoint_of_the_authors_is_the_same_parser(tmp_path, thin, classes, labels, prefix):
    network = EAGRNet(classes)
    state = {prefix + name: value.clone() for name, value in released_state(network).items()}
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    state[f"{prefix}bn1.weight"] *= -1  # InPlaceABN 1.0 multiplies by it without its sign
    torch.save(state, tmp_path / "best.pth")
    parser = load_parser([tmp_path / "best.pth"])
    assert isinstance(parser, EAGRNetParser)
    assert parser.labels is labels
    assert parser.config == EAGRNetConfig(473, bgr=True)
    loaded = parser.network.state_dict()
    assert torch.equal(loaded["layer6.conv4.weight"], network.layer6.conv4.weight)
    assert torch.equal(loaded["bn1.0.bias"], network.bn1[0].bias)
    torch.testing.assert_close(loaded["bn1.0.weight"], network.bn1[0].weight.abs() + 1e-5)


def test_a_backbone_of_imagenet_starts_a_training(tmp_path, thin):
    network, other = EAGRNet(11), EAGRNet(11)
    state = released_state(other)
    backbone = {key: value for key, value in state.items() if not key.startswith(("layer5", "layer6", "edge", "block"))}
    imagenet_start(network, {**backbone, "fc.weight": torch.ones(1000, 32)})
    assert torch.equal(network.layer4[0].conv2.weight, other.layer4[0].conv2.weight)
    assert not torch.equal(network.layer6.conv4.weight, other.layer6.conv4.weight)
    for name, value in {"conv1.weight": torch.ones(64, 3, 7, 7), "bn2.bias": 1}.items():
        torch.save({**backbone, name: value}, tmp_path / "resnet.pth")
        with refuses("--imagenet", f"resnet.pth: its {name} is missing or of another shape"):
            train_eagrnet.main(["--run-dir", str(tmp_path), "--imagenet", str(tmp_path / "resnet.pth")])


def test_the_network_sees_blue_first_where_its_authors_did(thin):
    photos = formula_image(1, 3, 65, 65)
    parsers = [EAGRNetParser(EAGRNetConfig(65, bgr=bgr), LAPA).eval() for bgr in (False, True)]
    parsers[1].load_state_dict(parsers[0].state_dict())
    seen: list[Tensor] = []
    for parser in parsers:
        parser.network.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        assert parser.logits(photos).shape == (1, 11, 65, 65)
    assert isinstance(parsers[0].network.bn1[0], nn.BatchNorm2d)
    torch.testing.assert_close(seen[0][0, :, 3, 5], (photos[0, :, 3, 5] - Tensor(eagrnet.MEAN)) / Tensor(eagrnet.STD))
    flipped = photos[0, :, 3, 5].flip(0)
    torch.testing.assert_close(seen[1][0, :, 3, 5], (flipped - Tensor(eagrnet.MEAN)) / Tensor(eagrnet.STD))


def test_edge_maps_are_written_beside_images_and_labels(tmp_path, capsys):
    root, ids = tmp_path / "set", np.zeros((20, 30), np.uint8)
    ids[5:, 10:] = 1
    write_list(root, {split: [("a", np.zeros((20, 30, 3), np.uint8), ids)] for split in ("train",)})
    options = ["--dataset", "list", "--data", str(root), "--labels", "lapa", "--split", "train"]
    assert write_edges([*options, "--out", str(root / "edges")]) == 0
    assert capsys.readouterr().out == f"1 edge maps in {root / 'edges'}\n"
    picture = np.asarray(Image.open(root / "edges" / "a.png"))
    assert sorted(np.unique(picture)) == [0, 255]
    assert (picture == 255).sum() == 2 * 20 + 2 * 15 - 1
    assert picture[10, 9] == picture[10, 10] == picture[4, 20] == picture[5, 20] == 255
    assert write_edges([*options, "--out", str(root / "edges")]) == 0  # again: nothing to do
