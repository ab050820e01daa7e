"""A view moves photo, labels, parts and crops alike, and its draw depends on the face's own key alone."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from data.batch import Batch
from data.labels import NINE
from data.view import NO_AUGMENTATION, PAPER_AUGMENTATION, Augmentation, View
from geometry.sampling import crop, crop_labels
from geometry.theta import window_theta
from models.stn_icnn.windows import Windows, target_theta
from tests.fixtures import batch_of

ANY = Augmentation(rotation=15, shift=0.1, scale=(0.8, 1.25), stretch=0.3, mirror=0.5)
SIZES = ((160, 120), (120, 200))  # not square; the second is padded below, the first at the right
# (label, x, y, width, height) in shares of the photo: a face of blobs, not symmetric
BLOBS = (
    (1, 0.33, 0.36, 0.1, 0.04),
    (2, 0.64, 0.34, 0.12, 0.05),
    (3, 0.35, 0.45, 0.07, 0.05),
    (4, 0.62, 0.44, 0.08, 0.06),
    (5, 0.48, 0.55, 0.08, 0.12),
    (6, 0.5, 0.69, 0.2, 0.04),
    (7, 0.5, 0.72, 0.2, 0.02),
    (8, 0.5, 0.75, 0.2, 0.04),
)
COLOURS = np.array(NINE.colours, np.uint8)
FINE_SIZES = ((640, 640), (400, 560))  # photos of fine stripes, in one padded batch


def blob_face(height, width):
    labels = np.zeros((height, width), np.uint8)
    for label, x, y, w, h in BLOBS:
        rows = slice(round((y - h / 2) * height), round((y + h / 2) * height))
        labels[rows, round((x - w / 2) * width) : round((x + w / 2) * width)] = label
    return COLOURS[labels], labels


def make_batch(count=2, first=0) -> Batch:
    """Blob faces of both sizes in turn."""
    return batch_of([blob_face(*SIZES[k % 2]) for k in range(first, first + count)], first=first)


def with_photos(batch, photo) -> Batch:
    """The batch with other photos, all alike or all of one grey."""
    return replace(batch, photos_BHW3=torch.as_tensor(photo, dtype=torch.uint8).expand(batch.photos_BHW3.shape))


def noise_photo(low, high):
    return np.random.default_rng(0).integers(low, high, (1, 160, 200, 3))


def zoom(view) -> Tensor:
    """How many times larger the faces of the view are."""
    return torch.linalg.det(view.draw.affine_B33).abs().rsqrt()


def windows_in(batch, sides=21) -> Tensor:
    """theta_BP23 of square windows of so many pixels on whole pixels near the middle of each photo."""
    middle_B12 = torch.div(batch.sizes_B2.flip(-1), 2, rounding_mode="floor")[:, None].float()
    offsets_P2 = torch.tensor([[-9, -7], [11, -8], [-3, 4], [6, 5], [0, 0], [2, 12]])
    return window_theta(middle_B12 + offsets_P2, torch.full((len(middle_B12), 6, 1), float(sides)), batch.sizes_B2)


def stripes(height, width, period=8):
    """A photo of upright stripes (red) and lying ones (green), half a period of dark and half of bright."""
    photo = np.full((height, width, 3), 90, np.uint8)
    photo[..., 0] = 20 + 200 * (np.arange(width) * 2 // period % 2)
    photo[..., 1] = 20 + 200 * (np.arange(height) * 2 // period % 2)[:, None]
    return photo


@pytest.fixture(scope="module")
def fine() -> Batch:
    return batch_of([(stripes(*size), np.zeros(size, np.uint8)) for size in FINE_SIZES])


def resized(photo, size, how=cv2.INTER_AREA) -> Tensor:
    """A photo, by OpenCV: (size, size, 3), float in [0, 1]."""
    return torch.from_numpy(cv2.resize(photo.astype(np.float32), (size, size), interpolation=how) / 255)


@pytest.mark.parametrize("size", [96, 150])  # from the cached 256 x 256, and from the photo
def test_a_draw_shows_area_averages_of_the_augmented_photo_without_alias(size, fine):
    view = Augmentation(rotation=15, shift=0.1, scale=(1.0, 1.25), mirror=0.5).view(fine)
    for b, own in enumerate(FINE_SIZES):
        rendered = render(view, b, stripes(*own), cv2.INTER_LINEAR)
        expected_SS3 = resized(rendered, size)
        assert (view.photo(size)[b].permute(1, 2, 0) - expected_SS3).abs().mean() < 0.06
        assert (resized(rendered, size, cv2.INTER_NEAREST) - expected_SS3).abs().mean() > 0.12  # what alias does


def test_no_augmentation_shows_faces_as_evaluation_does_and_small_photos_come_from_the_cache(fine):
    for size in (129, 640):
        torch.testing.assert_close(NO_AUGMENTATION.view(fine).photo(size), View(fine).photo(size), rtol=0, atol=5e-4)
    batch = make_batch()
    view, plain, theta_BP23 = NO_AUGMENTATION.view(batch), View(batch), windows_in(batch, 30.5)
    cached = View(replace(batch, photos_BHW3=torch.empty(2, 0, 0, 3, dtype=torch.uint8)))
    assert View.needs_photos(129)
    for size in (32, 128):
        assert not View.needs_photos(size)
        assert torch.equal(cached.photo(size), plain.photo(size))
        torch.testing.assert_close(view.photo(size), plain.photo(size), rtol=0, atol=2e-4)
        assert torch.equal(view.label_map(size), plain.label_map(size))
        torch.testing.assert_close(view.crops(theta_BP23, size), plain.crops(theta_BP23, size), rtol=0, atol=2e-4)
    assert torch.equal(view.crop_labels(theta_BP23, 21), plain.crop_labels(theta_BP23, 21))
    torch.testing.assert_close(tuple(view.parts()), tuple(plain.parts()))
    assert torch.equal(plain.crops(theta_BP23, 20), crop(batch.photos_BHW3, theta_BP23, 20, batch.sizes_B2))


def test_parts_are_where_the_augmented_photo_shows_them():
    batch, size = make_batch(20), 256
    view = ANY.view(batch)
    assert 0 < view.draw.mirrored_B.sum() < 20
    labels_BSS, photo_B3SS = view.label_map(size), view.photo(size)
    centres_BP2, _, present_BP = view.parts()
    assert present_BP.float().mean() > 0.9
    checked = 0
    for b, (height, width) in enumerate(batch.sizes_B2.tolist()):
        for part, own in enumerate(NINE.part_ids):
            seen = np.isin(labels_BSS[b].numpy(), own)
            edge = seen[0].any() or seen[-1].any() or seen[:, 0].any() or seen[:, -1].any()
            if edge or not seen.any():
                continue
            ys, xs = np.nonzero(seen)
            x, y = (xs.mean() + 0.5) * width / size - 0.5, (ys.mean() + 0.5) * height / size - 0.5
            assert present_BP[b, part]
            assert centres_BP2[b, part].tolist() == pytest.approx([x, y], abs=0.7)
            if part < 5:  # the photo shows the part's colour there: that of its other side where mirrored
                u, v = (round((c + 0.5) * size / n - 0.5) for c, n in zip((x, y), (width, height), strict=True))
                name = NINE.mirror[own[0]] if view.draw.mirrored_B[b] else own[0]
                colour = torch.from_numpy(COLOURS[name]).float() / 255
                torch.testing.assert_close(photo_B3SS[b, :, v, u], colour, rtol=0, atol=0.05)
            checked += 1
    assert checked > 90


def test_a_mirror_swaps_sides():
    batch = make_batch()
    view = Augmentation(mirror=1).view(batch)
    centres_BP2, extents_BP2, _ = view.parts()  # of brows and eyes
    torch.testing.assert_close(extents_BP2[:, :4], batch.extents_BP2[:, [1, 0, 3, 2]])
    torch.testing.assert_close(centres_BP2[:, :4, 1], batch.centres_BP2[:, [1, 0, 3, 2], 1])
    assert (centres_BP2[:, 0, 0] < centres_BP2[:, 1, 0]).all()  # brow1 stays on the image's left


def test_stretch_changes_the_shape_of_half_of_the_faces_and_the_size_of_none():
    view = Augmentation(stretch=0.5).view(make_batch(100))
    affine_B33 = view.draw.affine_B33
    assert torch.equal(affine_B33[:, 0, 1], torch.zeros(100))
    torch.testing.assert_close(zoom(view), torch.ones(100))
    shape_B = (affine_B33[:, 1, 1] / affine_B33[:, 0, 0]).log()
    assert 35 < (shape_B.abs() < 1e-6).sum() < 65
    assert 0.4 < shape_B.max() <= 0.5
    assert -0.5 <= shape_B.min() < -0.4


def test_turned_and_enlarged_faces_keep_their_proportions_and_stay_in_range():
    batch = make_batch(200)
    view = Augmentation(rotation=40, scale=(0.8, 1.25)).view(batch)
    centres_BP2, extents_BP2, _ = view.parts()
    middle_B12 = (batch.sizes_B2.flip(-1).float() - 1)[:, None] / 2
    before, after = (torch.view_as_complex((c - middle_B12).contiguous()) for c in (batch.centres_BP2, centres_BP2))
    zoom_BP = zoom(view)[:, None].expand(-1, 6)
    torch.testing.assert_close(after.abs() / before.abs(), zoom_BP, rtol=1e-4, atol=1e-3)
    degrees_BP = (after / before).angle().rad2deg()
    torch.testing.assert_close(degrees_BP, degrees_BP[:, :1].expand(-1, 6), rtol=0, atol=0.02)
    for values, least, most in ((degrees_BP, -40, 40), (zoom_BP, 0.8, 1.25)):
        assert least - 0.01 < values.min() < least + 0.05 * (most - least)
        assert most - 0.05 * (most - least) < values.max() < most + 0.01
    ellipse_2N = torch.stack([(turn := torch.linspace(0, 2 * torch.pi, 1001)).cos(), turn.sin()])
    turned_BP2N = view.draw.affine_B33.inverse()[:, None, :2, :2] @ (batch.extents_BP2[..., None] * ellipse_2N)
    torch.testing.assert_close(extents_BP2, turned_BP2N.amax(-1), rtol=1e-3, atol=1e-2)


def test_parts_whose_centre_leaves_the_photo_count_as_missing():
    batch = make_batch(100)
    centres_BP2, _, present_BP = Augmentation(shift=0.6).view(batch).parts()
    size_B12 = batch.sizes_B2.flip(-1)[:, None]
    inside_BP = ((centres_BP2 >= 0) & (centres_BP2 <= size_B12 - 1)).all(-1)
    assert torch.equal(present_BP, inside_BP)
    assert 0.1 < present_BP.float().mean() < 0.9
    moved_BP2 = (centres_BP2 - batch.centres_BP2) / size_B12
    assert (moved_BP2 - moved_BP2[:, :1]).abs().max() < 1e-4
    assert 0.55 < moved_BP2.abs().max() <= 0.6001


def test_fold_k_applies_exactly_k_operations():
    view = PAPER_AUGMENTATION.view(replace(make_batch(200), keys_B3=torch.tensor([[1, 2, k] for k in range(200)])))
    rotated = view.draw.affine_B33[:, 0, 1] != 0
    zoomed = (zoom(view) - 1).abs() > 1e-5
    shifted = view.draw.affine_B33[:, :2, 2].abs().amax(1) > 0
    applied_BO = torch.stack([rotated, shifted, zoomed, view.draw.noise_B > 0], 1)
    assert applied_BO.sum(1).tolist() == list(range(5)) * 40
    assert all((applied_BO[k::5].any(0) & ~applied_BO[k::5].all(0)).all() for k in (1, 2, 3))  # each in turn
    assert not view.draw.mirrored_B.any()


def test_a_draw_does_not_depend_on_the_rest_of_the_batch():
    everything = replace(PAPER_AUGMENTATION, folds=1, tone=0.8, mirror=0.5)
    together, alone = make_batch(4), make_batch(1, 2)
    views = [everything.view(batch) for batch in (together, alone)]
    for one, two in zip(views[0].draw, views[1].draw, strict=True):
        assert torch.equal(one[2:3], two)
    assert torch.equal(views[0].photo(64)[2:3], views[1].photo(64))
    torch.testing.assert_close(views[0].photo(200)[2:3], views[1].photo(200), rtol=0, atol=1e-4)  # padded otherwise
    torch.testing.assert_close(views[0].parts()[0][2:3], views[1].parts()[0], rtol=0, atol=1e-4)
    again = everything.view(together)
    assert all(torch.equal(one, two) for one, two in zip(again.draw, views[0].draw, strict=True))
    other_epoch = everything.view(replace(together, keys_B3=together.keys_B3 + torch.tensor([0, 1, 0])))
    assert not torch.equal(other_epoch.draw.affine_B33, again.draw.affine_B33)


def render(view, b, picture, how):
    """A picture (H, W) or (H, W, 3) of the batch's b-th face as its draw moves it, at full size, by OpenCV."""
    height, width = picture.shape[:2]
    from_middle = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    matrix = (from_middle @ view.draw.affine_B33[b].numpy() @ np.linalg.inv(from_middle))[:2]
    return cv2.warpAffine(picture, matrix, (width, height), flags=how | cv2.WARP_INVERSE_MAP)


