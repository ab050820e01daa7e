"""Theta, crop, paste and stretch: the geometry between photo, windows and label map (paper section 2.3).

A theta (2x3) maps the normalised coordinates of a crop to those of the photo. Normalised coordinates run
from -1 (centre of the first pixel) to 1 (centre of the last), ``align_corners=True`` throughout; x before y.
Photos of different sizes share a batch by zero padding at the right and bottom; ``sizes_B2`` holds their own
(height, width) in pixels.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# A part that is not seen may throw its window anywhere; these keep a window invertible and of finite area.
MIN_SCALE = 1e-3
EPSILON = torch.finfo(torch.float32).eps


def window_theta(centres_BP2: Tensor, sides_BP2: Tensor, sizes_B2: Tensor) -> Tensor:
    """Windows to theta_BP23: s = (P - 1) / (W - 1), t = -1 + 2 c / (W - 1) (paper eq. 21, the form
    of the released code, which samples exactly on the pixel grid for an odd P and an integer c).

    centres_BP2: (x, y) in pixels. sides_BP2: window sides (x, y) in pixels; (B, P, 1) for square windows.
    """
    span_B12 = (sizes_B2.flip(-1).to(centres_BP2.dtype) - 1).clamp(min=1).unsqueeze(1)
    scale_BP2 = (sides_BP2 - 1) / span_B12
    shift_BP2 = -1 + 2 * centres_BP2 / span_B12
    return torch.cat([torch.diag_embed(scale_BP2), shift_BP2.unsqueeze(-1)], -1)


def compose(outer_B33: Tensor, theta_BP23: Tensor) -> Tensor:
    """The theta that first applies ``theta_BP23``, then ``outer_B33`` (any affine)."""
    # elementwise: autocast would run a matrix product in half precision, which is pixels off
    linear_BP23 = (outer_B33[:, None, :2, :2, None] * theta_BP23[:, :, None]).sum(3)
    return torch.cat([linear_BP23[..., :2], linear_BP23[..., 2:] + outer_B33[:, None, :2, 2:]], -1)


def scale_and_shift(scale_B2: Tensor, shift_B2: Tensor) -> Tensor:
    """Matrices B33 of x -> scale * x + shift."""
    matrix_B33 = scale_B2.new_zeros(scale_B2.shape[0], 3, 3)
    matrix_B33[:, 0, 0], matrix_B33[:, 1, 1] = scale_B2[:, 0], scale_B2[:, 1]
    matrix_B33[:, :2, 2], matrix_B33[:, 2, 2] = shift_B2, 1
    return matrix_B33


def canvas_to_image(sizes_B2: Tensor, canvas: int) -> Tensor:
    """B33: normalised coordinates of the centred square zero-padded canvas -> those of the photo itself.

    The released networks predict theta on such a canvas (1024 for HELEN). The photo's corner lies at
    ``(canvas - size) // 2``; a photo larger than the canvas is seen through it.
    """
    size_B2 = sizes_B2.flip(-1)
    offset_B2 = torch.div(canvas - size_B2, 2, rounding_mode="floor").float()
    span_B2 = (size_B2.float() - 1).clamp(min=1)
    scale_B2 = (canvas - 1) / span_B2
    # x_canvas_px = (x + 1) (canvas - 1) / 2;  x_image = 2 (x_canvas_px - offset) / span - 1
    return scale_and_shift(scale_B2, scale_B2 - 2 * offset_B2 / span_B2 - 1)


def image_to_padded(sizes_B2: Tensor, height: int, width: int) -> Tensor:
    """B33: normalised coordinates of each photo -> those of the batch it is padded into (at right and bottom)."""
    span_B2 = (sizes_B2.flip(-1).float() - 1).clamp(min=1)
    full_2 = torch.tensor([width - 1, height - 1], dtype=torch.float32, device=sizes_B2.device).clamp(min=1)
    scale_B2 = span_B2 / full_2
    return scale_and_shift(scale_B2, scale_B2 - 1)


def frame_to_photo(frames_B23: Tensor, sizes_B2: Tensor, side: int) -> Tensor:
    """B33: normalised coordinates of squares of side x side pixels -> those of their photos.

    frames_B23: a square's coordinates, -1 to 1 from edge to edge (x, y), to pixels of its photo. sizes_B2: the photos'.
    """
    half_B2 = (sizes_B2.flip(-1).to(frames_B23.dtype) - 1).clamp(min=1) / 2
    linear_B22 = frames_B23[:, :, :2] * (1 - 1 / side) / half_B2[:, :, None]
    top_B23 = torch.cat([linear_B22, (frames_B23[:, :, 2] / half_B2 - 1)[:, :, None]], -1)
    return torch.cat([top_B23, frames_B23.new_tensor([[[0, 0, 1]]]).expand(frames_B23.shape[0], 1, 3)], 1)


def sample_points(theta_BP23: Tensor, size: int, sizes_B2: Tensor) -> Tensor:
    """Where ``size`` x ``size`` crops sample each photo: points_BPSS2 as (x, y) in its pixels, differentiable.

    Points as near to a pixel centre as rounding errors reach (1e-3 pixels at 1000) lie right on it.
    """
    ticks_S = torch.linspace(-1, 1, size, device=theta_BP23.device, dtype=theta_BP23.dtype)
    y_SS1, x_SS1 = (axis.unsqueeze(-1) for axis in torch.meshgrid(ticks_S, ticks_S, indexing="ij"))
    x_BP112, y_BP112, shift_BP112 = (column[:, :, None, None] for column in theta_BP23.unbind(-1))
    span_B1112 = (sizes_B2.flip(-1).to(theta_BP23.dtype) - 1).clamp(min=1)[:, None, None, None]
    points_BPSS2 = (x_BP112 * x_SS1 + y_BP112 * y_SS1 + shift_BP112 + 1) / 2 * span_B1112
    to_centre_BPSS2 = (points_BPSS2.round() - points_BPSS2).detach()
    near_BPSS2 = to_centre_BPSS2.abs() <= 8 * torch.finfo(theta_BP23.dtype).eps * span_B1112
    return torch.where(near_BPSS2, points_BPSS2 + to_centre_BPSS2, points_BPSS2)


def crop(
    photos_BHWC: Tensor,
    theta_BP23: Tensor,
    size: int,
    sizes_B2: Tensor | None = None,
    photo_B: Tensor | None = None,
) -> Tensor:
    """Cut windows out of photos, bilinear, zeros outside; differentiable in theta and in photos of floats.

    photos_BHWC: uint8, whose crops are scaled to [0, 1], or float. theta_BP23: in the frame of each photo.
    sizes_B2: the photos' own sizes where they are padded. photo_B: int64, the photo that each row of theta is of, where
    photos have several or none; sizes_B2 then has theta's rows too. Returns crops_BPCSS (channels last in memory),
    float.
    With an odd window of ``size`` pixels and an integer centre, the crop equals array slicing exactly (paper
    Fig. 7, 8). Only the pixels that the windows sample are read.
    """
    height, width = photos_BHWC.shape[1:3]
    if sizes_B2 is None:
        sizes_B2 = torch.tensor([[height, width]], device=theta_BP23.device).expand(len(theta_BP23), 2)
    if photo_B is None:
        photo_B = torch.arange(photos_BHWC.shape[0], device=theta_BP23.device)
    points_BPSS2 = sample_points(theta_BP23, size, sizes_B2)
    corner_BPSS2 = points_BPSS2.detach().floor()
    right_BPSS, below_BPSS = (points_BPSS2 - corner_BPSS2).unbind(-1)
    x_BPSS, y_BPSS = corner_BPSS2.nan_to_num(-2).clamp(-2, torch.sym_max(height, width)).long().unbind(-1)
    first_B111 = (photo_B * (height * width)).view(-1, 1, 1, 1)
    pixels_NC = photos_BHWC.flatten(0, 2)
    crops_BPSSC: Tensor | None = None
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = x_BPSS + dx, y_BPSS + dy
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        weight = (right_BPSS if dx else 1 - right_BPSS) * (below_BPSS if dy else 1 - below_BPSS)
        found_BPSSC = pixels_NC[torch.where(inside, first_B111 + y * width + x, 0)].to(theta_BP23.dtype)
        part_BPSSC = torch.where(inside, weight, 0).unsqueeze(-1) * found_BPSSC
        crops_BPSSC = part_BPSSC if crops_BPSSC is None else crops_BPSSC + part_BPSSC
    assert crops_BPSSC is not None
    crops_BPCSS = crops_BPSSC.permute(0, 1, 4, 2, 3)
    return crops_BPCSS / 255 if photos_BHWC.dtype == torch.uint8 else crops_BPCSS.to(photos_BHWC.dtype)


def crop_labels(labels_BHW: Tensor, theta_BP23: Tensor, size: int, sizes_B2: Tensor) -> Tensor:
    """The same windows out of label maps, nearest neighbour, 0 outside the photo.

    labels_BHW: uint8. Returns labels_BPSS, uint8.
    """
    return labels_at(labels_BHW, sample_points(theta_BP23.float(), size, sizes_B2), sizes_B2)


def labels_at(labels_BHW: Tensor, points_px: Tensor, sizes_B2: Tensor) -> Tensor:
    """Label (uint8) of the pixel nearest to each point; 0 outside the photo.

    points_px: (B, ..., 2) as (x, y) in pixels of the photo.
    """
    batch, _, width = labels_BHW.shape
    flat_BN2 = points_px.reshape(batch, -1, 2).round().long()
    x_BN, y_BN = flat_BN2.unbind(-1)
    inside_BN = (x_BN >= 0) & (y_BN >= 0) & (x_BN < sizes_B2[:, 1:]) & (y_BN < sizes_B2[:, :1])
    index_BN = torch.where(inside_BN, y_BN * width + x_BN, 0)
    found_BN = labels_BHW.reshape(batch, -1).gather(1, index_BN)
    return torch.where(inside_BN, found_BN, 0).reshape(points_px.shape[:-1])


def paste(probs: list[Tensor], theta_BP23: Tensor, height: int, width: int, mode: str = "nearest") -> Tensor:
    """Put the part probabilities back onto the photo's grid (inverse affine, paper section 2.3).

    probs: a tensor (B, 1 + labels, S, S) for each part, softmax over its channels, channel 0 background.
    theta_BP23: in the frame of the height x width grid. mode: "nearest" (paper) or "bilinear".
    Returns canvas_BKHW (float32): background, then the labels of each part in turn; background is the product over
    the parts of what their labels leave of 1.
    """
    size = probs[0].shape[-1]
    rows_BPH, columns_BPW = _paste_axes(theta_BP23, size, height, width, mode)
    return _canvas(
        _resample(probs_BKSS[:, 1:], rows_BPH[:, part], columns_BPW[:, part]) for part, probs_BKSS in enumerate(probs)
    )


def paste_any(probs: list[Tensor], theta_BP23: Tensor, height: int, width: int, mode: str = "nearest") -> Tensor:
    """``paste`` for windows of any affine, turned ones included; fit to be exported for any size and number.

    The geometry is elementwise: matrix products would lose digits under autocast and TF32. ``paste_turned`` gives the
    same and computes the pixels inside the windows alone.
    """
    ticks, steps = [], []
    for length in (width, height):
        pixel_N = torch.arange(length, dtype=torch.float32, device=theta_BP23.device)
        span_1 = pixel_N[-1:].clamp(min=1)
        ticks.append((2 * pixel_N - span_1) / span_1)
        steps.append(span_1 / (probs[0].shape[-1] - 1))
    windows = []
    for probs_BKSS, theta_B23 in zip(probs, theta_BP23.float().unbind(1), strict=True):
        a_B11, b_B11, x_B11, c_B11, d_B11, y_B11 = theta_B23.flatten(1)[..., None, None].unbind(1)
        area_B11 = a_B11 * d_B11 - b_B11 * c_B11
        dx_B1W, dy_BH1 = ticks[0] - x_B11, ticks[1][:, None] - y_B11
        u_BHW, v_BHW = d_B11 * dx_B1W - b_B11 * dy_BH1, a_B11 * dy_BH1 - c_B11 * dx_B1W
        grid_BHW2 = torch.stack([u_BHW, v_BHW], -1) / area_B11[..., None]
        # as in ``_crop_coordinates``: what is no window lies outside the photo
        finite_B11 = theta_B23.isfinite().flatten(1).all(1)[:, None, None]
        usable_B11 = finite_B11 & ((area_B11 * steps[0] * steps[1]).abs() > MIN_SCALE**2)
        grid_BHW2 = torch.where(usable_B11[..., None], grid_BHW2, -4.0)
        windows.append(F.grid_sample(probs_BKSS[:, 1:].float(), grid_BHW2, mode, "zeros", align_corners=True))
    return _canvas(windows)


def _canvas(windows: Iterable[Tensor]) -> Tensor:
    """The windows' label probabilities (B, labels, H, W) on one canvas_BKHW, behind that of the background."""
    pasted = list(windows)
    background_BHW = torch.ones((), device=pasted[0].device)
    for window_BKHW in pasted:
        background_BHW = background_BHW * (1 - window_BKHW.sum(1))
    return torch.cat([background_BHW.clamp(min=0).unsqueeze(1), *pasted], 1)


