"""Missing parts: presumed where the others say, and never in the way of those that are there."""

import math

import numpy as np
import pytest
import torch

from data.cache import label_geometry, part_geometry
from data.datasets.synthetic import draw_face
from data.labels import HELEN, NUM_PARTS
from data.view import Parts
from models.stn_icnn.localizer import FACE_LAYOUT, PART_SHAPES
from models.stn_icnn.windows import Windows, complete, target_theta, window_sides
from training.losses import theta_loss

SIZES = torch.tensor([[200, 160]])


def layout_face(scale: float = 50, degrees: float = 0, x: float = 80, y: float = 100) -> torch.Tensor:
    """FACE_LAYOUT's centres, turned, enlarged and moved: (1, P, 2) in pixels."""
    turn = math.radians(degrees)
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return (FACE_LAYOUT[:, :2] @ rotation * scale + torch.tensor([x, y]))[None]


def real_faces(count: int = 12) -> Parts:
    """Drawn faces that show all six parts."""
    records = np.stack([label_geometry(draw_face(5, k, 160)[1], len(HELEN)) for k in range(3 * count)])
    present, centres, extents = part_geometry(records, HELEN.part_ids)
    whole = present.all(1).nonzero()[0][:count]
    return Parts(*(torch.from_numpy(values[whole]) for values in (centres, extents, present)))


@pytest.mark.parametrize("missing", [(4,), (0, 1), (0, 1, 2, 3), (1, 3, 4, 5)])
@pytest.mark.parametrize(("scale", "degrees", "x", "y"), [(50, 0, 80, 100), (70, 25, 60, 120), (30, -160, 10, 5)])
def test_a_turned_and_enlarged_layout_is_completed_exactly(missing, scale, degrees, x, y):
    truth_1P2 = layout_face(scale, degrees, x, y)
    present_1P = torch.tensor([[part not in missing for part in range(NUM_PARTS)]])
    centres_1P2, sides_1P = complete(truth_1P2 * present_1P[..., None], present_1P, SIZES)
    torch.testing.assert_close(centres_1P2, truth_1P2, rtol=0, atol=2e-3)
    torch.testing.assert_close(sides_1P[0], 2 * scale * FACE_LAYOUT[:, 2], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("margin", [0.0, 1.6])
@pytest.mark.parametrize("missing", range(NUM_PARTS))
def test_a_missing_part_moves_no_other_window(missing, margin):
    centres_BP2, extents_BP2, present_BP = faces = real_faces()
    sizes_B2 = torch.tensor([[160, 160]]).expand(len(centres_BP2), 2)
    whole_BP23 = target_theta(faces, sizes_B2, Windows(81, margin, 1.0))
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


def test_one_part_carries_a_layout_of_the_photo_s_scale():
    centres_1P2 = torch.zeros(1, 6, 2)
    centres_1P2[0, 4] = torch.tensor([90.0, 120.0])
    present_1P = torch.tensor([[False] * 4 + [True, False]])
    filled_1P2, sides_1P = complete(centres_1P2, present_1P, SIZES)
    half = (160 - 1) / 2
    assert filled_1P2[0, 4].tolist() == [90, 120]
    expected_P2 = torch.tensor([90.0, 120.0]) + half * (FACE_LAYOUT[:, :2] - FACE_LAYOUT[4, :2])
    torch.testing.assert_close(filled_1P2[0], expected_P2)
    torch.testing.assert_close(sides_1P[0], 2 * half * FACE_LAYOUT[:, 2])


def test_no_part_at_all_leaves_the_layout_in_the_photo_s_middle():
    filled_1P2, sides_1P = complete(torch.zeros(1, 6, 2), torch.zeros(1, 6, dtype=torch.bool), SIZES)
    expected_P2 = torch.tensor([79.5, 99.5]) + 79.5 * FACE_LAYOUT[:, :2]
    torch.testing.assert_close(filled_1P2[0], expected_P2)
    assert (sides_1P > 0).all()
    nothing = Parts(torch.zeros(1, 6, 2), torch.zeros(1, 6, 2), torch.zeros(1, 6, dtype=torch.bool))
    theta_1P23 = target_theta(nothing, SIZES, Windows(81, 1.6, 1.0))
    assert theta_1P23.isfinite().all()


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


def test_the_sides_of_oblong_windows_follow_both_extents():
    extents_1P2 = torch.tensor([[[40.0, 30.0], [30.0, 40.0], [40.0, 5.0], [5.0, 40.0], [40.0, 40.0]]])
    assert window_sides(extents_1P2, 1.5, 0.5)[0].tolist() == [[60, 45], [45, 60], [60, 30], [30, 60], [60, 60]]
    assert window_sides(extents_1P2, 1.5, 1.0)[0].tolist() == [[60, 60]] * 5
    limits = torch.tensor([[[20.0]]]), torch.tensor([[[50.0]]])
    assert window_sides(extents_1P2, 1.5, 0.5, limits)[0].tolist() == [[50, 45], [45, 50], [50, 25], [25, 50], [50, 50]]


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


def test_missing_parts_weigh_nothing_in_the_theta_loss():
    present_1P = torch.tensor([[True, True, False, True, True, False]])
    target_1P23 = target_theta(
        Parts(layout_face(), torch.full((1, 6, 2), 10.0), present_1P), SIZES, Windows(81, 1.6, 1.0)
    )
    guess_1P23 = (target_1P23 + 0.2).requires_grad_()
    theta_loss(guess_1P23, target_1P23, present_1P).backward()
    assert guess_1P23.grad is not None
    free = torch.tensor([[True, False, True], [False, True, True]])
    assert torch.equal(guess_1P23.grad[0] != 0, present_1P[0, :, None, None] & free)
