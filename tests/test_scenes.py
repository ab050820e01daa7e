"""Scenes of several faces, pictures without any, and photos with landmarks: what is composed, and what is counted."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.datasets.synthetic import draw_face
from data.labels import HELEN, NINE
from experiments import helen68, scenes
from faces.align import frame_of, square
from faces.scene import Face, Scene
from utils.errors import InputError

TO_NINE = HELEN.map_to(NINE)


def test_each_face_of_a_scene_lies_in_its_frame_with_its_labels():
    faces = [(str(k), photo, ids, TO_NINE[ids]) for k in range(4) for photo, ids in [draw_face(7, k, 256)]]
    scene = scenes.compose(np.full((90, 100, 3), 90, np.uint8), faces, np.random.default_rng(1))
    assert scene.names == ["0", "1", "2", "3"]
    assert (scene.photo_HW3[scene.owners_HW == 0] == 90).mean() > 0.95  # but for soft edges
    assert not scene.labels_HW[scene.owners_HW == 0].any()
    assert len({scenes.side_of(frame) for frame in scene.frames}) == 4
    for owner, (frame, (_, photo, ids, labels)) in enumerate(zip(scene.frames, faces, strict=True), 1):
        assert scenes.SIDES[0] <= scenes.side_of(frame) <= scenes.SIDES[1]
        assert abs(frame.degrees) <= scenes.DEGREES
        to_frame = np.array([[2 / 256, 0, -255 / 256], [0, 2 / 256, -255 / 256], [0, 0, 1]])  # pixels of the square
        how = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        upright = [
            cv2.warpAffine(values, frame.matrix_23 @ to_frame, (256, 256), flags=how)
            for values in (scene.labels_HW, scene.owners_HW, scene.photo_HW3)
        ]
        parts = labels > 0
        assert (upright[0][parts] == labels[parts]).mean() > 0.9
        assert (upright[1][parts] == owner).mean() > 0.97
        assert np.abs(upright[2][parts].astype(float) - photo[parts]).mean() < 12
        assert (upright[1][ids == 0] == owner).mean() < 0.2


def test_a_detection_can_be_made_of_any_frame():
    for degrees in (0, 40, -75, 180):
        axis_2 = 90 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        frame = square(np.array([140.0, 90.0]), axis_2)
        np.testing.assert_allclose(frame_of(scenes.detection_of(frame).points_52).matrix_23, frame.matrix_23, atol=1e-9)


def test_a_face_is_found_where_the_middle_of_a_frame_shows_it():
    owners = np.zeros((50, 60), np.uint8)
    owners[10:30, 10:30] = 2
    frames = [square(np.array(centre, float), np.array([9.0, 0.0])) for centre in ((20, 20), (40, 20), (80, -5))]
    assert scenes.shown_faces(owners, frames) == [2, 0, 0]


def test_scenes_are_scored_from_end_to_end(tiny_options, weights, val_faces, tmp_path, monkeypatch):
    made = list(scenes.scenes(val_faces, 0))
    shown = [scene.names[0] for scene in made if scenes.shown_faces(scene.owners_HW, scene.frames[:1]) == [1]]
    found = iter([scenes.detection_of(scene.frames[0])] for scene in made)  # the first face of each, then none
    monkeypatch.setattr(scenes.SceneParser, "find", lambda self, photo: next(found, []))
    assert all(scenes.picture(name).shape[2:] == (3,) for name in scenes.PICTURES)
    monkeypatch.setattr(scenes, "PICTURES", scenes.PICTURES[:2])
    assert scenes.main([*tiny_options, "--checkpoint", str(weights), "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "scenes.json").read_text())
    assert (result["scenes"], result["faces"], result["empty"]) == (2, 3, [*scenes.PICTURES])
    assert sorted([*result["missed"], *shown]) == val_faces.names
    assert (len(shown), result["false"]) == (1, 1)  # the middle of one drawn face is a hole in its labels
    assert [row["frames"] for row in result["rows"]] == list(scenes.ROWS)
    assert "2 of 2" in scenes.table(result)


def landmarks(ids: np.ndarray) -> np.ndarray:
    """68 landmarks of a drawn face: rings around its eyes, lips and inner mouth, the rest at its nose."""

    def ring(labels: list[int], count: int, grow: float) -> np.ndarray:
        y, x = np.nonzero(np.isin(ids, labels))
        angle = np.pi + 2 * np.pi * np.arange(count) / count  # from the corner on the image's left
        middle, half = np.array([x.mean(), y.mean()]), grow * np.array([np.ptp(x), np.ptp(y)]) / 2
        return middle + half * np.stack([np.cos(angle), np.sin(angle)], 1)

    nose_2 = np.argwhere(ids == HELEN.names.index("nose")).mean(0)[::-1]
    rings = [ring([HELEN.names.index(name)], 6, 1) for name in ("eye1", "eye2")]
    lips = [HELEN.names.index(name) for name in ("upper_lip", "lower_lip", "inner_mouth")]
    return np.vstack([np.tile(nose_2, (36, 1)), *rings, ring(lips, 12, 1), ring(lips, 8, 0.4)])


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """A folder with one photo and its landmarks."""
    photo, ids = draw_face(7, 17, 256)
    root = tmp_path / "faces"
    for name in ("images", "points"):
        (root / name).mkdir(parents=True)
    Image.fromarray(photo).save(root / "images" / "a.jpg", quality=95)
    np.savetxt(root / "points" / "a.txt", landmarks(ids), "%.2f")
    return root


def test_polygons_cover_what_their_landmarks_enclose():
    points = np.zeros((68, 2))
    points[36:42] = (10, 10), (13, 8), (17, 8), (20, 10), (17, 12), (13, 12)
    points[42:48] = points[36:42] + (30, 0)
    points[48:60] = np.array([(12, 40), (20, 34), (30, 32), (40, 34), (48, 40)] + [(30, 48)] * 7)
    points[60:68] = np.array([(24, 40), (30, 38), (36, 40)] + [(30, 42)] * 5)
    truth = helen68.Photo(np.zeros((60, 70, 3), np.uint8), points).truth()
    eye1, eye2, lips, inner = (NINE.names.index(name) for name in ("eye1", "eye2", "upper_lip", "inner_mouth"))
    assert set(np.unique(truth)) == {0, eye1, eye2, lips, inner}
    assert (truth[10, 15], truth[10, 45], truth[36, 30], truth[40, 30], truth[5, 15]) == (eye1, eye2, lips, inner, 0)
    area = cv2.contourArea(points[36:42].astype(np.float32))
    assert abs((truth == eye1).sum() - area) <= 0.35 * area
    assert (truth == eye1).sum() == (truth == eye2).sum()
    almost = np.where((truth == eye1) & (np.arange(70) != 15), 0, truth)  # a column is left of the first eye
    for labels, lost in ((truth, 0), (almost, 0), (np.where(truth == eye1, eye2, truth), 1), (0 * truth, 2)):
        assert helen68.lost_eyes(labels, truth) == lost


def test_the_face_that_fits_the_annotated_one_is_chosen():
    def face(x: float) -> Face:
        return Face(square(np.array([x, 50.0]), np.array([20.0, 0.0])), np.zeros((6, 4, 2)), {}, {}, None)

    empty = np.zeros((100, 200), np.uint8)
    scene = Scene(NINE, empty, empty, [face(150), face(55), face(47)], None)
    assert helen68.fitting(scene, square(np.array([50.0, 50.0]), np.array([20.0, 0.0]))) == 3
    assert helen68.fitting(scene, square(np.array([100.0, 50.0]), np.array([20.0, 0.0]))) == 0
    assert helen68.fitting(scene._replace(faces=[]), face(50).frame) == 0


def test_photos_with_landmarks_are_scored_from_end_to_end(annotated, weights, tmp_path):
    options = ["--data", str(annotated), "--checkpoint", str(weights), "--out", str(tmp_path), "--device", "cpu"]
    assert helen68.main(options) == 0
    result = json.loads((tmp_path / "helen68.json").read_text())
    assert (result["faces"], result["found"]) == (1, 1)
    assert [row["way"] for row in result["rows"]] == list(helen68.ROWS)
    assert [row["photo"] for row in result["soft"]] == list(helen68.SOFT)
    assert all(0 <= value <= 1 for row in [*result["rows"], *result["soft"]] for value in row["f1"].values())
    assert all(row["lost_eyes"] in (0, 0.5, 1) for row in result["soft"])
    assert "| detected | 1 of 1 |" in helen68.table(result)
    with pytest.raises(InputError, match="images"):
        helen68.read(tmp_path)
    points = annotated / "points" / "a.txt"
    for text in ("1 2\n" * 67, "1 2 3\n" * 68, "x y\n" * 68, "nan 1\n" * 68):
        points.write_text(text)
        with pytest.raises(InputError, match="expected 68 lines of two numbers"):
            helen68.read(annotated)
