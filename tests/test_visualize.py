import numpy as np
import pytest
import torch

from data.labels import COLOURS, PART_LABELS
from utils.visualize import colour, draw_windows, legend, overlay, tile


def photo_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def window(height, width, left, top, right, bottom):
    """Theta whose crop's corner pixels are the given ones."""
    x = np.array([left, right]) / (width - 1) * 2 - 1
    y = np.array([top, bottom]) / (height - 1) * 2 - 1
    return np.array([[(x[1] - x[0]) / 2, 0, x.mean()], [0, (y[1] - y[0]) / 2, y.mean()]])


def absent_windows():
    return np.full((6, 2, 3), np.nan)


def test_each_label_gets_its_colour():
    labels = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert np.array_equal(colour(labels), COLOURS.reshape(3, 3, 3))
    assert colour(labels).dtype == np.uint8


def test_ids_that_are_no_labels_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.8"):
        colour(np.array([[0, 9]], np.uint8))
    with pytest.raises(ValueError, match=r"0\.\.8"):
        colour(np.array([[0, -1]]))


def test_an_overlay_leaves_background_untouched_and_blends_the_rest():
    photo = photo_of(4, 9)
    before = photo.copy()
    labels = np.tile(np.arange(9, dtype=np.uint8), (4, 1))
    out = overlay(photo, labels, 0.25)
    assert out.dtype == np.uint8
    assert np.array_equal(out[:, 0], photo[:, 0])
    assert np.array_equal(out[:, 1:], np.rint(0.75 * photo + 0.25 * colour(labels).astype(float))[:, 1:])
    assert np.array_equal(photo, before)


def test_alpha_one_is_the_colour_and_alpha_zero_the_photo():
    photo, labels = photo_of(5, 6), np.full((5, 6), 5, np.uint8)
    assert np.array_equal(overlay(photo, labels, 1), colour(labels))
    assert np.array_equal(overlay(photo, labels, 0), photo)


def test_an_overlay_of_another_size_or_alpha_is_refused():
    with pytest.raises(ValueError, match="differ in size"):
        overlay(photo_of(4, 4), np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match="alpha"):
        overlay(photo_of(4, 4), np.zeros((4, 4), np.uint8), 1.5)


def test_a_window_is_drawn_on_the_corner_pixels_of_its_crop():
    photo = np.zeros((61, 101, 3), np.uint8)
    theta = absent_windows()
    theta[4] = window(61, 101, 20, 10, 70, 40)
    drawn = draw_windows(photo, theta).any(axis=2)
    want = np.zeros((61, 101), bool)
    want[10:41, 20:71] = True
    want[11:40, 21:70] = False
    assert np.array_equal(drawn, want)


def test_six_windows_come_in_six_colours_and_the_photo_stays_as_it_was():
    photo = np.zeros((100, 200, 3), np.uint8)
    theta = np.stack([window(100, 200, 5 + 30 * i, 20, 25 + 30 * i, 60) for i in range(6)])
    out = draw_windows(photo, torch.from_numpy(theta).float().requires_grad_())
    for part in range(6):
        assert np.array_equal(out[20, 10 + 30 * part], COLOURS[PART_LABELS[part][0]])
    assert not photo.any()


def test_lines_grow_with_the_photo():
    def width_of_line(side):
        theta = absent_windows()
        theta[0] = window(side, side, side // 4, side // 4, side // 2, side // 2)
        return draw_windows(np.zeros((side, side, 3), np.uint8), theta)[side // 3, : side // 3].any(axis=-1).sum()

    assert width_of_line(100) == 1
    assert 4 <= width_of_line(1000) <= 8


@pytest.mark.parametrize("shape", [(1, 1), (20, 2000), (512, 3)])
def test_windows_beyond_the_photo_and_odd_photos_are_drawn_without_complaint(shape):
    theta = np.tile(np.array([[1e9, 0, 0], [0, 3.0, -1e9]]), (6, 1, 1))
    assert draw_windows(photo_of(*shape), theta).shape == (*shape, 3)
    assert draw_windows(photo_of(*shape)[::-1, ::-1], np.tile(np.eye(2, 3), (6, 1, 1))).shape == (*shape, 3)


def test_theta_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        draw_windows(photo_of(8, 8), np.zeros((1, 6, 2, 3)))


def test_tiles_are_letterboxed_in_reading_order():
    red, green = np.full((10, 20, 3), (255, 0, 0), np.uint8), np.full((400, 100, 3), (0, 255, 0), np.uint8)
    sheet = tile([red, green, red], 2, 40)
    assert sheet.shape == (80, 80, 3)
    assert sheet.dtype == np.uint8
    assert (sheet[10:30, :40] == (255, 0, 0)).all()
    assert not sheet[:10, :40].any()
    assert not sheet[30:40, :40].any()
    assert (sheet[:40, 55:65] == (0, 255, 0)).all()
    assert not sheet[:40, 40:55].any()
    assert (sheet[50:70, :40] == (255, 0, 0)).all()
    assert not sheet[40:, 40:].any()


def test_extreme_pictures_still_fit_their_tile():
    assert tile([photo_of(1, 1), photo_of(20, 20000), photo_of(64, 64)], 3, 64).shape == (64, 192, 3)


def test_a_picture_of_the_tile_size_is_not_altered():
    photo = photo_of(32, 32)
    assert np.array_equal(tile([photo], 1, 32), photo)


@pytest.mark.parametrize(("count", "columns", "size"), [(0, 2, 8), (1, 0, 8), (1, 2, 0)])
def test_an_empty_sheet_is_refused(count, columns, size):
    with pytest.raises(ValueError, match="cannot tile"):
        tile([photo_of(4, 4)] * count, columns, size)


def test_the_legend_shows_every_label_with_a_readable_name():
    picture = legend()
    assert picture.dtype == np.uint8
    bars = picture.reshape(9, -1, picture.shape[1], 3).astype(int)
    for bar, rgb in zip(bars, COLOURS.astype(int), strict=True):
        distance = np.abs(bar - rgb).sum(axis=2)
        assert (distance == 0).mean() > 0.6
        assert (distance > 200).sum() > 20
