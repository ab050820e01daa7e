"""Photos as bad cameras and bad copies show them."""

import numpy as np
import torch

from data.camera import degraded, is_degraded
from data.images import make_thumb
from data.labels import NINE
from data.loaders import open_faces, training_batches
from data.source import FaceData


def detail(photo: np.ndarray) -> float:
    return float(np.abs(np.diff(photo.astype(float), axis=1)).mean())


def test_a_key_settles_the_photo_which_keeps_its_size_and_loses_detail():
    photo = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    shown = [degraded(photo, (0, 0, k)) for k in range(40)]
    assert np.array_equal(shown[3], degraded(photo, (0, 0, 3)))
    assert {one.shape for one in shown} == {photo.shape}
    assert {one.dtype for one in shown} == {photo.dtype}
    assert all(detail(one) < detail(photo) for one in shown)
    assert 0.4 < np.mean([is_degraded((0, 0, k), 0.5) for k in range(400)]) < 0.6
    assert not any(is_degraded((0, 0, k), 0.0) for k in range(40))


def test_both_looks_of_a_face_are_soft_and_its_labels_stay(tmp_path):
    data = FaceData("synthetic", None, None, 64, 8, tmp_path, None, None)
    clean = next(iter(training_batches(open_faces(data, "train", NINE), 8, 0, 0)))
    soft = next(iter(training_batches(open_faces(data, "train", NINE, camera=0.5), 8, 0, 0)))
    changed = (soft.photos_BHW3 != clean.photos_BHW3).flatten(1).any(1)
    expected = [is_degraded(tuple(key), 0.5) for key in clean.keys_B3.tolist()]
    assert changed.tolist() == expected
    assert 0 < sum(expected) < 8
    for photo, thumb in zip(soft.photos_BHW3, soft.thumbs_BTT3, strict=True):
        assert np.array_equal(make_thumb(photo.numpy()), thumb)
    assert torch.equal(soft.labels_BHW, clean.labels_BHW)
