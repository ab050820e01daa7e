"""The synthetic faces: repeatable, exact, and not to be parsed by colour alone."""

import numpy as np
import pytest

from data.datasets.synthetic import COUNTS, canvas, draw_face, draw_named, sample_names
from data.datasets.synthetic import faces as naming
from tests.damage import refuses

FACES = 50


@pytest.fixture(scope="module")
def faces() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_face(3, i, 128) for i in range(FACES)]


def centre_x(labels: np.ndarray, label: int) -> float | None:
    columns = np.nonzero(labels == label)[1]
    return float(columns.mean()) if len(columns) >= 4 else None


def test_seed_and_index_and_nothing_else_decide_on_the_face():
    face = draw_face(5, 11, 96)
    assert all(np.array_equal(one, two) for one, two in zip(face, draw_face(5, 11, 96), strict=True))
    for other in ((6, 11), (5, 12)):
        assert not np.array_equal(face[1], draw_face(*other, 96)[1])


@pytest.mark.parametrize("size", [16, 65, 400])
def test_photo_and_labels_have_the_size_asked_for(size):
    photo, labels = draw_face(0, 1, size)
    assert photo.shape == (size, size, 3)
    assert labels.shape == (size, size)
    assert photo.dtype == labels.dtype == np.uint8
    assert labels.max() <= canvas.HAIR


def test_brow1_and_eye1_lie_on_the_images_left(faces):
    seen = 0
    for _, labels in faces:
        for one, two in (canvas.BROWS, canvas.EYES):
            left, right = centre_x(labels, one), centre_x(labels, two)
            if left is not None and right is not None:
                assert left < right
                seen += 1
    assert seen > FACES


def test_every_label_appears_in_a_good_part_of_the_faces_and_every_part_is_missing_from_some():
    present = np.array(
        [[(labels == k).any() for k in range(11)] for _, labels in (draw_face(8, i, 48) for i in range(200))]
    )
    assert present.mean(0).min() >= 0.3
    assert not present[:, 2:10].all(0).any()


def test_a_face_is_the_same_at_two_sizes():
    both, either = np.zeros(11), np.zeros(11)
    for i in range(12):
        photo, small = draw_face(2, i, 128)
        large_photo, large = draw_face(2, i, 384)
        large = large[1::3, 1::3]
        for label in range(11):
            both[label] += ((small == label) & (large == label)).sum()
            either[label] += ((small == label) | (large == label)).sum()
        blocks = large_photo.reshape(128, 3, 128, 3, 3).mean((1, 3))
        assert np.abs(blocks.mean((0, 1)) - photo.mean((0, 1))).max() < 6
    assert (both / either).min() > 0.9


def test_the_photo_shows_the_parts_where_the_labels_are():
    """Sharp evidence of alignment: edges of the photo are stronger on label borders than elsewhere on the face."""
    on, off = [], []
    for i in range(20):
        photo, labels = draw_face(9, i, 256)
        grey = photo.astype(np.float32).mean(2)
        steps = np.abs(np.diff(grey, axis=0))[:, :-1]
        parts = np.isin(labels, (*canvas.EYES, canvas.UPPER_LIP, canvas.LOWER_LIP))
        border = (parts[1:] != parts[:-1])[:, :-1]
        skin = (labels[1:] == canvas.SKIN)[:, :-1] & ~border
        if border.any() and skin.any():
            on.append(steps[border].mean())
            off.append(steps[skin].mean())
    assert np.mean(on) > 2 * np.mean(off)


def test_splits_share_no_face():
    names = {split: sample_names(split, 30) for split in COUNTS}
    drawn = [draw_named(name, 0, 32)[0].tobytes() for each in names.values() for name in each]
    assert len(set(drawn)) == 90
    assert all(start % naming.SPLIT_ROOM == 0 for start in naming.SPLIT_STARTS.values())


def test_colour_alone_does_not_find_the_parts():
    """A colour histogram fitted on 60 faces (most likely label of each colour) parses other faces badly."""
    votes = np.zeros((16**3, 11), np.int64)

    def colours(photo: np.ndarray) -> np.ndarray:
        red, green, blue = (photo.astype(np.int64) // 16).reshape(-1, 3).T
        return red * 256 + green * 16 + blue

    for i in range(60):
        photo, labels = draw_face(0, i, 96)
        np.add.at(votes, (colours(photo), labels.ravel()), 1)
    others = [draw_face(0, i, 96) for i in range(60, 90)]
    truth = np.concatenate([labels.ravel() for _, labels in others])
    for score in (votes, votes / votes.sum(0)):  # as frequent as they are, and all labels alike
        guess = score.argmax(1)[np.concatenate([colours(photo) for photo, _ in others])]
        parts = [(ids >= 2) & (ids <= 9) for ids in (guess, truth)]
        assert 2 * (parts[1] & (guess == truth)).sum() / np.sum(parts) < 0.3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        *((draw_face, words) for words in ((-1, 0), (0, -1), (0, 0, 8), (0, 0, 5000))),
        *((sample_names, words) for words in (("dev", 3), ("train", 0), ("train", 1_000_001))),
        *((draw_named, (name,)) for name in ("train_1", "dev_000001", "train_-00001")),
    ],
)
def test_bad_arguments_are_told_in_one_line(call, words):
    with refuses():
        call(*words)