def test_crops_of_a_view_equal_crops_of_the_augmented_photo():
    batch = make_batch(12)
    smooth = np.stack([cv2.GaussianBlur(photo, (0, 0), 3) for photo in batch.photos_BHW3.numpy()])
    batch = replace(batch, photos_BHW3=torch.from_numpy(smooth))
    view = ANY.view(batch)
    theta_BP23 = target_theta(view.parts(), view.sizes_B2, Windows(33, 1.6, 1.0))
    crops_BP3SS, labels_BPSS = view.crops(theta_BP23, 33), view.crop_labels(theta_BP23, 33)
    lut = np.array(NINE.mirror, np.uint8)
    for b, (height, width) in enumerate(batch.sizes_B2.tolist()):
        photo = render(view, b, batch.photos_BHW3[b, :height, :width].numpy(), cv2.INTER_LINEAR)
        labels = render(view, b, batch.labels_BHW[b, :height, :width].numpy(), cv2.INTER_NEAREST)
        rendered = torch.from_numpy(photo)[None]
        assert (crop(rendered, theta_BP23[b : b + 1], 33)[0] - crops_BP3SS[b]).abs().mean() < 0.01
        labels = torch.from_numpy(lut[labels] if view.draw.mirrored_B[b] else labels)[None]
        expected_PSS = crop_labels(labels, theta_BP23[b : b + 1], 33, batch.sizes_B2[b : b + 1])[0]
        assert (expected_PSS == labels_BPSS[b]).float().mean() > 0.95
        assert (expected_PSS > 0).float().mean() > 0.05


