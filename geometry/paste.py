"""Paste: part probabilities back onto the photo's grid (paper section 2.3). Coordinates: see ``geometry.theta``."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.theta import EPSILON, MIN_SCALE

CANVAS_PIXELS = 2**22  # at most so many at once where pixels outside the windows are computed too


def pixels_are_cheap(device: torch.device) -> bool:
    """Whether to compute more pixels than are needed for the sake of fewer launches and waits: on a GPU."""
    return device.type != "cpu"


def paste(probs: list[Tensor], theta_BP23: Tensor, height: int, width: int, mode: str = "nearest") -> Tensor:
    """Put the part probabilities back onto the photo's grid (inverse affine, paper section 2.3).

    probs: a tensor (B, 1 + labels, S, S) for each part, softmax over its channels, channel 0 background.
    theta_BP23: in the frame of the height x width grid. mode: "nearest" (paper) or "bilinear".
    Returns canvas_BKHW (float32): background, then the labels of each part in turn; background is the product over
    the parts of what their labels leave of 1.
    """
    size = probs[0].shape[-1]
    rows_BPHS, columns_BPWS = (_weights(u, size) for u in _paste_axes(theta_BP23, size, height, width, mode))
    return _canvas(
        _resample(probs_BKSS[:, 1:], rows_BPHS[:, part], columns_BPWS[:, part]) for part, probs_BKSS in enumerate(probs)
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
    """``paste(...).argmax(1)`` as labels_BHW (uint8); on the CPU computes only the pixels inside the windows."""
    if pixels_are_cheap(theta_BP23.device):
        at_once = max(1, CANVAS_PIXELS // (height * width))
        parts = zip(*(tensor.split(at_once) for tensor in (*probs, theta_BP23)), strict=True)
        canvases = (paste(some, theta_bP23, height, width, mode) for *some, theta_bP23 in parts)
        return torch.cat([canvas_bKHW.argmax(1).byte() for canvas_bKHW in canvases])
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
            axes = rows_BPH[b, part, rows], columns_BPW[b, part, columns]
            window_KYX = _resample(probs[part][b, 1:], *(_weights(u_N, size) for u_N in axes))
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


def _weights(u_N: Tensor, size: int) -> Tensor:
    """Bilinear weights (..., N, S), float32, of S samples at each place among them; zeros outside."""
    distance_NS = (u_N.unsqueeze(-1) - torch.arange(size, device=u_N.device)).abs()
    return torch.where(distance_NS < 1, 1 - distance_NS, 0).float()


def _resample(probs_KSS: Tensor, rows_YS: Tensor, columns_XS: Tensor) -> Tensor:
    """Bilinear samples at every crossing of rows and columns: (..., K, Y, X), float32.

    Two products with the matrices of bilinear weights, whose rows hold a single 1 where a sample is hit.
    """
    with torch.autocast(probs_KSS.device.type, enabled=False):
        return rows_YS.unsqueeze(-3) @ probs_KSS.float() @ columns_XS.unsqueeze(-3).transpose(-1, -2)


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
    probs: list[Tensor],
    theta_BP23: np.ndarray,
    height: int,
    width: int,
    mode: str = "nearest",
    keep_probs: bool = False,
) -> Iterator[Patch]:
    """``paste`` for windows of any affine, turned ones included, in photos of one size, one face after the other; only
    the pixels inside the windows are computed.

    probs: a tensor (B, 1 + labels, S, S) for each window, softmax over its channels, channel 0 background. theta_BP23:
    in the frame of the height x width photos, on the host, so that nothing waits for the device. mode: "nearest" or
    "bilinear". keep_probs: return them all.
    """
    device, size = probs[0].device, probs[0].shape[-1]
    to_crop_BP23, boxes_BP4 = _crop_coordinates(theta_BP23, size, height, width)
    corner_BP31 = np.stack([boxes_BP4[..., 2], boxes_BP4[..., 0], np.ones(boxes_BP4.shape[:2])], -1)[..., None]
    steps_BP23 = np.concatenate([to_crop_BP23[..., :2], to_crop_BP23 @ corner_BP31], -1).astype(np.float32)
    x_BP211, y_BP211, start_BP211 = (
        torch.from_numpy(steps_BP23).to(device, non_blocking=True)[..., None, None].unbind(3)
    )
    tick_N = torch.arange(max(height, width), dtype=torch.float32, device=device)

    def grid(b: int, some: slice, high: int, wide: int) -> Tensor:
        points_p2YX = x_BP211[b, some] * tick_N[:wide] + y_BP211[b, some] * tick_N[:high, None] + start_BP211[b, some]
        return (points_p2YX * (2 / (size - 1)) - 1).permute(0, 2, 3, 1)

    for b, boxes_P4 in enumerate(boxes_BP4):
        rows_P, columns_P = boxes_P4[:, 1] - boxes_P4[:, 0], boxes_P4[:, 3] - boxes_P4[:, 2]
        high, wide = int(rows_P.max()), int(columns_P.max())
        grid_PYX2 = None
        if pixels_are_cheap(device) and len(boxes_P4) * high * wide <= CANVAS_PIXELS:
            grid_PYX2 = grid(b, slice(None), high, wide)
        seen_P4 = boxes_P4[(rows_P > 0) & (columns_P > 0)]
        top, left, bottom, right = 0, 0, 0, 0
        if len(seen_P4):
            (top, left), (bottom, right) = seen_P4[:, [0, 2]].min(0).tolist(), seen_P4[:, [1, 3]].max(0).tolist()
        best_YX = torch.ones(bottom - top, right - left, device=device)
        windows: list[Window] = []
        for p, (y0, y1, x0, x1) in enumerate(boxes_P4.tolist()):
            probs_1KSS = probs[p][b : b + 1, 1:]
            if y0 == y1 or x0 == x1:  # outside the photo
                windows.append(((slice(0), slice(0)), probs_1KSS.new_zeros(probs_1KSS.shape[1], 0, 0)))
                continue
            one = slice(p, p + 1)
            shape = y1 - y0, x1 - x0
            grid_1YX2 = grid(b, one, *shape) if grid_PYX2 is None else grid_PYX2[one, : shape[0], : shape[1]]
            window_KYX = F.grid_sample(probs_1KSS.float(), grid_1YX2, mode, "zeros", align_corners=True)[0]
            place = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
            best_YX[place].mul_(1 - window_KYX.sum(0))
            windows.append((place, window_KYX))
        best_YX.clamp_(min=0)
        yield Patch(top, left, *_labelled(windows, best_YX, keep_probs))


def _labelled(windows: list[Window], best_YX: Tensor, keep_probs: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """labels_YX, confidence_YX and, where they are kept, probs_KYX of a face. best_YX: the background's probability."""
    if not keep_probs and not pixels_are_cheap(best_YX.device):
        labels_YX = torch.zeros_like(best_YX, dtype=torch.uint8)
        _label(windows, best_YX, labels_YX)
        return labels_YX, best_YX, None
    probs_KYX = best_YX.new_zeros(1 + sum(len(window_KYX) for _, window_KYX in windows), *best_YX.shape)
    probs_KYX[0], label = best_YX, 1
    for place, window_KYX in windows:
        probs_KYX[label : label + len(window_KYX)][:, place[0], place[1]] = window_KYX
        label += len(window_KYX)
    confidence_YX, labels_YX = probs_KYX.max(0)
    return labels_YX.byte(), confidence_YX, probs_KYX if keep_probs else None


