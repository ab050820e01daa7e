"""A draw moves photo, labels, parts and crops alike, and depends on the face's own key alone."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from data.augment import (
    NO_AUGMENTATION,
    PAPER_AUGMENTATION,
    Augmentation,
    Draw,
    crops_of,
    draw,
    jitter_windows,
    mirror_labels,
    parts_of,
    theta_frame,
    whole,
    whole_labels,
)
from data.images import make_thumb
from data.labels import COLOURS, MIRROR_LABELS, PART_LABELS
from data.loading import Batch, part_geometry
from models.grid import compose, crop, crop_labels
from models.windows import target_theta

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


def blob_face(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((height, width), np.uint8)
    for label, x, y, w, h in BLOBS:
        rows = slice(round((y - h / 2) * height), round((y + h / 2) * height))
        labels[rows, round((x - w / 2) * width) : round((x + w / 2) * width)] = label
    return COLOURS[labels], labels


def make_batch(count: int = 2, first: int = 0) -> Batch:
    """Blob faces of both sizes in turn, keyed (0, 0, first), (0, 0, first + 1), …"""
    faces = [blob_face(*SIZES[k % 2]) for k in range(first, first + count)]
    height, width = (max(labels.shape[axis] for _, labels in faces) for axis in (0, 1))
    photos, maps = np.zeros((count, height, width, 3), np.uint8), np.zeros((count, height, width), np.uint8)
    for b, (photo, labels) in enumerate(faces):
        photos[b, : labels.shape[0], : labels.shape[1]] = photo
        maps[b, : labels.shape[0], : labels.shape[1]] = labels
    present, centres, extents = (np.stack(x) for x in zip(*(part_geometry(m) for _, m in faces), strict=True))
    return Batch(
        photos_BHW3=torch.from_numpy(photos),
        labels_BHW=torch.from_numpy(maps),
        thumbs_BTT3=torch.from_numpy(np.stack([make_thumb(photo) for photo, _ in faces])),
        sizes_B2=torch.tensor([labels.shape for _, labels in faces]),
        present_BP=torch.from_numpy(present),
        centres_BP2=torch.from_numpy(centres),
        extents_BP2=torch.from_numpy(extents),
        index_B=torch.arange(first, first + count),
        keys_B3=torch.tensor([[0, 0, k] for k in range(first, first + count)]),
    )


def zoom(view: Draw) -> torch.Tensor:
    """How many times larger the augmented faces are."""
    return torch.linalg.det(view.affine_B33).abs().rsqrt()


def photos_of(batch: Batch) -> torch.Tensor:
    return batch.photos_BHW3.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("size", [32, 64, 128])
def test_drawing_nothing_shows_the_face_as_it_is(size: int) -> None:
    batch = make_batch()
    view = draw(NO_AUGMENTATION, batch)
    torch.testing.assert_close(whole(batch, view, size), whole(batch, None, size), rtol=0, atol=2e-4)
    assert torch.equal(whole_labels(batch, view, size), whole_labels(batch, None, size))
    for given, own in zip(parts_of(batch, view), parts_of(batch, None), strict=True):
        torch.testing.assert_close(given, own)
    torch.testing.assert_close(theta_frame(view, batch.sizes_B2), torch.eye(3).expand(2, 3, 3))


def test_whole_labels_are_those_of_the_nearest_pixels() -> None:
    batch = make_batch()
    labels_BSS = whole_labels(batch, None, 50)
    for b, (height, width) in enumerate(SIZES):
        ys = ((np.arange(50) + 0.5) * height / 50 - 0.5).round().astype(int)
        xs = ((np.arange(50) + 0.5) * width / 50 - 0.5).round().astype(int)
        agree = labels_BSS[b].numpy() == batch.labels_BHW[b].numpy()[ys][:, xs]
        assert agree.mean() > 0.98  # half-way pixels may go either way


@pytest.mark.parametrize("block", range(5))
def test_parts_are_where_the_augmented_photo_shows_them(block: int) -> None:
    batch, size = make_batch(20, 20 * block), 256
    view = draw(ANY, batch)
    assert view.mirrored_B.any()
    assert not view.mirrored_B.all()
    labels_BSS, photo_B3SS = whole_labels(batch, view, size), whole(batch, view, size)
    centres_BP2, _, present_BP = parts_of(batch, view)
    assert present_BP.float().mean() > 0.9
    checked = 0
    for b, (height, width) in enumerate(batch.sizes_B2.tolist()):
        for part, own in enumerate(PART_LABELS):
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
                name = MIRROR_LABELS[own[0]] if view.mirrored_B[b] else own[0]
                colour = torch.from_numpy(COLOURS[name]).float() / 255
                torch.testing.assert_close(photo_B3SS[b, :, v, u], colour, rtol=0, atol=0.05)
            checked += 1
    assert checked > 90


def test_a_mirror_swaps_sides() -> None:
    batch = make_batch()
    view = draw(Augmentation(mirror=1), batch)
    lut = torch.tensor(MIRROR_LABELS, dtype=torch.uint8)
    assert torch.equal(whole_labels(batch, view, 64), lut[whole_labels(batch, None, 64).flip(-1).long()])
    torch.testing.assert_close(whole(batch, view, 64), whole(batch, None, 64).flip(-1), rtol=0, atol=2e-3)
    centres_BP2, extents_BP2, _ = parts_of(batch, view)
    width_B = batch.sizes_B2[:, 1]
    torch.testing.assert_close(centres_BP2[:, 0, 0], width_B - 1 - batch.centres_BP2[:, 1, 0])
    torch.testing.assert_close(centres_BP2[:, 3, 1], batch.centres_BP2[:, 2, 1])
    torch.testing.assert_close(extents_BP2[:, 0], batch.extents_BP2[:, 1])
    assert (centres_BP2[:, 0, 0] < centres_BP2[:, 1, 0]).all()  # brow1 stays on the image's left
    labels = torch.tensor([[0, 1, 2], [3, 4, 8]], dtype=torch.uint8)
    assert mirror_labels(labels, torch.tensor([True, False])).tolist() == [[0, 2, 1], [3, 4, 8]]


def test_extents_turn_as_those_of_ellipses_do() -> None:
    batch = make_batch()
    _, extents_BP2, _ = parts_of(batch, draw(Augmentation(rotation=40), batch))
    radians = torch.linspace(0, 2 * torch.pi, 10_001, dtype=torch.float64)
    for b, view in enumerate(draw(Augmentation(rotation=40), batch).affine_B33.double().inverse()):
        wide, high = batch.extents_BP2[b, 0].tolist()
        ellipse_2N = torch.stack([wide / 2 * radians.cos(), high / 2 * radians.sin()])
        turned_2N = view[:2, :2] @ ellipse_2N
        extent_2 = turned_2N.amax(1) - turned_2N.amin(1)
        torch.testing.assert_close(extents_BP2[b, 0].double(), extent_2, rtol=1e-4, atol=1e-3)


def test_stretch_changes_the_shape_of_half_of_the_faces_and_the_size_of_none() -> None:
    batch = make_batch(100)
    view = draw(Augmentation(stretch=0.5), batch)
    assert torch.equal(view.affine_B33[:, 0, 1], torch.zeros(100))
    torch.testing.assert_close(zoom(view), torch.ones(100))
    shape_B = (view.affine_B33[:, 1, 1] / view.affine_B33[:, 0, 0]).log()
    assert 35 < (shape_B.abs() < 1e-6).sum() < 65
    assert 0.4 < shape_B.max() <= 0.5
    assert -0.5 <= shape_B.min() < -0.4
    _, extents_BP2, _ = parts_of(batch, view)
    stretched_B1 = (extents_BP2 / batch.extents_BP2)[:, :1].log()
    torch.testing.assert_close(stretched_B1[..., 0] - stretched_B1[..., 1], shape_B[:, None], rtol=0, atol=1e-4)


def test_scale_makes_the_face_larger_about_the_middle() -> None:
    batch = make_batch()
    centres_BP2, extents_BP2, _ = parts_of(batch, draw(Augmentation(scale=(1.25, 1.25)), batch))
    middle_B12 = (batch.sizes_B2.flip(-1).float() - 1)[:, None] / 2
    torch.testing.assert_close(centres_BP2 - middle_B12, 1.25 * (batch.centres_BP2 - middle_B12), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(extents_BP2, 1.25 * batch.extents_BP2)


def test_rotation_keeps_distances_from_the_middle_and_stays_in_range() -> None:
    batch = make_batch(200)
    centres_BP2, _, _ = parts_of(batch, draw(Augmentation(rotation=15), batch))
    middle_B12 = (batch.sizes_B2.flip(-1).float() - 1)[:, None] / 2
    before, after = (torch.view_as_complex((c - middle_B12).contiguous()) for c in (batch.centres_BP2, centres_BP2))
    torch.testing.assert_close(after.abs(), before.abs(), rtol=1e-4, atol=1e-3)
    degrees_BP = (after / before).angle().rad2deg()
    torch.testing.assert_close(degrees_BP, degrees_BP[:, :1].expand(-1, 6), rtol=0, atol=0.02)
    assert 13 < degrees_BP.max() < 15.01
    assert -15.01 < degrees_BP.min() < -13


def test_parts_whose_centre_leaves_the_photo_count_as_missing() -> None:
    batch = make_batch(100)
    centres_BP2, _, present_BP = parts_of(batch, draw(Augmentation(shift=0.6), batch))
    size_B12 = batch.sizes_B2.flip(-1)[:, None]
    inside_BP = ((centres_BP2 >= 0) & (centres_BP2 <= size_B12 - 1)).all(-1)
    assert torch.equal(present_BP, inside_BP)
    assert 0.1 < present_BP.float().mean() < 0.9
    moved_BP2 = (centres_BP2 - batch.centres_BP2) / size_B12
    assert (moved_BP2 - moved_BP2[:, :1]).abs().max() < 1e-4
    assert 0.55 < moved_BP2.abs().max() <= 0.6001


@pytest.mark.parametrize("fold", range(5))
def test_fold_k_applies_exactly_k_operations(fold: int) -> None:
    batch = replace(make_batch(40), keys_B3=torch.tensor([[1, 2, 5 * k + fold] for k in range(40)]))
    view = draw(PAPER_AUGMENTATION, batch)
    rotated = view.affine_B33[:, 0, 1] != 0
    zoomed = (zoom(view) - 1).abs() > 1e-5
    shifted = view.affine_B33[:, :2, 2].abs().amax(1) > 0
    noisy = view.noise_B > 0
    applied_BO = torch.stack([rotated, shifted, zoomed, noisy], 1)
    assert applied_BO.sum(1).tolist() == [fold] * 40
    if fold in (1, 2, 3):
        assert (applied_BO.any(0) & ~applied_BO.all(0)).all()  # each operation in turn
    assert not view.mirrored_B.any()


def test_a_draw_does_not_depend_on_the_rest_of_the_batch() -> None:
    everything = replace(PAPER_AUGMENTATION, folds=1, tone=0.8, mirror=0.5)
    together, alone = make_batch(4), make_batch(1, 2)
    views = [draw(everything, batch) for batch in (together, alone)]
    for one, two in zip(*views, strict=True):
        assert torch.equal(one[2:3], two)
    assert torch.equal(whole(together, views[0], 64)[2:3], whole(alone, views[1], 64))
    torch.testing.assert_close(parts_of(together, views[0])[0][2:3], parts_of(alone, views[1])[0], rtol=0, atol=1e-4)
    again = draw(everything, together)
    assert all(torch.equal(one, two) for one, two in zip(again, views[0], strict=True))
    other_epoch = draw(everything, replace(together, keys_B3=together.keys_B3 + torch.tensor([0, 1, 0])))
    assert not torch.equal(other_epoch.affine_B33, again.affine_B33)


def test_crops_through_the_theta_frame_equal_crops_of_the_augmented_photo() -> None:
    batch = make_batch(12)
    smooth = np.stack([cv2.GaussianBlur(photo, (0, 0), 3) for photo in batch.photos_BHW3.numpy()])
    batch = replace(batch, photos_BHW3=torch.from_numpy(smooth))
    view = draw(ANY, batch)
    theta_BP23 = target_theta(*parts_of(batch, view), batch.sizes_B2, 33, 1.6, 1.0)
    through = compose(theta_frame(view, batch.sizes_B2), theta_BP23)
    crops_BP3SS = crop(batch.photos_BHW3, through, 33, batch.sizes_B2)
    labels_BPSS = mirror_labels(crop_labels(batch.labels_BHW, through, 33, batch.sizes_B2), view.mirrored_B)
    lut = np.array(MIRROR_LABELS, np.uint8)
    for b, (height, width) in enumerate(batch.sizes_B2.tolist()):
        to_middle, from_middle = np.eye(3), np.eye(3)
        to_middle[:2, 2] = -(width - 1) / 2, -(height - 1) / 2
        from_middle[:2, 2] = (width - 1) / 2, (height - 1) / 2
        matrix = (from_middle @ view.affine_B33[b].numpy() @ to_middle)[:2]
        drawn, labels = (
            cv2.warpAffine(picture[:height, :width], matrix, (width, height), flags=how | cv2.WARP_INVERSE_MAP)
            for picture, how in (
                (batch.photos_BHW3[b].numpy(), cv2.INTER_LINEAR),
                (batch.labels_BHW[b].numpy(), cv2.INTER_NEAREST),
            )
        )
        rendered = torch.from_numpy(drawn).permute(2, 0, 1)[None].float() / 255
        assert (crop(rendered.permute(0, 2, 3, 1), theta_BP23[b : b + 1], 33)[0] - crops_BP3SS[b]).abs().mean() < 0.01
        labels = torch.from_numpy(lut[labels] if view.mirrored_B[b] else labels)[None]
        expected_PSS = crop_labels(labels, theta_BP23[b : b + 1], 33, batch.sizes_B2[b : b + 1])[0]
        assert (expected_PSS == labels_BPSS[b]).float().mean() > 0.95
        assert (expected_PSS > 0).float().mean() > 0.05


def test_noise_and_tone_touch_the_photo_alone_and_stay_in_range() -> None:
    batch = make_batch(8)
    view = draw(Augmentation(noise=0.5, tone=2), batch)
    photo_B3SS = whole(batch, view, 64)
    crops_BP3SS = crops_of(view, torch.rand(8, 6, 3, 9, 9))
    for values in (photo_B3SS, crops_BP3SS):
        assert values.min() >= 0
        assert values.max() <= 1
        assert values.isfinite().all()
    assert (photo_B3SS - whole(batch, None, 64)).abs().mean() > 0.1
    assert torch.equal(whole_labels(batch, view, 64), whole_labels(batch, None, 64))
    torch.testing.assert_close(parts_of(batch, view)[0], batch.centres_BP2)


def test_noise_has_the_deviation_that_was_drawn_and_is_each_face_s_own() -> None:
    batch = make_batch(6)
    view = draw(Augmentation(noise=0.1), batch)
    grey_BP3SS = torch.full((6, 6, 3, 40, 40), 0.5)
    noise_BN = (crops_of(view, grey_BP3SS.clone()) - 0.5).flatten(1)
    torch.testing.assert_close(noise_BN.std(1), view.noise_B, rtol=0.03, atol=1e-4)
    assert (torch.corrcoef(noise_BN) - torch.eye(6)).abs().max() < 0.1  # each face has noise of its own
    assert view.noise_B.max() <= 0.1
    assert crops_of(None, grey_BP3SS) is grey_BP3SS


def test_windows_jitter_by_a_share_of_their_side_from_the_face_s_own_key() -> None:
    batch = make_batch(50)
    theta_BP23 = target_theta(batch.centres_BP2, batch.extents_BP2, batch.present_BP, batch.sizes_B2, 33, 1.6, 1.0)
    assert jitter_windows(theta_BP23, batch, 0) is theta_BP23
    moved_BP23 = jitter_windows(theta_BP23, batch, 0.1)
    sides_BP2 = 2 * torch.diagonal(theta_BP23[..., :2], dim1=-2, dim2=-1)
    shift_BP2 = (moved_BP23 - theta_BP23)[..., 2] / sides_BP2
    assert 0.09 < shift_BP2.abs().max() <= 0.1001
    resized_BP = moved_BP23[..., 0, 0] / theta_BP23[..., 0, 0]
    torch.testing.assert_close(resized_BP, moved_BP23[..., 1, 1] / theta_BP23[..., 1, 1])
    assert resized_BP.log().abs().max() <= 0.1001
    assert resized_BP.std() > 0.01
    alone = make_batch(1, 7)
    torch.testing.assert_close(jitter_windows(theta_BP23[7:8], alone, 0.1), moved_BP23[7:8])


@pytest.mark.parametrize("wrong", [{"rotation": -1}, {"scale": (0, 1)}, {"scale": (1.2, 0.8)}, {"folds": 3}])
def test_ranges_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Augmentation(**wrong)


def test_reduced_precision_does_not_reach_the_geometry() -> None:
    batch = make_batch()
    view = draw(Augmentation(rotation=15, shift=0.1, scale=(0.8, 1.2), mirror=0.5), batch)

    def geometry() -> list[torch.Tensor]:
        looks = [whole(batch, view, 32), whole_labels(batch, view, 32), theta_frame(view, batch.sizes_B2)]
        return [*looks, *parts_of(batch, view)]

    plain = geometry()
    with torch.autocast("cpu", torch.bfloat16):
        reduced = geometry()
    assert all(torch.equal(one, two) for one, two in zip(plain, reduced, strict=True))


def test_blur_is_torchvisions_and_leaves_half_of_the_faces_sharp() -> None:
    torch.manual_seed(0)
    crops_BP3SS = torch.rand(24, 2, 3, 31, 31) * 0.8 + 0.1
    view = draw(Augmentation(blur=2.0), make_batch(24))
    blurred_BP3SS = crops_of(view, crops_BP3SS)
    sharp_B = view.blur_B == 0
    assert 6 <= sharp_B.sum() <= 18
    assert view.blur_B.max() <= 2
    torch.testing.assert_close(blurred_BP3SS[sharp_B], crops_BP3SS[sharp_B])
    for b in (~sharp_B).nonzero().flatten().tolist():
        expected = gaussian_blur(crops_BP3SS[b], [9, 9], [float(view.blur_B[b])] * 2)
        torch.testing.assert_close(blurred_BP3SS[b, ..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4])


def test_with_subsets_faces_get_any_number_of_operations_in_one_pass_too() -> None:
    a = Augmentation(rotation=15, shift=0.2, scale=(0.8, 1.2), noise=0.05, subsets=True)
    view = draw(a, make_batch(100))
    turned_B = view.affine_B33[:, 0, 1].abs() > 1e-6
    shares = torch.stack([turned_B, (zoom(view) - 1).abs() > 1e-5, view.noise_B > 0], 1).float().mean(0)
    assert ((shares > 0.35) & (shares < 0.65)).all()
    assert draw(Augmentation(noise=0.05), make_batch(100)).noise_B.gt(0).all()