def paste_labels(probs: list[Tensor], theta_BP23: Tensor, height: int, width: int, mode: str = "nearest") -> Tensor:
    """``paste(...).argmax(1)`` as labels_BHW (uint8); computes only the pixels inside the windows."""
    size = probs[0].shape[-1]
    rows_BPH, columns_BPW = _paste_axes(theta_BP23, size, height, width, mode)
    touched = [(u > -1) & (u < size) for u in (rows_BPH, columns_BPW)]
    spans_BP22 = torch.stack([torch.stack([t.int().argmax(-1), t.sum(-1)], -1) for t in touched], 2).tolist()
    labels_BHW = torch.zeros(len(theta_BP23), height, width, dtype=torch.uint8, device=theta_BP23.device)
    for b, spans_P22 in enumerate(spans_BP22):
        best_HW = torch.ones(height, width, device=theta_BP23.device)
        windows: list[Window] = []
        for part, ((top, high), (left, wide)) in enumerate(spans_P22):
            rows, columns = slice(top, top + high), slice(left, left + wide)
            window_KYX = _resample(probs[part][b, 1:], rows_BPH[b, part, rows], columns_BPW[b, part, columns])
            best_HW[rows, columns] *= 1 - window_KYX.sum(0)
            windows.append(((rows, columns), window_KYX))
        _label(windows, best_HW, labels_BHW[b])
    return labels_BHW