def _crop_coordinates(theta_BP23: np.ndarray, size: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """For windows of any affine: to_crop_BP23, float64, from pixels of the photo (x, y) to samples of the crop, and the
    boxes_BP4, int64, of the pixels that they reach (first row, last + 1, first column, last + 1)."""
    finite_BP = np.isfinite(theta_BP23).all((2, 3))
    numbers_BP23 = np.where(finite_BP[..., None, None], theta_BP23, 0).astype(np.float64)
    half_2 = np.maximum([width - 1, height - 1], 1) / 2
    linear_BP22 = numbers_BP23[..., :2] * half_2[:, None] * (2 / (size - 1))  # a sample's step in pixels
    shift_BP2 = (numbers_BP23[..., 2] + 1) * half_2 - linear_BP22.sum(-1) * (size - 1) / 2  # the first sample
    usable_BP = finite_BP & (np.abs(np.linalg.det(linear_BP22)) > MIN_SCALE**2)
    linear_BP22[~usable_BP], shift_BP2[~usable_BP] = np.eye(2), -4.0 * size  # a window that lies outside the photo
    inverse_BP22 = np.linalg.inv(linear_BP22)
    to_crop_BP23 = np.concatenate([inverse_BP22, -(inverse_BP22 @ shift_BP2[..., None])], -1)
    corners_24 = np.array([(-1, size, size, -1), (-1, -1, size, size)])
    reach_BP24 = linear_BP22 @ corners_24 + shift_BP2[..., None]
    limits_2 = np.array([width, height])
    low_BP2 = np.clip(np.floor(reach_BP24.min(-1)), 0, limits_2).astype(int)
    high_BP2 = np.clip(np.ceil(reach_BP24.max(-1)) + 1, low_BP2, limits_2).astype(int)
    boxes_BP4 = np.stack([low_BP2[..., 1], high_BP2[..., 1], low_BP2[..., 0], high_BP2[..., 0]], -1)
    return to_crop_BP23, boxes_BP4
