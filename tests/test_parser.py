"""What every parser keeps to, and a tiny one of 19 labels, written as one of your own would be."""

import copy
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.batch import Batch, framed_batch, photo_batch
from data.labels import CELEBAMASK
from faces.align import whole_photo
from geometry import paste
from models.deeplab import DeepLab, DeepLabConfig
from models.ensemble import EnsembleParser
from models.fused import FusedParser
from models.loading import cast_weights, load_for_inference, load_parser
from models.parser import FaceParser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from models.whole import WholeConfig, WholeParser
from tests import tiny_parser
from tests.fixtures import batch_of, draw_faces, lively, save_parser, write_challenge
from tests.test_resume import log_of
from tests.tiny_parser import TinyConfig, TinyParser
from utils import checkpoint
from utils.errors import InputError

NARROW = {"coarse_channels": (4,) * 4, "part_channels": (4,) * 4, "crop_size": 17}
PARSERS: dict[str, Callable[[], FaceParser]] = {
    "stn_icnn": lambda: STNiCNN(STNiCNNConfig(coarse_size=32, window_margin=1.6, paste="bilinear", **NARROW)),
    "stn_icnn above 128": lambda: STNiCNN(STNiCNNConfig(coarse_size=144, **NARROW)),
    "tiny": lambda: TinyParser(TinyConfig(), CELEBAMASK),
    "whole": lambda: WholeParser(WholeConfig(size=160, width=0.25, frame_scale=2.0, arch="unet"), CELEBAMASK),
    "deeplab": lambda: DeepLab(DeepLabConfig(160), CELEBAMASK),
}
PARSERS["ensemble"] = lambda: EnsembleParser([PARSERS["whole"](), PARSERS["deeplab"]()])
PARSERS["fused"] = lambda: FusedParser(PARSERS["tiny"](), PARSERS["stn_icnn"]())
SIZES = ((120, 90), (80, 140), (300, 280))