Window = tuple[tuple[slice, slice], Tensor]  # rows and columns of a canvas, and the label probabilities KYX there


def _label(windows: list[Window], best_HW: Tensor, labels_HW: Tensor) -> None:
    """Name each pixel's most probable label, in place. best_HW: the background's probability, then that of the label.
    labels_HW: uint8, 0 at first."""
    label = 0
    for place, window_KYX in windows:
        best_YX, labels_YX = best_HW[place], labels_HW[place]
        for probs_YX in window_KYX:
            label += 1
            labels_YX.masked_fill_(probs_YX > best_YX, label)
            torch.maximum(best_YX, probs_YX, out=best_YX)


def _paste_axes(theta_BP23: Tensor, size: int, height: int, width: int, mode: str) -> tuple[Tensor, Tensor]:
    """Where the photo's rows and columns lie among each crop's samples: (rows_BPH, columns_BPW), float64, whole
    numbers for "nearest" (halves to even).

    As in ``sample_points``, what rounding errors alone hold off a sample, or off the middle of two, lies on it.
    """
    axes = []
    for axis, length in ((1, height), (0, width)):
        scale_BP1, shift_BP1 = theta_BP23[:, :, axis, axis, None].double(), theta_BP23[:, :, axis, 2, None].double()
        scale_BP1 = torch.where(scale_BP1.abs() < MIN_SCALE, torch.where(scale_BP1 < 0, -1, 1) * MIN_SCALE, scale_BP1)
        half = (size - 1) / 2
        pixel_N = torch.arange(length, dtype=torch.float64, device=theta_BP23.device)
        span_1 = pixel_N[-1:].clamp(min=1)
        ticks_N = (2 * pixel_N - span_1) / span_1
        u_BPN = (ticks_N - shift_BP1) * (half / scale_BP1) + half
        snapped_BPN = (2 * u_BPN).round() / 2
        u_BPN = torch.where((snapped_BPN - u_BPN).abs() <= 8 * EPSILON * half / scale_BP1.abs(), snapped_BPN, u_BPN)
        axes.append(u_BPN.round() if mode == "nearest" else u_BPN)
    return axes[0], axes[1]


