"""Networks of segmentation_models_pytorch: ImageNet's weights, training, wide frames, what goes on around a photo;
STN-iCNN's parts drawn into the map of a whole-face network."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from torch import Tensor
from torchvision.transforms.functional import center_crop

import evaluate
import predict
from data.batch import FRAME_SIDE, framed_batch
from data.images import read_labels
from data.labels import CELEBAMASK, HELEN, NINE, LabelSet
from data.loaders import Faces, open_faces
from data.source import FaceData
from data.view import Augmentation, View
from faces import load
from models import loading
from models.deeplab import DeepLab, DeepLabConfig
from models.ensemble import EnsembleParser, merged
from models.fused import FusedParser
from models.loading import SHIPPED_WEIGHTS, SHIPPED_WHOLE, load_parser
from models.parser import one_window
from models.whole import WholeConfig, WholeParser, imagenet_start, normalisation, packaged
from tests import tiny_parser
from tests.fixtures import batch_of, draw_faces, lively, save_parser, save_photo, write_challenge, write_list
from training.losses import segmentation_loss
from training.task import Plan
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import Machine


def state_of_the_package() -> dict[str, torch.Tensor]:
    path = packaged("tu-tf_efficientnet_lite0")
    assert path is not None
    return checkpoint.read_tensors(Path(path))


@torch.inference_mode()
def test_the_package_s_weights_name_what_pictures_show() -> None:
    network = timm.create_model("tf_efficientnet_lite0").eval()
    imagenet_start(network, state_of_the_package())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation("tu-tf_efficientnet_lite0").values())
    for photo, words in (("chelsea", "Egyptian cat"), ("coffee", "espresso"), ("rocket", "missile")):
        image_3HW = torch.from_numpy(getattr(skimage.data, photo)()).permute(2, 0, 1) / 255
        square_13SS = center_crop(image_3HW, min(image_3HW.shape[1:]))[None]
        image_13SS = F.interpolate(square_13SS, (224, 224), mode="bilinear", antialias=True)
        best = int(network((image_13SS - mean) / std)[0].argmax())
        assert ImageNetInfo().index_to_description(best).startswith(words)


def test_only_weights_of_the_same_layers_fit() -> None:
    parser = WholeParser(WholeConfig(size=64), HELEN)
    state = state_of_the_package()
    imagenet_start(parser.encoder, state)
    assert torch.equal(parser.encoder.model.blocks[0][0].conv_dw.weight, state["_blocks.0._depthwise_conv.weight"])
    with pytest.raises(InputError, match="of another encoder"):
        imagenet_start(WholeParser(WholeConfig(size=64, encoder="resnet18"), HELEN).encoder, state)
    with pytest.raises(InputError, match="it has 2 tensors"):
        imagenet_start(parser.encoder, dict(list(state.items())[:2]))


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(InputError, match=r"pip install -r requirements\.txt"):
        WholeParser(WholeConfig(), HELEN)


@torch.inference_mode()
def test_a_wide_frame_is_a_larger_frame_with_as_many_more_pixels() -> None:
    torch.manual_seed(0)
    narrow = lively(WholeParser(WholeConfig(size=192, width=0.25), CELEBAMASK))
    wide = WholeParser(replace(narrow.config, size=96, frame_scale=2.0), CELEBAMASK).eval()
    wide.load_state_dict(narrow.state_dict())
    blocks = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    photo = blocks.repeat(160, 0).repeat(160, 1)
    frame_23 = np.array([[160.0, -36, 440], [36, 160, 360]])
    double_23 = np.concatenate([2 * frame_23[:, :2], frame_23[:, 2:]], 1)
    ((ours, _),) = wide.patches(framed_batch([photo], [[frame_23]], CELEBAMASK))
    ((theirs, _),) = narrow.patches(framed_batch([photo], [[double_23]], CELEBAMASK))
    assert ours.labels_YX.shape == theirs.labels_YX.shape
    assert (ours.labels_YX == theirs.labels_YX).float().mean() > 0.99
    canvas_1KHW = wide.forward_framed(torch.from_numpy(photo)[None], torch.from_numpy(frame_23[None]).float())
    rows, columns = (slice(start, start + n) for start, n in zip(ours[:2], ours.labels_YX.shape, strict=True))
    same = (canvas_1KHW[0, :, rows, columns].argmax(0) == ours.labels_YX).float().mean()
    assert same > 0.9  # of a random network, and of other samples


def test_photos_go_on_around_with_hair_but_without_faces() -> None:
    hair, nose = CELEBAMASK.names.index("hair"), CELEBAMASK.names.index("nose")
    labels_HW = np.full((64, 64), nose, np.uint8)
    labels_HW[:, 40:] = hair
    photo_HW3 = np.repeat(labels_HW[..., None] * 10, 3, 2)
    augmentation = Augmentation(scale=(0.5, 0.5), around=1.0)
    view = augmentation.view(batch_of([(photo_HW3, labels_HW)], CELEBAMASK))
    row_S = view.label_map(64)[0, 32].tolist()  # the photo is 16 to 48, mirrored around: nose to 36, hair to 60
    assert row_S == [0] * 16 + [nose] * 20 + [hair] * 24 + [0] * 4
    assert (view.photo(64)[0, 0, 32] * 25.5).round().tolist()[52:] == [hair] * 8 + [nose] * 4
    black = replace(augmentation, around=0.0).view(batch_of([(photo_HW3, labels_HW)], CELEBAMASK))
    assert black.label_map(64)[0, 32].tolist() == [0] * 16 + [nose] * 20 + [hair] * 12 + [0] * 16


def helen(root: Path, *label_maps: np.ndarray) -> FaceData:
    """Grey photos with these label maps, to train on."""
    photos = [np.full((*labels_HW.shape, 3), 128, np.uint8) for labels_HW in label_maps]
    train = [(f"face{k}", *face) for k, face in enumerate(zip(photos, label_maps, strict=True))]
    write_list(root, {"train": train, "val": draw_faces()["val"]})
    return FaceData("list", root, cache=root / "cache", label_set=HELEN)


def open_helen(root: Path, *label_maps: np.ndarray) -> Faces:
    return open_faces(helen(root, *label_maps), "train", HELEN)


def test_faces_with_rare_labels_are_sampled_more_often(tmp_path) -> None:
    with_hair = np.arange(len(HELEN), dtype=np.uint8).repeat(10).reshape(10, 11)
    faces = open_helen(tmp_path, with_hair, *[with_hair % 10] * 7)  # one of eight: four times rarer than half
    assert faces.balance(0.5).tolist() == pytest.approx([2 / 9] + [1 / 9] * 7)


def test_class_weights_raise_the_loss_of_rare_labels(tmp_path) -> None:
    labels_HW = np.zeros((10, 10), np.uint8)
    labels_HW[0, 0], labels_HW[9, :2] = 1, (1, 2)
    faces = open_helen(tmp_path, labels_HW[:6], labels_HW[6:])
    class_weights_K = faces.class_weights(0.04)
    assert class_weights_K.tolist() == pytest.approx([1, 2, 4] + [1] * 8)
    logits_BKHW, targets_BHW = torch.randn(2, 11, 3, 3), torch.randint(0, 3, (2, 3, 3))
    each_BHW = F.cross_entropy(logits_BKHW, targets_BHW, reduction="none") * torch.tensor([1.0, 2, 4])[targets_BHW]
    assert segmentation_loss(logits_BKHW, targets_BHW, 0, torch.from_numpy(class_weights_K)).allclose(each_BHW.mean())


def test_a_recipe_s_shares_decide_about_the_order_and_the_loss(tmp_path) -> None:
    common = np.full((32, 32), 1, np.uint8)
    rare = common.copy()
    rare[:4, :4] = 2
    data = helen(tmp_path, common, common, rare, common)
    recipe = replace(tiny_parser.RECIPE, augmentation=Augmentation(), balance=0.5, least_share=0.2)
    task = tiny_parser.build(Plan(data, recipe, Machine(torch.device("cpu")), tmp_path / "run")).eval()
    assert task.often_N.tolist() == task.train_faces.balance(0.5).tolist()
    batch = task.train_faces.first(4)
    view = View(batch)
    weights_K = torch.from_numpy(task.train_faces.class_weights(0.2))
    assert weights_K.max() > 10
    logits_BKGG, targets_BGG = task.model.logits(view.photo(32)), view.label_map(16)  # the tiny network halves
    assert task(batch)["segmentation"].allclose(segmentation_loss(logits_BKGG, targets_BGG, 0, weights_K))


def deeplab(labels: LabelSet = CELEBAMASK) -> DeepLab:
    """A random one, whose labels depend on the photo."""
    torch.manual_seed(0)
    return lively(DeepLab(DeepLabConfig(64), labels))


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights in place of those of the whole face that ship."""
    path = tmp_path / "whole.pt"
    save_parser(path, deeplab(), "deeplab")
    monkeypatch.setattr(loading, "SHIPPED_WHOLE", path)
    return path


