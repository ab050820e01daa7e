"""Paste: part probabilities back onto the photo's grid (paper section 2.3). Coordinates: see ``geometry.theta``."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.theta import EPSILON, MIN_SCALE


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