def test_noise_and_tone_touch_the_photo_alone_and_stay_in_range():
    batch = with_photos(make_batch(8), noise_photo(0, 256))
    view, plain, theta_BP23 = Augmentation(noise=0.5, tone=1).view(batch), View(batch), windows_in(batch)
    for values in (view.photo(64), view.photo(150), view.crops(theta_BP23, 9)):
        assert ((values >= 0) & (values <= 1)).all()  # and no NaN
    assert (view.photo(64) - plain.photo(64)).abs().mean() > 0.1
    assert torch.equal(view.label_map(64), plain.label_map(64))
    assert torch.equal(view.crop_labels(theta_BP23, 21), plain.crop_labels(theta_BP23, 21))


def test_noise_has_the_deviation_that_was_drawn_and_is_each_face_s_own():
    batch = with_photos(make_batch(6), 128)
    view = Augmentation(noise=0.1).view(batch)
    noise_BN = (view.crops(windows_in(batch), 40) - 128 / 255).flatten(1)
    torch.testing.assert_close(noise_BN.std(1), view.draw.noise_B, rtol=0.03, atol=1e-4)
    assert (torch.corrcoef(noise_BN) - torch.eye(6)).abs().max() < 0.1  # each face has noise of its own
    assert 0 < view.draw.noise_B.min() <= view.draw.noise_B.max() <= 0.1  # every face has some


