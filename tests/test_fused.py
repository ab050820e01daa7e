"""Two parsers as one: STN-iCNN's parts drawn into the map of the whole face."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

import evaluate
import predict
from data.batch import framed_batch
from data.images import read_labels
from data.labels import CELEBAMASK, HELEN, NINE, LabelSet
from faces import load
from models import loading
from models.deeplab import DeepLab, DeepLabConfig
from models.fused import FusedParser
from models.loading import SHIPPED_WEIGHTS, load_parser
from tests.fixtures import draw_faces, save_parser, save_photo, write_challenge
from utils.errors import InputError


def deeplab(labels: LabelSet = CELEBAMASK) -> DeepLab:
    """A random one, whose labels depend on the photo."""
    torch.manual_seed(0)
    parser = DeepLab(DeepLabConfig(64), labels)
    with torch.no_grad():
        parser.network.classifier.classifier[-1].weight *= 20
    return parser.eval()


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return skimage.data.astronaut()  # Eileen Collins, NASA, public domain


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights in place of those of the whole face that ship."""
    path = tmp_path / "whole.pt"
    save_parser(path, deeplab(), "deeplab")
    monkeypatch.setattr(loading, "SHIPPED_WHOLE", path)
    return path


def test_the_background_of_the_parts_is_divided_as_the_whole_face_says():
    fused = FusedParser(deeplab(), load_parser([SHIPPED_WEIGHTS]))
    named = [(CELEBAMASK.names[one], NINE.names[two]) for one, two in fused.drawn]
    assert {two for _, two in named} == set(NINE.foreground)
    assert ("nose", "nose") in named
    assert ("mouth", "inner_mouth") in named
    whole, parts = torch.zeros(19, 2), torch.zeros(9, 2)
    skin, hair, nose = (CELEBAMASK.names.index(name) for name in ("skin", "hair", "nose"))
    whole[[skin, hair, nose], 0] = Tensor([0.3, 0.1, 0.6])
    parts[[0, NINE.names.index("nose")], 0] = Tensor([0.8, 0.2])
    whole[nose, 1] = 1  # of the rest the whole face says nothing
    parts[[0, NINE.names.index("nose")], 1] = Tensor([0.5, 1.5])  # where windows overlap
    result = fused.fuse(whole, parts)
    assert result[[skin, hair, nose], 0].tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert result[nose, 1].item() == pytest.approx(0.75)
    assert result[:, 0].sum().item() == pytest.approx(1)


@torch.inference_mode()
def test_a_framed_face_is_labelled_as_the_photo_that_it_fills(astronaut):
    fused = FusedParser(deeplab(), load_parser([SHIPPED_WEIGHTS])).eval()
    photo = np.ascontiguousarray(astronaut[:256, 64:320])
    whole = np.array([[1.0, 0, 0], [0, 1, 0]])  # the frame of the photo's own edges
    batch = framed_batch([photo], [[whole * 1.0]], CELEBAMASK)
    ((patch, _),) = fused.patches(batch, keep_probs=True)
    assert patch.probs_KYX is not None
    assert patch.probs_KYX.sum(0).sub(1).abs().max() < 1e-4
    assert torch.equal(patch.probs_KYX.argmax(0).byte(), patch.labels_YX)
    (parts, _), *_ = fused.parts.patches(batch, keep_probs=True)
    sure = parts.confidence_YX > 0.75
    ids = dict((two, one) for one, two in fused.drawn)
    height, width = parts.labels_YX.shape
    found = patch.labels_YX[parts.top - patch.top :, parts.left - patch.left :][:height, :width]
    for label in range(1, len(NINE)):
        here = sure[: found.shape[0], : found.shape[1]] & (parts.labels_YX[: found.shape[0], : found.shape[1]] == label)
        assert (found[here] == ids[label]).all()


def test_predict_draws_the_parts_into_all_labels(tmp_path, shipped, astronaut):
    save_photo(tmp_path / "photo.png", astronaut)
    options = ["--device", "cpu", "--amp", "off", str(tmp_path / "photo.png")]
    assert predict.main([*options, "--out", str(tmp_path / "nine")]) == 0
    assert predict.main([*options, "--out", str(tmp_path / "all"), "--labels", "celebamask"]) == 0
    nine, fused = (read_labels(tmp_path / folder / "photo.png") for folder in ("nine", "all"))
    whole_ids, nine_ids = CELEBAMASK.names, NINE.names
    for shared, own in (("nose", "nose"), ("inner_mouth", "mouth"), ("upper_lip", "u_lip"), ("lower_lip", "l_lip")):
        one, other = nine == nine_ids.index(shared), fused == whole_ids.index(own)
        assert (one & other).sum() > 0.9 * one.sum(), own
        assert (one & other).sum() > 0.6 * other.sum(), own
    assert set(np.unique(fused)) - {0, *(whole_ids.index(own) for own in ("nose", "mouth", "u_lip", "l_lip"))}
    faces = json.loads((tmp_path / "all" / "photo_faces.json").read_text())
    assert faces["labels"] == "celebamask"
    assert "nose" in faces["faces"][0]["parts"]


def test_evaluate_takes_both_checkpoints(tmp_path, shipped):
    write_challenge(tmp_path / "faces", draw_faces(train=1, val=2, test=1, size=64))
    data = ["--dataset", "celebamask", "--data", str(tmp_path / "faces"), "--split", "val", "--device", "cpu"]
    options = [*data, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert evaluate.main([*options, "--checkpoint", str(SHIPPED_WEIGHTS), str(shipped)]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["labels"] == "celebamask"
    assert scores["f1"]["nose"] > 0.5  # drawn faces, but faces
    assert len(scores["confusion"]) == 19


def test_labels_that_a_checkpoint_does_not_have_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="labels nine; give a checkpoint of helen"):
        load_parser([SHIPPED_WEIGHTS], labels="helen")
    save_parser(tmp_path / "lapa.pt", deeplab(HELEN), "deeplab")
    with pytest.raises(InputError, match="labels helen; give a checkpoint of celebamask"):
        load_parser([tmp_path / "lapa.pt"], labels="celebamask")
    monkeypatch.setattr(loading, "SHIPPED_WHOLE", tmp_path / "none.pt")
    with pytest.raises(InputError, match="no weights of the whole face"):
        load_parser([SHIPPED_WEIGHTS], labels="celebamask")
    assert load_parser([SHIPPED_WEIGHTS], labels="nine").labels is NINE


def test_all_labels_with_mirroring_average_the_parts(shipped, astronaut):
    plain, mirrored = (load(device="cpu", labels="celebamask", mirror=mirror)(astronaut) for mirror in (False, True))
    parts = load(device="cpu", mirror=True)(astronaut)
    nose, nine = CELEBAMASK.names.index("nose"), NINE.names.index("nose")
    assert 0 < (plain.labels_HW != mirrored.labels_HW).sum() < 0.05 * (parts.labels_HW > 0).sum()
    seen = (mirrored.labels_HW == nose) & (parts.labels_HW == nine)
    assert seen.sum() > 0.9 * (parts.labels_HW == nine).sum()
