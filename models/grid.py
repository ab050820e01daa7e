"""Theta, crop and paste: the geometry between photo, windows and label map (paper section 2.3).

A theta (2x3) maps the normalised coordinates of a crop to those of the photo. Normalised coordinates run
from -1 (centre of the first pixel) to 1 (centre of the last), ``align_corners=True`` throughout; x before y.
Photos of different sizes share a batch by zero padding at the right and bottom; ``sizes_B2`` holds their own
(height, width) in pixels.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from data.labels import NUM_LABELS, PART_LABELS

# A part that is not seen may throw its window anywhere; these keep a window invertible and of finite area.
MIN_SCALE = 1e-3
EPSILON = torch.finfo(torch.float32).eps


def window_theta(centres_BP2: Tensor, sides_BP: Tensor, sizes_B2: Tensor) -> Tensor:
    """Square windows to theta_BP23: s = (P - 1) / (W - 1), t = -1 + 2 c / (W - 1) (paper eq. 21, the form
    of the released code, which samples exactly on the pixel grid for an odd P and an integer c).

    centres_BP2: (x, y) in pixels. sides_BP: window sides in pixels.
    """
    span_B12 = (sizes_B2.flip(-1).to(centres_BP2.dtype) - 1).clamp(min=1).unsqueeze(1)
    scale_BP2 = (sides_BP.unsqueeze(-1) - 1) / span_B12
    shift_BP2 = -1 + 2 * centres_BP2 / span_B12
    return torch.cat([torch.diag_embed(scale_BP2), shift_BP2.unsqueeze(-1)], -1)


def compose(outer_B33: Tensor, theta_BP23: Tensor) -> Tensor:
    """The theta that first applies ``theta_BP23``, then ``outer_B33`` (any affine)."""
    # elementwise: autocast would run a matrix product in half precision, which is pixels off
    linear_BP23 = (outer_B33[:, None, :2, :2, None] * theta_BP23[:, :, None]).sum(3)
    return torch.cat([linear_BP23[..., :2], linear_BP23[..., 2:] + outer_B33[:, None, :2, 2:]], -1)


def scale_and_shift(scale_B2: Tensor, shift_B2: Tensor) -> Tensor:
    """Matrices B33 of x -> scale * x + shift."""
    matrix_B33 = torch.zeros(len(scale_B2), 3, 3, dtype=scale_B2.dtype, device=scale_B2.device)
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


def crop(photos_BCHW: Tensor, theta_BP23: Tensor, size: int, sizes_B2: Tensor | None = None) -> Tensor:
    """Cut windows out of photos, bilinear, zeros outside; differentiable in theta and in the photos.

    photos_BCHW: float. theta_BP23: in the frame of each photo. sizes_B2: the photos' own sizes where they are
    padded. Returns crops_BPCSS. With an odd window of ``size`` pixels and an integer centre, the crop equals
    array slicing exactly (paper Fig. 7, 8).
    """
    batch, channels, height, width = photos_BCHW.shape
    if sizes_B2 is None:
        sizes_B2 = torch.tensor([[height, width]], device=theta_BP23.device).expand(batch, 2)
    points_BPSS2 = sample_points(theta_BP23, size, sizes_B2)
    # A span of a power of two takes whole pixels to normalised coordinates and back without rounding.
    span_y, span_x = (1 << max(length - 2, 0).bit_length() for length in (height, width))
    photos_BCHW = F.pad(photos_BCHW, (0, span_x + 1 - width, 0, span_y + 1 - height))
    grid_BPSS2 = points_BPSS2 * 2 / points_BPSS2.new_tensor([span_x, span_y]) - 1
    grid_BNS2 = grid_BPSS2.reshape(batch, -1, size, 2)
    crops_BCNS = F.grid_sample(photos_BCHW.to(grid_BNS2.dtype), grid_BNS2, "bilinear", "zeros", align_corners=True)
    return crops_BCNS.reshape(batch, channels, -1, size, size).transpose(1, 2).to(photos_BCHW.dtype)


def crop_labels(labels_BHW: Tensor, theta_BP23: Tensor, size: int, sizes_B2: Tensor) -> Tensor:
    """The same windows out of label maps, nearest neighbour, 0 outside the photo.

    labels_BHW: uint8. Returns labels_BPSS, uint8.
    """
    return gather_nearest(labels_BHW, sample_points(theta_BP23.float(), size, sizes_B2), sizes_B2)


def gather_nearest(labels_BHW: Tensor, points_px: Tensor, sizes_B2: Tensor) -> Tensor:
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

    probs: six tensors (B, K, S, S), softmax over K, channel 0 background. theta_BP23: in the frame of the
    height x width grid. mode: "nearest" (paper) or "bilinear".
    Returns canvas_B9HW (float32): each part's probabilities in its labels' channels; background is the product over the
    parts of their background probability, 1 outside their windows. Only the windows' own pixels are computed.
    """
    canvas_B9HW = torch.zeros(len(theta_BP23), NUM_LABELS, height, width, device=probs[0].device)
    canvas_B9HW[:, 0] = 1
    for b, theta_P23 in enumerate(theta_BP23.tolist()):
        canvas_9HW = canvas_B9HW[b]
        for labels, rows, columns, window_KYX in _windows(probs, b, theta_P23, height, width, mode):
            canvas_9HW[0, rows, columns] *= window_KYX[0] + (1 - window_KYX.sum(0))
            for channel, label in enumerate(labels, 1):
                canvas_9HW[label, rows, columns] += window_KYX[channel]
    return canvas_B9HW