def test_windows_jitter_by_a_share_of_their_side_from_the_face_s_own_key():
    batch = make_batch(50)
    view = View(batch)
    theta_BP23 = target_theta(view.parts(), batch.sizes_B2, Windows(33, 1.6, 1.0))
    assert view.jittered(theta_BP23, 0) is theta_BP23
    moved_BP23 = view.jittered(theta_BP23, 0.1)
    sides_BP2 = 2 * torch.diagonal(theta_BP23[..., :2], dim1=-2, dim2=-1)
    shift_BP2 = (moved_BP23 - theta_BP23)[..., 2] / sides_BP2
    assert 0.09 < shift_BP2.abs().max() <= 0.1001
    resized_BP = moved_BP23[..., 0, 0] / theta_BP23[..., 0, 0]
    torch.testing.assert_close(resized_BP, moved_BP23[..., 1, 1] / theta_BP23[..., 1, 1])
    assert resized_BP.log().abs().max() <= 0.1001
    assert resized_BP.std() > 0.01
    alone = View(make_batch(1, 7))
    torch.testing.assert_close(alone.jittered(theta_BP23[7:8], 0.1), moved_BP23[7:8])


@pytest.mark.parametrize(
    "wrong",
    [("rotation", -1), ("scale", (0, 1)), ("scale", (1.2, 0.8)), ("folds", 3), ("mirror", 5), ("noise", math.nan)],
)
def test_ranges_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="out of range"):
        Augmentation(**dict([wrong]))


