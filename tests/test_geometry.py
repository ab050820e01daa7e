"""Theta, crop, paste and stretch."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.labels import NINE
from geometry import sampling
from geometry.paste import paste
from geometry.sampling import crop_labels, enlarge, enlarged_labels, stretch
from geometry.theta import canvas_to_image, compose, window_theta


def sizes(*height_width: tuple[int, int]) -> Tensor:
    return torch.tensor(height_width)


def crop(photos_BCHW: Tensor, *arguments) -> Tensor:
    return sampling.crop(photos_BCHW.permute(0, 2, 3, 1), *arguments)


def windows(centres: list[tuple[float, float]], side: float, height: int, width: int) -> Tensor:
    """theta_1P23 of windows of one side."""
    centres_1P2 = torch.tensor([centres], dtype=torch.float32)
    return window_theta(centres_1P2, torch.full((1, len(centres), 1), float(side)), sizes((height, width)))


def sliced(photo: Tensor, centre: tuple[int, int], side: int) -> Tensor:
    """The same window by array slicing, zeros outside."""
    (x, y), reach = centre, side // 2
    padded = F.pad(photo, (reach, reach, reach, reach))
    return padded[..., y : y + side, x : x + side]


def confident(labels_1PSS: Tensor) -> list[Tensor]:
    """One-hot part probabilities from label crops; a foreign label counts as background."""
    probs = []
    for part, labels in enumerate(NINE.part_ids):
        foreground = torch.stack([labels_1PSS[:, part] == label for label in labels], 1).float()
        probs.append(torch.cat([1 - foreground.sum(1, keepdim=True), foreground], 1))
    return probs


@pytest.mark.parametrize(("height", "width"), [(97, 211), (45, 2000)])
@pytest.mark.parametrize("side", [81, 31])
def test_with_an_odd_window_and_an_integer_centre_crops_of_photo_and_labels_equal_array_slicing(height, width, side):
    photo = torch.rand(1, 3, height, width)
    centres = [(width // 2, height // 2), (0, 0), (width - 1, height - 1), (width // 3, height // 5), (7, 11)]
    assert not crop(photo, windows([(width + 200, 25), (35, -90)], side, height, width), side).any()
    centres += torch.stack([torch.randint(width, (9,)), torch.randint(height, (9,))], 1).tolist()
    theta, labels = windows(centres, side, height, width), torch.randint(9, (1, height, width), dtype=torch.uint8)
    crops, label_crops = crop(photo, theta, side), crop_labels(labels, theta, side, sizes((height, width)))
    for part, centre in enumerate(centres):
        assert torch.equal(crops[0, part], sliced(photo[0], centre, side))
        assert torch.equal(label_crops[0, part], sliced(labels[0], centre, side))


def test_the_crop_is_differentiable_in_theta_and_in_the_photo():
    photo = torch.rand(1, 2, 12, 17, dtype=torch.float64, requires_grad=True)
    theta = windows([(8.3, 5.7), (4.6, 7.2)], 5.3, 12, 17).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda image, t: crop(image, t, 4), (photo, theta))
    ramp = torch.arange(40.0).expand(1, 1, 40, 40)
    theta = windows([(20, 20)], 11, 40, 40).requires_grad_()  # on pixel centres too
    crop(ramp, theta, 11).mean().backward()
    assert theta.grad is not None
    assert theta.grad[0, 0, 0, 2].item() == pytest.approx(39 / 2, rel=1e-4)  # pixels per unit of t


@pytest.mark.parametrize(("height", "width"), [(100, 80), (150, 60)])
def test_cropping_through_the_padded_canvas_equals_cropping_the_photo(height, width):
    canvas = 128
    photo = torch.rand(1, 3, height, width)
    top, left = (canvas - height) // 2, (canvas - width) // 2
    padded = F.pad(photo, (left, canvas - width - left, top, canvas - height - top))  # crops where negative
    on_canvas = windows([(64, 60), (50, 71)], 21, canvas, canvas)
    on_photo = compose(canvas_to_image(sizes((height, width)), canvas), on_canvas)
    torch.testing.assert_close(crop(padded, on_canvas, 21), crop(photo, on_photo, 21), rtol=0, atol=1e-6)


def test_torch_s_grid_sample_which_gpus_use_gives_the_same_crops_and_labels():
    photos, labels = torch.rand(2, 3, 90, 130), torch.randint(len(NINE), (2, 90, 130), dtype=torch.uint8)
    photos[1, :, 60:], labels[1, 60:] = 0, 0
    own = sizes((90, 130), (60, 130))
    theta = windows([(60, 40), (3, 5.3), (128, 58.7)], 31.6, 90, 130).expand(2, -1, -1, -1).clone()
    theta[:, 0, :, :2] += torch.tensor([[0, 0.05], [-0.08, 0]])  # turned a little
    points = sampling.sample_points(theta, 25, own)
    found = sampling.by_grid(photos, points.flatten(1, 2), "bilinear").unflatten(2, (-1, 25)).transpose(1, 2)
    torch.testing.assert_close(found, crop(photos, theta, 25, own), rtol=0, atol=1e-4)
    nearest = sampling.by_grid(labels[:, None], points.flatten(1, 2), "nearest").byte().view(2, 3, 25, 25)
    assert (nearest != crop_labels(labels, theta, 25, own)).sum() < 4  # points in the middle of two pixels


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(120, 120), (90, 203), (300, 77)])
def test_pasting_what_was_cropped_gives_the_labels_back_inside_the_windows(mode, height, width):
    labels = torch.zeros(1, height, width, dtype=torch.uint8)
    centres = [(20, 30), (50, 30), (22, 55), (52, 54), (36, 60), (0, 85)]  # the mouth's window leaves the photo
    for (x, y), part_labels in zip(centres, NINE.part_ids, strict=True):
        patch = labels[0, max(y - 7, 0) : y + 8, max(x - 7, 0) : x + 8]
        patch.copy_(torch.tensor(part_labels, dtype=torch.uint8)[torch.randint(len(part_labels), patch.shape)])
    theta = windows(centres, 21, height, width)
    pasted = paste(confident(crop_labels(labels, theta, 21, sizes((height, width)))), theta, height, width, mode)
    assert torch.equal(pasted.argmax(1).byte(), labels)


def test_a_window_half_way_between_two_pixels_is_pasted_on_both_borders():
    probs = confident(torch.tensor([[label[0] for label in NINE.part_ids]]).view(1, 6, 1, 1).expand(1, 6, 81, 81))
    theta = windows([(310.5, 400)] * 6, 81, 1024, 1024)
    assert paste(probs, theta, 1024, 1024)[0, 1].sum().item() == 82 * 81


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("bad", ["outside", "tiny", "zero", "nan", "inf", "huge"])
def test_windows_thrown_anywhere_leave_the_rest_of_the_label_map_alone(mode, bad):
    theta = windows([(15, 15), (45, 15), (75, 15), (15, 45), (45, 45), (500, 500)], 13, 60, 90)
    probs = confident(torch.tensor([[label[0] for label in NINE.part_ids]]).view(1, 6, 1, 1).expand(1, 6, 13, 13))
    good = paste(probs, theta, 60, 90, mode)
    assert not good[:, 6:].any()
    theta[0, 5] = {
        "outside": torch.tensor([[0.1, 0, -30], [0, 0.1, 40]]),
        "tiny": torch.tensor([[1e-6, 0, 0.66], [0, 1e-6, 0.5]]),
        "zero": torch.tensor([[0, 0, 0.66], [0, 0, 0.5]]),
        "nan": torch.full((2, 3), torch.nan),
        "inf": torch.tensor([[torch.inf, 0, torch.inf], [0, torch.inf, 0]]),
        "huge": torch.tensor([[1e9, 0, 0.1], [0, 1e9, 0.1]]),
    }[bad]
    pasted = paste(probs, theta, 60, 90, mode)
    assert pasted.isfinite().all()
    assert torch.equal(pasted[:, 1:6], good[:, 1:6])


def test_probabilities_of_another_precision_are_pasted_at_the_same_pixels():
    theta = windows([(101, 333)] * 6, 81, 700, 500)
    labels = torch.randint(len(NINE), (1, 6, 81, 81), dtype=torch.uint8)
    probs = confident(labels)
    same = paste([part.bfloat16() for part in probs], theta, 700, 500)
    assert same.dtype == torch.float32
    assert torch.equal(same, paste(probs, theta, 700, 500))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (2000, 3)])
def test_photos_one_pixel_wide_are_cropped_and_pasted(height, width):
    theta = windows([(width // 2, height // 2)] * 6, 9, height, width)
    crops = crop(torch.ones(1, 3, height, width), theta, 9)
    assert torch.equal(crops[0, 0], sliced(torch.ones(3, height, width), (width // 2, height // 2), 9))
    pasted = paste([torch.rand(1, len(labels) + 1, 9, 9).softmax(1) for labels in NINE.part_ids], theta, height, width)
    assert pasted.isfinite().all()
    assert (pasted[:, 1:].sum(1) > 0).sum() == min(height, 9) * min(width, 9)


def test_logits_are_enlarged_to_each_photo_s_own_size_and_the_padding_is_background():
    logits_BKhw, sizes_B2 = torch.randn(2, 5, 16, 16), sizes((40, 70), (90, 30))
    large = list(enlarge(logits_BKhw, sizes_B2))
    labels_BHW = enlarged_labels(logits_BKhw, sizes_B2, 90, 70)
    assert labels_BHW.dtype == torch.uint8
    for b, (height, width) in enumerate(sizes_B2.tolist()):
        expected_HWK = cv2.resize(logits_BKhw[b].permute(1, 2, 0).numpy(), (width, height))
        torch.testing.assert_close(large[b].permute(1, 2, 0), torch.from_numpy(expected_HWK), rtol=0, atol=1e-4)
        assert torch.equal(labels_BHW[b, :height, :width], large[b].argmax(0).byte())
        assert not labels_BHW[b, height:].any()
        assert not labels_BHW[b, :, width:].any()


@pytest.mark.parametrize(("height", "width"), [(300, 200), (100, 90), (150, 150), (1, 1), (1, 300)])
def test_photos_that_shrink_are_stretched_by_areas_and_those_that_grow_bilinearly(height, width):
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shown_3SS = stretch(torch.from_numpy(photo)[None], sizes((height, width)), 150)[0]
    single = photo.astype(np.float32)
    for axis, length in enumerate((height, width)):
        how = cv2.INTER_AREA if length >= 150 else cv2.INTER_LINEAR
        target = (single.shape[1], 150) if axis == 0 else (150, single.shape[0])
        single = cv2.resize(single, target, interpolation=how)
    torch.testing.assert_close(shown_3SS.permute(1, 2, 0), torch.from_numpy(single), rtol=0, atol=2e-2)