def test_what_the_parts_leave_is_divided_as_the_whole_face_says():
    fused = FusedParser(deeplab(), load_parser([SHIPPED_WEIGHTS]))
    named = [(CELEBAMASK.names[one], NINE.names[two]) for one, two in fused.shared]
    assert {two for _, two in named} == set(NINE.foreground)
    assert ("nose", "nose") in named
    assert ("mouth", "inner_mouth") in named
    whole, parts = torch.zeros(19, 2), torch.zeros(9, 2)
    skin, hair, nose = (CELEBAMASK.names.index(name) for name in ("skin", "hair", "nose"))
    whole[[skin, hair, nose], 0] = Tensor([0.3, 0.1, 0.6])
    parts[[0, NINE.names.index("nose")], 0] = Tensor([0.8, 0.2])
    whole[nose, 1] = 1  # of the rest the whole face says nothing
    parts[[0, NINE.names.index("nose")], 1] = Tensor([0.5, 1.5])  # where windows overlap
    result = fused.fuse(whole[..., None], parts[..., None])[..., 0]
    # nose: 0.75 of 0.2 and 0.25 of 0.6
    assert result[[skin, hair, nose], 0].tolist() == pytest.approx([0.525, 0.175, 0.3])
    assert result[[0, nose], 1].tolist() == pytest.approx([0.1875, 0.8125])
    assert result.sum(0).tolist() == pytest.approx([1, 1])


