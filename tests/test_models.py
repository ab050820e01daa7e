"""The same tests for each network, what is particular to one of them, and windows: those of missing parts too."""

import math

import numpy as np
import pytest
import torch

from data.cache import label_geometry, part_geometry
from data.datasets.synthetic import draw_face
from data.labels import HELEN, MIRROR_PARTS, NINE, NUM_PARTS
from data.view import Parts
from geometry.theta import window_theta
from models.stn_icnn.baseline import baseline_theta
from models.stn_icnn.localizer import FACE_LAYOUT, PART_SHAPES, build_localizer
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from models.stn_icnn.parts import part_targets
from models.stn_icnn.windows import Windows, complete, target_theta
from tests.fixtures import lively


def test_part_targets_keep_only_the_part():
    labels = torch.arange(len(NINE), dtype=torch.uint8).view(1, 1, 3, 3).expand(1, NUM_PARTS, 3, 3)
    targets = part_targets(labels)
    assert [target.flatten().tolist() for target in targets[:2]] == [[0, 1, *[0] * 7], [0, 0, 1, *[0] * 6]]
    assert targets[5].flatten().tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3]
    assert all(target.dtype == torch.int64 for target in targets)


def test_the_papers_localizer_starts_at_a_frontal_face_without_shear():
    network = build_localizer("paper").eval()
    torch.nn.init.normal_(network.linear.weight, std=2e-3)
    theta = network(torch.rand(2, 9, 128, 128).softmax(1))
    assert not theta[:, :, [0, 1], [1, 0]].any()  # shear
    torch.testing.assert_close(theta[:, :, :, 2], FACE_LAYOUT[:, :2].expand(2, 6, 2), rtol=0, atol=0.1)
    for axis in (0, 1):
        torch.testing.assert_close(theta[:, :, axis, axis], FACE_LAYOUT[:, 2].expand(2, 6), rtol=0, atol=0.1)


def test_the_old_cropper_puts_windows_on_the_rough_centroids_and_at_the_photos_centre_for_a_missing_part():
    rough = torch.zeros(1, 64, 64, dtype=torch.uint8)
    rough[0, 10:13, 20:25] = 1  # centroid (22, 11)
    rough[0, 40:43, 29:36] = 6  # with the lower lip: one mouth, centroid (32, 42)
    rough[0, 42:45, 29:36] = 8
    sizes = torch.tensor([[128, 256]])
    theta = baseline_theta(rough, sizes, Windows(21, 0, 1))
    centres = [((22 + 0.5) * 4 - 0.5, (11 + 0.5) * 2 - 0.5), *[(127, 63)] * 4, ((32 + 0.5) * 4 - 0.5, None)]
    mouth = rough[0].ge(6).nonzero()[:, 0].float().mean().item()
    centres[5] = (centres[5][0], (mouth + 0.5) * 2 - 0.5)
    whole = torch.tensor([centres]).round()
    torch.testing.assert_close(theta, window_theta(whole, torch.full((1, 6, 1), 21.0), sizes))
    sides = torch.tensor([[1.5 * 5 * 4, 21, 21, 21, 21, 1.5 * 7 * 4]])  # the photo is 4 times as wide, 2 times as high
    low = torch.tensor([[0.6 * 1.5 * 5 * 4, 21, 21, 21, 21, 0.6 * 1.5 * 7 * 4]])  # of 9 and 15 rows
    oblong = window_theta(whole, torch.stack([sides, low], -1).round(), sizes)
    torch.testing.assert_close(baseline_theta(rough, sizes, Windows(21, 1.5, 0.6)), oblong)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("localizer", "vgg"), ("frame", "page"), ("paste", "cubic"), ("coarse_size", 8), ("coarse_size", 100_000)),
        *(("crop_size", 1), ("window_margin", -1.0), ("canvas", 0), ("kernel", 4), ("part_channels", (8, 16, 24))),
        *(("coarse_channels", (8, 16, 24, 0)), ("part_channels", [8, 16, 24, 32])),
    ],
)
def test_a_config_refuses_what_it_cannot_mean(field, value):
    with pytest.raises(ValueError, match=field.replace("_", " ")):
        STNiCNNConfig(**{field: value})


def test_the_released_localizer_refuses_another_size_than_its_own():
    with pytest.raises(ValueError, match="coarse_size of 128, not 64"):
        STNiCNNConfig(coarse_size=64, localizer="released")