def _resample(probs_KSS: Tensor, rows_Y: Tensor, columns_X: Tensor) -> Tensor:
    """Bilinear samples at every crossing of rows and columns, zeros outside: (..., K, Y, X), float32.

    Two products with the matrices of bilinear weights, whose rows hold a single 1 where a sample is hit.
    """
    with torch.autocast(probs_KSS.device.type, enabled=False):
        weights = []
        for u_N in (rows_Y, columns_X):
            distance_NS = (u_N.unsqueeze(-1) - torch.arange(probs_KSS.shape[-1], device=u_N.device)).abs()
            weights.append(torch.where(distance_NS < 1, 1 - distance_NS, 0).float().unsqueeze(-3))
        return weights[0] @ probs_KSS.float() @ weights[1].transpose(-1, -2)


class Patch(NamedTuple):
    """A face's labels on the pixel grid of its photo, within the box that holds all windows.

    top, left: the box's first row and column. labels_YX: uint8. confidence_YX: float32, the probability of each pixel's
    label. probs_KYX: float32, of all labels (see ``paste``), or None.
    """

    top: int
    left: int
    labels_YX: Tensor
    confidence_YX: Tensor
    probs_KYX: Tensor | None


def paste_turned(
    probs: list[Tensor], theta_P23: Tensor, height: int, width: int, mode: str = "nearest", keep_probs: bool = False
) -> Patch:
    """``paste`` for one face and windows of any affine, turned ones included; only the pixels inside the windows are
    computed.

    probs: a tensor (1 + labels, S, S) for each window, softmax over its channels, channel 0 background. theta_P23: in
    the frame of the height x width photo. mode: "nearest" or "bilinear". keep_probs: return them all.
    """
    device, size = theta_P23.device, probs[0].shape[-1]
    to_crop_P23, boxes_P4 = _crop_coordinates(theta_P23, size, height, width)
    seen_P4 = boxes_P4[(boxes_P4[:, 1] > boxes_P4[:, 0]) & (boxes_P4[:, 3] > boxes_P4[:, 2])]
    top, bottom, left, right = (0, 0, 0, 0)
    if len(seen_P4):
        (top, left), (bottom, right) = seen_P4[:, [0, 2]].min(0), seen_P4[:, [1, 3]].max(0)
    best_YX = torch.ones(int(bottom - top), int(right - left), device=device)
    windows: list[Window] = []
    for probs_KSS, (to_u_3, to_v_3), (y0, y1, x0, x1) in zip(probs, to_crop_P23, boxes_P4.tolist(), strict=True):
        if y0 == y1 or x0 == x1:  # outside the photo
            windows.append(((slice(0), slice(0)), probs_KSS.new_zeros(len(probs_KSS) - 1, 0, 0)))
            continue
        y_Y1 = torch.arange(y1 - y0, dtype=torch.float32, device=device)[:, None]
        x_X = torch.arange(x1 - x0, dtype=torch.float32, device=device)
        corner_3 = np.array([x0, y0, 1.0])
        u_YX, v_YX = (
            float(axis_3[0]) * x_X + float(axis_3[1]) * y_Y1 + float(axis_3 @ corner_3) for axis_3 in (to_u_3, to_v_3)
        )
        grid_1YX2 = torch.stack([u_YX, v_YX], -1)[None] * (2 / (size - 1)) - 1
        window_KYX = F.grid_sample(probs_KSS[None, 1:].float(), grid_1YX2, mode, "zeros", align_corners=True)[0]
        place = (slice(int(y0 - top), int(y1 - top)), slice(int(x0 - left), int(x1 - left)))
        best_YX[place] *= 1 - window_KYX.sum(0)
        windows.append((place, window_KYX))
    best_YX.clamp_(min=0)
    probs_KYX = None
    if keep_probs:
        probs_KYX = best_YX.new_zeros(1 + sum(len(window_KYX) for _, window_KYX in windows), *best_YX.shape)
        probs_KYX[0], label = best_YX, 1
        for place, window_KYX in windows:
            probs_KYX[label : label + len(window_KYX)][:, place[0], place[1]] = window_KYX
            label += len(window_KYX)
    labels_YX = torch.zeros_like(best_YX, dtype=torch.uint8)
    _label(windows, best_YX, labels_YX)
    return Patch(int(top), int(left), labels_YX, best_YX, probs_KYX)


