"""Theta, crop, paste and stretch: the geometry between photo, windows and label map (paper section 2.3).

A theta (2x3) maps the normalised coordinates of a crop to those of the photo. Normalised coordinates run
from -1 (centre of the first pixel) to 1 (centre of the last), ``align_corners=True`` throughout; x before y.
Photos of different sizes share a batch by zero padding at the right and bottom; ``sizes_B2`` holds their own
(height, width) in pixels.
"""

import numpy as np
import torch
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


def enlarged(matrix_23: Tensor, scale: float | Tensor) -> Tensor:
    """An affine of ``scale`` times the extent about the same centre. matrix_23: shape (..., 2, 3) or (..., 3, 3)."""
    return torch.cat([matrix_23[..., :2] * scale, matrix_23[..., 2:]], -1)


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
    full = torch.sym_max(width - 1, 1), torch.sym_max(height - 1, 1)
    scale_B2 = torch.stack([torch.div(span_B2[:, axis], full[axis]) for axis in (0, 1)], -1)  # type: ignore[arg-type]
    return scale_and_shift(scale_B2, scale_B2 - 1)


def frame_to_photo(frames_B23: Tensor, sizes_B2: Tensor, side: int) -> Tensor:
    """B33: normalised coordinates of squares of side x side pixels -> those of their photos.

    frames_B23: a square's coordinates, -1 to 1 from edge to edge (x, y), to pixels of its photo. sizes_B2: the photos'.
    """
    half_B2 = (sizes_B2.flip(-1).to(frames_B23.dtype) - 1).clamp(min=1) / 2
    linear_B22 = frames_B23[:, :, :2] * (1 - 1 / side) / half_B2[:, :, None]
    top_B23 = torch.cat([linear_B22, (frames_B23[:, :, 2] / half_B2 - 1)[:, :, None]], -1)
    return torch.cat([top_B23, frames_B23.new_tensor([[[0, 0, 1]]]).expand(frames_B23.shape[0], 1, 3)], 1)


def window_corners(theta_P23: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """corners_P42 (x, y) of windows in pixels of a photo of ``size`` (height, width), clockwise from the windows' own
    top left one."""
    corners_34 = np.array([(-1, 1, 1, -1), (-1, -1, 1, 1), (1, 1, 1, 1)], np.float64)
    return ((theta_P23 @ corners_34).swapaxes(1, 2) + 1) / 2 * (size[1] - 1, size[0] - 1)
