"""Pictures of results: overlays, windows, tiles, legends and faces of a batch."""

import numpy as np
import pytest
import torch

from data.labels import CELEBAMASK, HELEN, NINE, LabelSet
from scoring.pictures import colour, draw_windows, face_pictures, legend, overlay, progress_picture, tile
from tests.fixtures import batch_of

COLOURS = np.array(NINE.colours, np.uint8)
TWO = LabelSet("two", ("background", "face"), ((0, 0, 0), (255, 0, 0)))


def photo_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def window(height, width, left, top, right, bottom):
    """Theta whose crop's corner pixels are the given ones."""
    x = np.array([left, right]) / (width - 1) * 2 - 1
    y = np.array([top, bottom]) / (height - 1) * 2 - 1
    return np.array([[(x[1] - x[0]) / 2, 0, x.mean()], [0, (y[1] - y[0]) / 2, y.mean()]])


def absent_windows():
    return np.full((6, 2, 3), np.nan)


def test_an_overlay_leaves_background_untouched_and_blends_the_rest():
    photo = photo_of(4, 9)
    before = photo.copy()
    labels = np.tile(np.arange(9, dtype=np.uint8), (4, 1))
    out = overlay(photo, labels, NINE, 0.25)
    assert out.dtype == np.uint8
    assert np.array_equal(out[:, 0], photo[:, 0])
    assert np.array_equal(out[:, 1:], np.rint(0.75 * photo + 0.25 * colour(labels, NINE).astype(float))[:, 1:])
    assert np.array_equal(photo, before)


@pytest.mark.parametrize("part", range(6))
def test_a_window_is_drawn_on_the_corner_pixels_of_its_crop_in_its_part_s_colour(part):
    photo, theta = np.zeros((61, 101, 3), np.uint8), absent_windows()
    theta[part] = window(61, 101, 20, 10, 70, 40)
    drawn = draw_windows(photo, torch.from_numpy(theta).float().requires_grad_(), NINE)
    want = np.zeros((61, 101), bool)
    want[10:41, 20:71] = True
    want[11:40, 21:70] = False
    assert np.array_equal(drawn, want[..., None] * COLOURS[NINE.part_ids[part][0]])
    assert not photo.any()


@pytest.mark.parametrize("shape", [(1, 1), (20, 2000), (512, 3)])
def test_windows_beyond_the_photo_and_odd_photos_are_drawn_without_complaint(shape):
    theta = np.tile(np.array([[1e9, 0, 0], [0, 3.0, -1e9]]), (6, 1, 1))
    assert draw_windows(photo_of(*shape), theta, NINE).shape == (*shape, 3)
    assert draw_windows(photo_of(*shape)[::-1, ::-1], np.tile(np.eye(2, 3), (6, 1, 1)), NINE).shape == (*shape, 3)


def test_tiles_are_letterboxed_in_reading_order():
    red, green = np.full((10, 20, 3), (255, 0, 0), np.uint8), np.full((400, 100, 3), (0, 255, 0), np.uint8)
    sheet = tile([red, green, red], 2, 40)
    wanted = np.zeros((80, 80, 3), np.uint8)
    wanted[10:30, :40] = wanted[50:70, :40] = 255, 0, 0
    wanted[:40, 55:65] = 0, 255, 0
    assert np.array_equal(sheet, wanted)


@pytest.mark.parametrize("labels", [NINE, HELEN, CELEBAMASK], ids=lambda labels: labels.name)
def test_the_legend_shows_every_label_with_a_readable_name(labels):
    picture = legend(labels)
    assert picture.dtype == np.uint8
    bars = picture.reshape(len(labels), -1, picture.shape[1], 3).astype(int)
    colours = np.array(labels.colours, float)
    apart = np.linalg.norm(colours[:, None] - colours, axis=2) + 1000 * np.eye(len(colours))
    assert apart.min() > 75
    for bar, rgb in zip(bars, np.array(labels.colours), strict=True):
        distance = np.abs(bar - rgb).sum(axis=2)
        assert (distance == 0).mean() > 0.6
        assert (distance > 200).sum() > 20


def test_other_label_sets_have_their_own_colours_and_ids():
    ids = np.arange(19, dtype=np.uint8)[None]
    assert np.array_equal(colour(ids, CELEBAMASK)[0], np.array(CELEBAMASK.colours))
    with pytest.raises(ValueError, match=r"0\.\.10"):
        colour(ids, HELEN)
    photo = photo_of(1, 19)
    assert np.array_equal(overlay(photo, ids, CELEBAMASK, 1)[:, 1:], colour(ids, CELEBAMASK)[:, 1:])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: colour(np.array([[0, 9]], np.uint8), NINE), r"0\.\.8"),
        (lambda: overlay(photo_of(4, 4), np.zeros((4, 5), np.uint8), NINE), "differ in size"),
        (lambda: overlay(photo_of(4, 4), np.zeros((4, 4), np.uint8), NINE, 1.5), "alpha"),
        (lambda: draw_windows(photo_of(8, 8), absent_windows(), TWO), "two lacks a part"),
        (lambda: draw_windows(photo_of(8, 8), np.zeros((1, 6, 2, 3)), NINE), "shape"),
        (lambda: tile([], 2, 8), "cannot tile"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def two_faces():
    """A batch of two faces of different sizes, in a label set of two."""
    truths = [np.zeros(size, np.uint8) for size in ((40, 30), (20, 50))]
    for truth in truths:
        truth[:10] = 1
    return batch_of([(photo_of(*truth.shape), truth) for truth in truths], TWO)


def test_faces_of_a_batch_are_shown_at_their_own_size_under_their_labels():
    batch = two_faces()
    first, second = face_pictures(batch, batch.labels_BHW)
    assert (first.shape, second.shape) == ((40, 30, 3), (20, 50, 3))
    photo, truth = batch.photos_BHW3[1, :20].numpy(), batch.labels_BHW[1, :20].numpy()
    assert np.array_equal(second, overlay(photo, truth, TWO))


def test_progress_shows_predictions_above_the_truth():
    batch = two_faces()
    picture = progress_picture(batch, torch.zeros_like(batch.labels_BHW))
    assert picture.shape == (2 * 192, 2 * 192, 3)
    photos = tile([batch.photos_BHW3[0, :, :30].numpy(), batch.photos_BHW3[1, :20].numpy()], 2, 192)
    assert np.array_equal(picture[:192], photos)
    assert (picture[192:] != photos).any()