def _crop_coordinates(theta_P23: Tensor, size: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """For windows of any affine: to_crop_P23, float64, from pixels of the photo (x, y) to samples of the crop, and the
    boxes_P4, int64, of the pixels that they reach (first row, last + 1, first column, last + 1)."""
    numbers_P23 = theta_P23.detach().double().cpu().numpy()
    finite_P = np.isfinite(numbers_P23).all((1, 2))
    numbers_P23 = np.where(finite_P[:, None, None], numbers_P23, 0)
    half_2 = np.maximum([width - 1, height - 1], 1) / 2
    linear_P22 = numbers_P23[:, :, :2] * half_2[:, None] * (2 / (size - 1))  # a sample's step in pixels
    shift_P2 = (numbers_P23[:, :, 2] + 1) * half_2 - linear_P22.sum(-1) * (size - 1) / 2  # the first sample
    usable_P = finite_P & (np.abs(np.linalg.det(linear_P22)) > MIN_SCALE**2)
    linear_P22[~usable_P], shift_P2[~usable_P] = np.eye(2), -4.0 * size  # a window that lies outside the photo
    inverse_P22 = np.linalg.inv(linear_P22)
    to_crop_P23 = np.concatenate([inverse_P22, -(inverse_P22 @ shift_P2[..., None])], -1)
    corners_24 = np.array([(-1, size, size, -1), (-1, -1, size, size)])
    reach_P24 = linear_P22 @ corners_24 + shift_P2[..., None]
    limits_2 = np.array([width, height])
    low_P2 = np.clip(np.floor(reach_P24.min(-1)), 0, limits_2).astype(int)
    high_P2 = np.clip(np.ceil(reach_P24.max(-1)) + 1, low_P2, limits_2).astype(int)
    boxes_P4 = np.stack([low_P2[:, 1], high_P2[:, 1], low_P2[:, 0], high_P2[:, 0]], -1)
    return to_crop_P23, boxes_P4


def enlarge(logits_BKhw: Tensor, sizes_B2: Tensor) -> Iterator[Tensor]:
    """Logits of stretched photos, enlarged bilinearly to each photo's own size: logits_KHW (float32), one by one."""
    for logits_Khw, size in zip(logits_BKhw, sizes_B2.tolist(), strict=True):
        yield F.interpolate(logits_Khw[None].float(), size, mode="bilinear")[0]


def enlarged_labels(logits_BKhw: Tensor, sizes_B2: Tensor, height: int, width: int) -> Tensor:
    """The most probable label at each pixel of photos that share a height x width grid: labels_BHW (uint8), 0 in the
    padding."""
    labels_BHW = torch.zeros(len(logits_BKhw), height, width, dtype=torch.uint8, device=logits_BKhw.device)
    for labels_HW, logits_KHW in zip(labels_BHW, enlarge(logits_BKhw, sizes_B2), strict=True):
        labels_HW[: logits_KHW.shape[1], : logits_KHW.shape[2]] = logits_KHW.argmax(0).byte()
    return labels_BHW


def stretch(photos_BHW3: Tensor, sizes_B2: Tensor, side: int) -> Tensor:
    """Photos (uint8, padded) stretched to side x side each, antialiased: (B, 3, side, side), float32 in [0, 255]."""
    height, width = photos_BHW3.shape[1:3]
    if height == width and height % side == 0 and bool((sizes_B2 == height).all()):  # areas of whole pixels
        return F.avg_pool2d(photos_BHW3.permute(0, 3, 1, 2).float(), height // side)
    images = []
    for photo_HW3, size_2 in zip(photos_BHW3, sizes_B2, strict=True):
        rows_SH, columns_SW = (
            stretch_weights(count, length, side, length >= side)
            for count, length in zip((height, width), size_2, strict=True)
        )
        images.append(stretch_by(photo_HW3.unsqueeze(0), rows_SH, columns_SW))
    return torch.cat(images)


def stretch_alike(photos_BHW3: Tensor, side: int) -> Tensor:
    """``stretch`` of photos of one size, all at once; fit to be exported for any size."""
    counts = photos_BHW3.shape[1:3]
    lengths_2 = torch.tensor(counts, device=photos_BHW3.device)
    rows_SH, columns_SW = (
        stretch_weights(count, length, side, length >= side) for count, length in zip(counts, lengths_2, strict=True)
    )
    return stretch_by(photos_BHW3, rows_SH, columns_SW)


def stretch_by(photos_BHW3: Tensor, rows_SH: Tensor, columns_SW: Tensor) -> Tensor:
    """Two products with each axis' weights (see ``stretch_weights``): (B, 3, S, S), float32."""
    with torch.autocast(photos_BHW3.device.type, enabled=False):
        by_rows_BSW3 = (rows_SH @ photos_BHW3.float().flatten(2)).unflatten(2, (-1, 3))
        return (columns_SW @ by_rows_BSW3).permute(0, 3, 1, 2)


def stretch_weights(count: int, length: Tensor, side: int, shrinks: Tensor) -> Tensor:
    """Weights (side, count) of a row's ``count`` pixels, of which ``length`` are the photo's, in ``side`` samples:
    areas where the row ``shrinks``, else bilinear. length, shrinks: tensors, so that an exported graph takes photos
    of any size."""
    step, pixel_L = length / side, torch.arange(count, device=length.device)
    start_S1 = torch.arange(side, device=length.device).unsqueeze(1) * step
    end_SL = (start_S1 + step).minimum(pixel_L + 1).minimum(length)
    overlap_SL = end_SL - start_S1.maximum(pixel_L)
    centre_S1 = (start_S1 + 0.5 * step - 0.5).clamp(min=0).minimum(length - 1)
    return torch.where(shrinks, overlap_SL * (side / length), 1 - (centre_S1 - pixel_L).abs()).clamp(min=0)
