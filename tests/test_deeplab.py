"""DeepLabV3+: numbers of the original network under formula-made weights, its losses, schedule, metrics and files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evaluate
from data.labels import CELEBAMASK
from models.deeplab import DeepLab, DeepLabV3Plus
from models.loading import load_parser
from scoring.metrics import challenge_files, challenge_scores, confusion_matrix
from tests.damage import refuses
from tests.formula import assert_golden, formula_image, formula_state, indices
from tests.test_evaluate import write_folders
from train_deeplab import seed_loss
from training.engine import learning_rate_factor

GOLDEN = json.loads((Path(__file__).parent / "golden_side.json").read_text())["deeplab"]
LOSSES = "combined loss at epoch 0, at epoch 21"


def formula_weights(network: torch.nn.Module) -> None:
    """Fill a network as the golden file says."""
    network.load_state_dict(formula_state({key: value.shape for key, value in network.state_dict().items()}))


def labels19(*shape: int) -> Tensor:
    b, y, x = (index.long() for index in indices(*shape))
    return (x // 3 + 2 * (y // 2) + b) % (17 - 12 * b)


@torch.inference_mode()
def test_a_network_of_the_original_s_weights_gives_its_numbers():
    network = DeepLabV3Plus(19).eval()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == GOLDEN["keys"]
    formula_weights(network)
    for size, batch in (("256,320", 1), ("65,97", 2)):
        assert_golden(network(formula_image(batch, 3, *map(int, size.split(",")))), GOLDEN[size]["logits"])


def test_the_learning_rate_restarts_when_the_original_one_does():
    later = zip((69, 70, 149, 150, 309, 310, 399), GOLDEN["lr later"], strict=True)
    for epoch, wanted in [*enumerate(GOLDEN["lr 0..39"]), *later]:
        assert 1.5e-6 * learning_rate_factor("restarts", epoch, 400) == pytest.approx(wanted, rel=1e-6)


def test_a_training_step_is_that_of_the_original(monkeypatch):
    network, golden, image = DeepLabV3Plus(19), GOLDEN["step"], formula_image(2, 3, 97, 129).double()
    formula_weights(network)
    network.double().train()
    next(module for module in network.modules() if isinstance(module, nn.Dropout)).p = 0.0
    logits = network(image)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)  # the losses compute in float32 otherwise
    targets = labels19(2, 97, 129)
    assert_golden(logits.detach(), golden["logits"])
    losses, (first, later) = {k: seed_loss(logits, targets, k) for k in (0, 20, 21)}, golden[LOSSES]
    assert {k: loss.item() for k, loss in losses.items()} == pytest.approx({0: first, 20: first, 21: later}, rel=1e-5)
    losses[21].backward()
    parameters = dict(network.named_parameters())
    for name, norm in golden["L2 norms of gradients of the loss at epoch 21"].items():
        assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=1e-6)
    buffers = dict(network.named_buffers())
    for name in (name for name in golden if name.endswith(" after the step")):
        assert_golden(buffers[name.removesuffix(" after the step")], golden[name])


def test_a_checkpoint_under_the_original_names_is_the_same_parser(tmp_path):
    state, path = DeepLabV3Plus(19).state_dict(), tmp_path / "Deeplab_checkpoint_epoch_400.pt"
    prefixed = {f"module.{key}": value for key, value in state.items()}
    for saved in (state, prefixed, {"model_state_dict": state, "epoch": 400}):
        torch.save(saved, path)
        parser = load_parser([path])
        assert isinstance(parser, DeepLab)
        assert (parser.labels, parser.config.size) == (CELEBAMASK, 512)
        assert all(torch.equal(value, state[key]) for key, value in parser.network.state_dict().items())
    eleven = {key: value[:11] if value.shape[:1] == (19,) else value for key, value in state.items()}
    torch.save(eleven, path)
    with refuses("another class count"):
        load_parser([path])


def two_maps() -> tuple[np.ndarray, np.ndarray]:
    """The golden file's two maps: (predicted, true), each (2, 24, 32), uint8."""
    i, y, x = np.meshgrid(np.arange(2), np.arange(24), np.arange(32), indexing="ij")
    truth, pred = (x // 4 + 2 * (y // 3) + i) % 19, ((x + 1) // 4 + 2 * ((y + 2 * i) // 3) + i) % 19
    truth[truth == 16] = 0
    pred[(pred == 16) | (pred == 15)] = 0
    return pred.astype(np.uint8), truth.astype(np.uint8)


def test_the_challenge_scores_are_those_of_the_original():
    matrix, golden = confusion_matrix(*two_maps(), 19), GOLDEN["metrics"]
    found = challenge_scores(matrix)
    for measure, title in (("iou", "IoU"), ("precision", "precision"), ("recall", "recall"), ("f1", "f1")):
        assert found[measure] == pytest.approx(golden[f"{title} of each of the 19 ids"], rel=1e-9)
    means = [np.mean(found[measure]) for measure in ("precision", "recall", "f1")]
    assert means == pytest.approx(golden["macro precision, recall, F1"], rel=1e-9)
    iou, rest = challenge_files(matrix).values()
    assert iou.splitlines()[0] == f"Class 0: IoU = {golden['IoU of each of the 19 ids'][0]:.4f}"
    assert iou.splitlines()[-2:] == ["", f"Mean IoU (mIoU, average across all classes): {golden['mIoU']:.4f}"]
    assert rest.splitlines()[-1] == f"Macro F1-score (average across all classes): {means[2]:.4f}"
    assert rest.splitlines()[1].startswith("Class 1: Precision = 0.")
    assert len(rest.splitlines()) == 19 + 1 + 3


def test_folders_in_nineteen_labels_get_means_over_what_is_there_and_the_challenge_files_too(tmp_path):
    argv = write_folders(tmp_path, *(dict(enumerate(maps)) for maps in two_maps()))
    labels = ["--ids", "celebamask", "--labels", "celebamask"]
    assert evaluate.main([*argv, *labels, "--out", str(tmp_path / "out")]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    matrix, f1 = confusion_matrix(*two_maps(), 19), scores["f1"]
    assert (scores["labels"], scores["confusion"]) == ("celebamask", matrix.tolist())
    assert (scores["images"], scores["split"], scores["checkpoint"]) == (2, None, None)
    assert f1["neck_l"] is None  # id 16, in neither map
    background = matrix[0, 0] / (matrix[0].sum() + matrix[:, 0].sum() - matrix[0, 0])
    assert scores["iou"]["background"] == pytest.approx(background)
    present = [scores["iou"][name] for name in CELEBAMASK.names if name != "neck_l"]
    assert scores["miou"] == pytest.approx(np.mean(present))
    inner = ["nose", "l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip"]
    assert scores["mean_f1_inner8"] == pytest.approx(np.mean([f1[name] for name in inner]))
    there = [f1[name] for name in CELEBAMASK.foreground if name != "neck_l"]
    assert scores["mean_f1_18"] == pytest.approx(np.mean(there))
    assert "Class 18: IoU = 0." in (tmp_path / "out" / "iou_scores.txt").read_text()
    assert "| neck" in (tmp_path / "out" / "scores.md").read_text()