def test_parsers_of_the_whole_face_are_averaged_where_they_look():
    wide, narrow = (
        one_window(torch.tensor(logits).view(1, 2, 1, 1).expand(1, 2, side, side), scale)
        for logits, side, scale in (([0.0, -999], 6, 2.0), ([-999.0, 0], 4, 1.0))
    )
    (probs_12SS,), theta_1123 = merged([narrow, wide], [1.0, 2.0])
    assert theta_1123[0, 0, 0, 0].item() == pytest.approx(2 * (1 - 1 / 8) / (1 - 1 / FRAME_SIDE))
    assert probs_12SS[0, 1].tolist() == [[0.5 * (2 < x < 5 and 2 < y < 5) for x in range(8)] for y in range(8)]


def test_predict_draws_the_parts_into_all_labels(tmp_path):
    save_photo(tmp_path / "photo.png", skimage.data.astronaut())  # Eileen Collins, NASA, public domain
    for out in ("nine", "all --labels celebamask"):
        assert predict.main(f"{tmp_path}/photo.png --device cpu --amp off --out {tmp_path}/{out}".split()) == 0
    nine, fused = (read_labels(tmp_path / folder / "photo.png") for folder in ("nine", "all"))
    whole_ids, nine_ids = CELEBAMASK.names, NINE.names
    for shared, own in (("nose", "nose"), ("inner_mouth", "mouth"), ("upper_lip", "u_lip"), ("lower_lip", "l_lip")):
        one, other = nine == nine_ids.index(shared), fused == whole_ids.index(own)
        assert (one & other).sum() > 0.9 * one.sum(), own
        assert (one & other).sum() > 0.6 * other.sum(), own
    places = {name: np.argwhere(fused == k).mean(0) for k, name in enumerate(whole_ids) if (fused == k).any()}
    assert places["hair"][0] < places["nose"][0] < places["neck"][0]
    assert places["r_eye"][1] < places["l_eye"][1]  # the subject's right is the image's left
    faces = json.loads((tmp_path / "all" / "photo_faces.json").read_text())
    assert faces["labels"] == "celebamask"
    assert {"hair", "skin", "neck", "nose", "l_eye", "r_eye", "u_lip", "l_lip"} <= faces["faces"][0]["parts"].keys()
    assert SHIPPED_WEIGHTS.stat().st_size + SHIPPED_WHOLE.stat().st_size < 28e6


def test_evaluate_takes_all_checkpoints(tmp_path, shipped):
    write_challenge(tmp_path / "faces", draw_faces(train=1, val=2, test=1, size=64))
    data = f"--dataset celebamask --data {tmp_path}/faces --split val --device cpu --cache {tmp_path}/cache"
    weights = f"--checkpoint {SHIPPED_WEIGHTS} {shipped} {SHIPPED_WHOLE}"
    assert evaluate.main(f"{data} --out {tmp_path}/out {weights}".split()) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["labels"] == "celebamask"
    assert scores["f1"]["nose"] > 0.5  # drawn faces, but faces
    assert len(scores["confusion"]) == 19


def test_without_weights_of_the_whole_face_no_more_labels_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SHIPPED_WHOLE", tmp_path / "none.pt")
    with pytest.raises(InputError, match="no whole-face weights"):
        load_parser([SHIPPED_WEIGHTS], labels="celebamask")
    assert load_parser([SHIPPED_WEIGHTS], labels="nine").labels is NINE


def test_with_mirroring_a_mirrored_photo_gets_the_mirrored_labels():
    for parser in (deeplab().mirrored(), EnsembleParser([deeplab(), deeplab()]).mirrored()):
        photos = torch.randint(256, (1, 96, 80, 3), dtype=torch.uint8)
        mirrored = parser(photos).flip(-1)[:, list(CELEBAMASK.mirror)]
        torch.testing.assert_close(parser(photos.flip(2)), mirrored, rtol=1e-4, atol=1e-5)


def test_all_labels_with_mirroring_average_both_parsers(shipped):
    astronaut = skimage.data.astronaut()
    plain, mirrored = (load(device="cpu", labels="celebamask", mirror=mirror)(astronaut) for mirror in (False, True))
    parts = load(device="cpu", mirror=True)(astronaut)
    nose, nine = CELEBAMASK.names.index("nose"), NINE.names.index("nose")
    assert ((plain.labels_HW != mirrored.labels_HW) & (parts.labels_HW == 0)).sum() > 1000
    seen = (mirrored.labels_HW == nose) & (parts.labels_HW == nine)
    assert seen.sum() > 0.9 * (parts.labels_HW == nine).sum()