def test_theta_keeps_its_digits_under_autocast():
    model = STNiCNN(STNiCNNConfig()).eval()
    logits_B9hw, sizes_B2 = torch.randn(2, 9, 128, 128), torch.tensor([[300, 400], [512, 512]])
    plain = model.locate(logits_B9hw, sizes_B2)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = model.locate(logits_B9hw, sizes_B2)
    assert torch.equal(plain, reduced)


@pytest.mark.parametrize("size", [(200, 160), (512, 512), (700, 1000)])
def test_windows_of_fixed_pixels_start_at_that_many_pixels_whatever_the_photo_s_size(size):
    model = STNiCNN(STNiCNNConfig(crop_size=81, window_margin=0)).eval()
    torch.nn.init.zeros_(model.localizer.linear.weight)
    theta_BP23 = model.locate(torch.zeros(1, 9, 128, 128), torch.tensor([size]))
    span_2 = torch.tensor([size[1] - 1, size[0] - 1])
    sides_P2 = torch.diagonal(theta_BP23[0, :, :, :2], dim1=-2, dim2=-1) * span_2 + 1
    assert torch.allclose(sides_P2, torch.full((6, 2), 81.0), atol=1e-3)


def test_with_mirroring_a_mirrored_photo_gets_the_mirrored_labels():
    model = lively(STNiCNN(STNiCNNConfig(coarse_size=32, crop_size=33)))
    images = torch.rand(2, 3, 64, 64)
    crops_BP3SS = torch.rand(2, 6, 3, 33, 33)
    before = model.parts(crops_BP3SS)
    model.mirrored()
    logits, mirrored = model.coarse(images), model.coarse(images.flip(-1))
    torch.testing.assert_close(mirrored, logits.flip(-1)[:, list(NINE.mirror)], rtol=1e-4, atol=1e-5)
    parts = model.parts(crops_BP3SS)
    mirrored_parts = model.parts(crops_BP3SS[:, list(MIRROR_PARTS)].flip(-1))
    for part, other in enumerate(MIRROR_PARTS):
        torch.testing.assert_close(mirrored_parts[part], parts[other].flip(-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(parts[0], before[0])
    assert not torch.allclose(parts[5], before[5], atol=1e-3)


SIZES = torch.tensor([[200, 160]])


def layout_face(scale: float = 50, degrees: float = 0, x: float = 80, y: float = 100) -> torch.Tensor:
    """FACE_LAYOUT's centres, turned, enlarged and moved: (1, P, 2) in pixels."""
    turn = math.radians(degrees)
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return (FACE_LAYOUT[:, :2] @ rotation * scale + torch.tensor([x, y]))[None]


@pytest.fixture(scope="module")
def real_faces() -> Parts:
    """Twelve drawn faces that show all six parts."""
    records = np.stack([label_geometry(draw_face(6, k, 160)[1], len(HELEN)) for k in range(36)])
    present, centres, extents = part_geometry(records, HELEN.part_ids)
    whole = present.all(1).nonzero()[0][:12]
    return Parts(*(torch.from_numpy(values[whole]) for values in (centres, extents, present)))


@pytest.mark.parametrize("missing", [(4,), (0, 1, 2, 3), (1, 3, 4, 5)])
@pytest.mark.parametrize(("scale", "degrees", "x", "y"), [(70, 25, 60, 120), (30, -160, 10, 5)])
def test_a_turned_and_enlarged_layout_is_completed_exactly(missing, scale, degrees, x, y):
    truth_1P2 = layout_face(scale, degrees, x, y)
    present_1P = torch.tensor([[part not in missing for part in range(NUM_PARTS)]])
    centres_1P2, sides_1P = complete(truth_1P2 * present_1P[..., None], present_1P, SIZES)
    torch.testing.assert_close(centres_1P2, truth_1P2, rtol=0, atol=2e-3)
    torch.testing.assert_close(sides_1P[0], 2 * scale * FACE_LAYOUT[:, 2], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("margin", [0.0, 1.6])
@pytest.mark.parametrize("missing", range(NUM_PARTS))
def test_a_missing_part_moves_no_other_window(missing, margin, real_faces):
    centres_BP2, extents_BP2, present_BP = real_faces
    sizes_B2 = torch.tensor([[160, 160]]).expand(len(centres_BP2), 2)
    whole_BP23 = target_theta(real_faces, sizes_B2, Windows(81, margin, 1.0))
    keep_P = torch.arange(NUM_PARTS) != missing
    kept = Parts(centres_BP2 * keep_P[:, None], extents_BP2 * keep_P[:, None], present_BP & keep_P)
    theta_BP23 = target_theta(kept, sizes_B2, Windows(81, margin, 1.0))
    assert torch.equal(theta_BP23[:, keep_P, :, 2], whole_BP23[:, keep_P, :, 2])
    if margin == 0:
        assert torch.equal(theta_BP23[:, keep_P], whole_BP23[:, keep_P])
    ratio_BP = theta_BP23[:, keep_P, 0, 0] / whole_BP23[:, keep_P, 0, 0]
    assert (ratio_BP - 1).abs().median() < 1e-6  # only sides at a bound of the usual may follow it
    assert (ratio_BP.log().abs() < 0.3).all()
    miss_B2 = (theta_BP23 - whole_BP23)[:, missing, :, 2] * 79.5
    assert miss_B2.norm(dim=-1).max() < 16  # a tenth of the photo
    assert miss_B2.norm(dim=-1).median() < 8


def test_one_part_carries_a_layout_of_the_photo_s_scale_and_none_leaves_it_in_the_middle():
    centres_BP2, present_BP = torch.zeros(2, 6, 2), torch.zeros(2, 6, dtype=torch.bool)
    centres_BP2[0, 4], present_BP[0, 4] = torch.tensor([90.0, 120.0]), True
    sizes_B2, half = SIZES.expand(2, 2), (160 - 1) / 2
    filled_BP2, sides_BP = complete(centres_BP2, present_BP, sizes_B2)
    expected_P2 = torch.tensor([90.0, 120.0]) + half * (FACE_LAYOUT[:, :2] - FACE_LAYOUT[4, :2])
    torch.testing.assert_close(filled_BP2[0], expected_P2)
    torch.testing.assert_close(filled_BP2[1], torch.tensor([79.5, 99.5]) + half * FACE_LAYOUT[:, :2])
    torch.testing.assert_close(sides_BP, (2 * half * FACE_LAYOUT[:, 2]).expand(2, 6))
    theta_BP23 = target_theta(Parts(centres_BP2, torch.zeros(2, 6, 2), present_BP), sizes_B2, Windows(81, 1.6, 1.0))
    assert theta_BP23.isfinite().all()


def test_windows_of_the_paper_have_crop_size_pixels():
    present_1P = torch.ones(1, 6, dtype=torch.bool)
    theta_1P23 = target_theta(Parts(layout_face(), torch.full((1, 6, 2), 10.0), present_1P), SIZES, Windows(81, 0, 1.0))
    torch.testing.assert_close(theta_1P23[0, :, 0, 0], torch.full((6,), 80 / 159))
    torch.testing.assert_close(theta_1P23[0, :, 1, 1], torch.full((6,), 80 / 199))
    torch.testing.assert_close(theta_1P23[0, :, 0, 2], -1 + 2 * layout_face()[0, :, 0] / 159)
    assert not theta_1P23[..., 0, 1].any()
    assert not theta_1P23[..., 1, 0].any()


def test_windows_that_follow_the_part_keep_to_bounds_around_the_usual():
    present_1P = torch.ones(1, 6, dtype=torch.bool)
    usual_P = 2 * 50 * FACE_LAYOUT[:, 2]
    extents_1P2 = torch.stack([usual_P / 1.6, usual_P / 4], -1)[None].clone()
    extents_1P2[0, 0], extents_1P2[0, 1] = 1, 500
    theta_1P23 = target_theta(Parts(layout_face(), extents_1P2, present_1P), SIZES, Windows(81, 1.6, 1.0))
    sides_P = theta_1P23[0, :, 0, 0] * 159 + 1
    torch.testing.assert_close(sides_P[2:], usual_P[2:], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(sides_P[:2], torch.stack([0.6 * usual_P[0], 1.8 * usual_P[1]]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("aspect", [0.5, 1.0])
def test_a_missing_part_s_window_has_the_usual_shape_of_one_that_is_there(aspect):
    extents_P2 = 2 * 50 / 1.6 * FACE_LAYOUT[:, 2:] * PART_SHAPES
    theta = [
        target_theta(
            Parts(layout_face(), extents_P2[None] * present, present.T[None, 0].bool()), SIZES, Windows(81, 1.6, aspect)
        )
        for present in (torch.ones(6, 1), torch.tensor([[1.0]] * 3 + [[0.0]] + [[1.0]] * 2))
    ]
    torch.testing.assert_close(*theta, rtol=0, atol=1e-4)
    shape_P = theta[0][0, :, 1, 1] * 199 / (theta[0][0, :, 0, 0] * 159)
    assert shape_P[4] > 1.2 if aspect < 1 else (shape_P - 1).abs().max() < 0.01
    assert (shape_P[:4] < 0.6).all() == (aspect < 1)