def paste_labels(probs: list[Tensor], theta_BP23: Tensor, height: int, width: int, mode: str = "nearest") -> Tensor:
    """``paste(...).argmax(1)`` as labels_BHW (uint8), without a canvas of nine channels: each label has one window."""
    labels_BHW = torch.zeros(len(theta_BP23), height, width, dtype=torch.uint8, device=probs[0].device)
    for b, theta_P23 in enumerate(theta_BP23.tolist()):
        labels_HW, best_HW = labels_BHW[b], torch.ones(height, width, device=labels_BHW.device)
        windows = list(_windows(probs, b, theta_P23, height, width, mode))
        for _, rows, columns, window_KYX in windows:
            best_HW[rows, columns] *= window_KYX[0] + (1 - window_KYX.sum(0))
        for labels, rows, columns, window_KYX in windows:
            best_YX, labels_YX = best_HW[rows, columns], labels_HW[rows, columns]
            for channel, label in enumerate(labels, 1):
                labels_YX.masked_fill_(window_KYX[channel] > best_YX, label)
                torch.maximum(best_YX, window_KYX[channel], out=best_YX)
    return labels_BHW


def _windows(
    probs: list[Tensor], b: int, theta_P23: list[list[list[float]]], height: int, width: int, mode: str
) -> Iterator[tuple[tuple[int, ...], slice, slice, Tensor]]:
    """What face ``b`` pastes: (the part's labels, rows, columns, probabilities window_KYX there) of each part."""
    for part, labels in enumerate(PART_LABELS):
        size = probs[part].shape[-1]
        (scale_x, _, shift_x), (_, scale_y, shift_y) = theta_P23[part]
        x0, u_X = _window_axis(scale_x, shift_x, size, width, mode)
        y0, v_Y = _window_axis(scale_y, shift_y, size, height, mode)
        if not len(u_X) or not len(v_Y):
            continue
        u_X, v_Y = u_X.to(probs[part].device), v_Y.to(probs[part].device)
        probs_KSS = probs[part][b].float()
        if mode == "nearest":
            window_KYX = probs_KSS[:, v_Y.long().unsqueeze(1), u_X.long()]
        else:
            grid_YX2 = torch.stack(torch.meshgrid(u_X.float(), v_Y.float(), indexing="xy"), -1) * 2 / (size - 1) - 1
            window_KYX = F.grid_sample(probs_KSS[None], grid_YX2[None], mode, "zeros", align_corners=True)[0]
        yield labels, slice(y0, y0 + len(v_Y)), slice(x0, x0 + len(u_X)), window_KYX


def _window_axis(scale: float, shift: float, size: int, length: int, mode: str) -> tuple[int, Tensor]:
    """The photo's pixel columns (or rows) that a window touches: the first one, and where each of them lies
    among the crop's samples (whole numbers for "nearest", halves to even). Empty for a window outside the photo.

    As in ``sample_points``, what rounding errors alone hold off a sample, or off the middle of two, lies on it.
    """
    if abs(scale) < MIN_SCALE:
        scale = math.copysign(MIN_SCALE, scale)
    half = (size - 1) / 2
    u_N = (torch.linspace(-1, 1, length, dtype=torch.float64) - shift) * (half / scale) + half
    snapped_N = (2 * u_N).round() / 2
    u_N = torch.where((snapped_N - u_N).abs() <= 8 * EPSILON * half / abs(scale), snapped_N, u_N)
    if mode == "nearest":
        u_N = u_N.round()
    touched = torch.nonzero((u_N > -1) & (u_N < size)).flatten()
    if not len(touched):
        return 0, u_N[:0]
    return int(touched[0]), u_N[touched[0] : touched[-1] + 1]