def test_reduced_precision_does_not_reach_the_geometry():
    batch = make_batch()
    theta_BP23 = windows_in(batch, 33)

    def geometry():
        view = ANY.view(batch)
        looks = [view.photo(32), view.photo(150), view.label_map(32)]
        return [*looks, view.crops(theta_BP23, 9), view.crop_labels(theta_BP23, 9), *view.parts()]

    plain = geometry()
    with torch.autocast("cpu", torch.bfloat16):
        reduced = geometry()
    assert all(torch.equal(one, two) for one, two in zip(plain, reduced, strict=True))


def test_blur_is_torchvisions_and_leaves_half_of_the_faces_sharp():
    batch = with_photos(make_batch(24), noise_photo(26, 230))
    view, theta_BP23 = Augmentation(blur=2.0).view(batch), windows_in(batch, 31)
    crops_BP3SS, blurred_BP3SS = View(batch).crops(theta_BP23, 31), view.crops(theta_BP23, 31)
    blur_B = view.draw.blur_B
    sharp_B = blur_B == 0
    assert 6 <= sharp_B.sum() <= 18
    assert blur_B.max() <= 2
    torch.testing.assert_close(blurred_BP3SS[sharp_B], crops_BP3SS[sharp_B])
    for b in (~sharp_B).nonzero().flatten().tolist():
        expected = gaussian_blur(crops_BP3SS[b], [9, 9], [float(blur_B[b])] * 2)
        torch.testing.assert_close(blurred_BP3SS[b, ..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4])