@pytest.fixture(scope="module", params=PARSERS)
def parser(request: pytest.FixtureRequest) -> FaceParser:
    torch.manual_seed(0)
    return lively(PARSERS[request.param]())


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Of several sizes, six by six blocks of colour each."""
    rng = np.random.default_rng(0)
    blocks_N663 = rng.integers(0, 256, (len(SIZES), 6, 6, 3), dtype=np.uint8)
    nearest = cv2.INTER_NEAREST
    return [cv2.resize(block, size[::-1], None, 0, 0, nearest) for block, size in zip(blocks_N663, SIZES, strict=True)]


@pytest.fixture(scope="module")
def batch(parser: FaceParser, photos: list[np.ndarray]) -> Batch:
    return batch_of([(photo, np.zeros(photo.shape[:2], np.uint8)) for photo in photos], parser.labels)


@torch.inference_mode()
def test_photos_are_labelled_on_their_own_grids_whatever_batch_they_are_in(parser, batch, photos):
    labels_BHW = parser.parse(batch).labels_BHW
    assert labels_BHW.dtype == torch.uint8
    assert labels_BHW.shape == batch.photos_BHW3.shape[:3]
    maps = parser.label_photos(photos)
    for labels_HW, photo, one_HW in zip(labels_BHW, photos, maps, strict=True):
        own_HW = labels_HW[: photo.shape[0], : photo.shape[1]]
        alone_HW = parser.parse(photo_batch([photo], parser.labels)).labels_BHW[0]
        assert np.array_equal(one_HW, alone_HW.numpy())
        assert alone_HW.shape == own_HW.shape
        assert (own_HW == alone_HW).float().mean() > 0.998
    seen = labels_BHW.unique()
    assert len(seen) > 3
    assert seen.max() < len(parser.labels)
    assert [(labels.shape, labels.dtype) for labels in maps] == [(size, np.uint8) for size in SIZES]
    assert parser.label_photos([]) == []


@torch.inference_mode()
def test_the_network_that_is_exported_labels_as_the_parser_does(parser, photos):
    for photo in photos:
        canvas_BKHW = parser(torch.from_numpy(np.stack([photo, photo[:, ::-1]])))
        assert canvas_BKHW.shape == (2, len(parser.labels), *photo.shape[:2])
        labels_HW = parser.parse(photo_batch([photo], parser.labels)).labels_BHW[0]
        assert (canvas_BKHW[0].argmax(0) == labels_HW).float().mean() > 0.99


@torch.inference_mode()
def test_photos_are_bytes_or_floats_up_to_one_for_every_network(parser, photos):
    bytes_1HW3 = torch.from_numpy(photos[0][None].copy())
    frames_F23 = torch.tensor([[[40.0, -9, 50], [9, 40, 50]]])
    for run in (parser, partial(parser.forward_framed, frames_F23=frames_F23)):
        equal = run(bytes_1HW3 / 255).argmax(1) == run(bytes_1HW3).argmax(1)
        assert equal.float().mean() > 0.999
        for wrong, words in ((bytes_1HW3.float(), "outside 0-1"), (bytes_1HW3.int(), "uint8, or floats in 0-1")):
            with pytest.raises(InputError, match=words):
                run(wrong)
    upside, labels = photos[0][::-1], parser.label_photos([photos[0][::-1].copy()])[0]
    for photo in (upside, upside / 255, Image.fromarray(upside)):
        assert np.array_equal(parser.label_photos([photo])[0], labels)
    with pytest.raises(InputError, match=r"photos\[1\] must be a path"):
        parser.label_photos([photos[0], photos[0][..., 0]])


@pytest.mark.parametrize("parser", ["stn_icnn", "tiny", "fused"], indirect=True)
@torch.inference_mode()
def test_a_gpu_s_ways_to_paste_give_the_same_labels(parser, photos, monkeypatch):
    frames = [whole_photo(*photos[0].shape[:2]).matrix_23, np.array([[40.0, -9, 50], [9, 40, 50]])]
    framed, batch = framed_batch([photos[0]], [frames], parser.labels), photo_batch(photos[:1] * 3, parser.labels)
    patches, labels_BHW = list(parser.patches(framed)), parser.parse(batch).labels_BHW
    monkeypatch.setattr(paste, "pixels_are_cheap", lambda device: True)
    monkeypatch.setattr(paste, "CANVAS_PIXELS", 30_000)
    for (patch, _), (other, _) in zip(patches, parser.patches(framed), strict=True):
        assert torch.equal(patch.labels_YX, other.labels_YX)
        torch.testing.assert_close(patch.confidence_YX, other.confidence_YX)
    assert torch.equal(parser.parse(batch).labels_BHW, labels_BHW)


@pytest.mark.parametrize("parser", ["stn_icnn", "tiny", "fused"], indirect=True)
@torch.inference_mode()
def test_weights_that_are_cast_once_label_as_under_autocast(parser, batch):
    cast = copy.deepcopy(parser)
    cast_weights(cast)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast.probabilities(batch)[0], parser.probabilities(batch)[0])


@torch.inference_mode()
def test_probabilities_sum_to_one_and_agree_with_the_labels(parser, batch):
    canvas_BKHW, theta_BP23 = parser.probabilities(batch)
    parsed = parser.parse(batch)
    assert torch.equal(canvas_BKHW.argmax(1).byte(), parsed.labels_BHW)
    assert canvas_BKHW.min() >= 0
    for b, (height, width) in enumerate(SIZES):
        total_HW = canvas_BKHW[b, :, :height, :width].sum(0)
        assert total_HW.min() > 1 - 1e-4
        assert (total_HW < 1 + 1e-4).float().mean() > (0.1 if parser.kind == "stn_icnn" else 0.999)  # windows overlap
    if theta_BP23 is not None:
        assert torch.equal(parsed.theta_BP23, theta_BP23)
        assert theta_BP23.shape == (3, 6, 2, 3)


@pytest.mark.parametrize("parser", sorted(PARSERS.keys() - {"ensemble", "fused"}), indirect=True)  # of two checkpoints
def test_a_parser_comes_back_from_its_checkpoint_as_it_was(parser, photos, tmp_path):
    path = save_parser(tmp_path / "parser.pt", parser)
    again = load_parser([path])
    assert (type(again), again.config, again.labels) == (type(parser), parser.config, parser.labels)
    assert not again.training
    held = again.state_dict()
    assert all(torch.equal(held[key], value) for key, value in parser.state_dict().items())
    ready = load_for_inference([path], torch.device("cpu"))
    folded = [module for name in ready.folded for module in getattr(ready, name).modules()]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded)
    for fast, slow in zip(ready.label_photos(photos), parser.label_photos(photos), strict=True):
        assert (fast == slow).mean() > 0.99


def test_a_parser_of_your_own_is_trained_and_its_checkpoint_says_what_it_is(tmp_path):
    write_challenge(tmp_path / "faces", draw_faces(train=4, val=2, test=1))
    data = f"--dataset celebamask --data {tmp_path}/faces --cache {tmp_path}/cache --device cpu --workers 0 --amp off"
    assert tiny_parser.main(f"{data} --run-dir {tmp_path}/run".split()) == 0
    state = checkpoint.load(tmp_path / "run" / "best.pt", ("tiny",))
    assert (state["parser"], state["labels"], state["config"]) == ("tiny", "celebamask", {"size": 32, "channels": 12})
    assert state["modules"].keys() == {"network"}
    rows = log_of(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[2]["loss"] < rows[0]["loss"]
    assert all(row["f1"] == row["strict"] for row in rows)  # the paper has no table of these labels
