"""Which windows the localizer is taught and stage two is trained on: from the true parts of a face."""

from typing import NamedTuple

import torch
from torch import Tensor

from data.view import Parts
from geometry.theta import window_theta
from models.stn_icnn.localizer import FACE_LAYOUT, PART_SHAPES


class Windows(NamedTuple):
    """How windows follow their parts.

    crop_size: samples along a side of a crop. margin: 0 for windows of ``crop_size`` photo pixels; else the longer
    side is this many times the part's longer extent. aspect: see ``window_sides``; 1 for square windows.
    """

    crop_size: int
    margin: float
    aspect: float

    def describe(self) -> str:
        return f"{self.crop_size} (margin {self.margin:g}, aspect {self.aspect:g})"


def target_theta(parts: Parts, sizes_B2: Tensor, windows: Windows) -> Tensor:
    """True windows, theta_BP23, in the frame of each photo.

    A part that is not there gets the window where the face's other parts presume it: it counts in no theta loss (see
    ``training.losses``), but a part network has to learn to label nothing there. The longer side of windows that follow
    their part is kept between 0.6 and 1.8 times what is usual for the face's size.
    """
    centres_BP2, usual_BP = complete(parts.centres_BP2, parts.present_BP, sizes_B2)
    crop_size, margin, aspect = windows
    if margin == 0:
        return window_theta(centres_BP2, torch.full_like(centres_BP2, crop_size), sizes_B2)
    usual_BP1 = usual_BP.unsqueeze(-1)
    usual_extents_BP2 = usual_BP1 / margin * PART_SHAPES.to(usual_BP)
    extents_BP2 = torch.where(parts.present_BP.unsqueeze(-1), parts.extents_BP2, usual_extents_BP2)
    sides_BP2 = window_sides(extents_BP2, margin, aspect, (0.6 * usual_BP1, 1.8 * usual_BP1))
    return window_theta(centres_BP2, sides_BP2, sizes_B2)


def window_sides(
    extents_BP2: Tensor, margin: float, aspect: float, limits: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Sides of windows that follow their parts, sides_BP2 (x, y) in pixels: ``margin`` times the part's extents, the
    longer between the ``limits`` (shape (B, P, 1)), the shorter at least ``aspect`` of it; 1 for square windows."""
    wanted_BP2 = margin * extents_BP2
    longer_BP1 = wanted_BP2.amax(-1, keepdim=True)
    if limits is not None:
        longer_BP1 = longer_BP1.clamp(*limits)
    return wanted_BP2.clamp(aspect * longer_BP1, longer_BP1)


def complete(centres_BP2: Tensor, present_BP: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Presume the centres of missing parts by the similarity that fits FACE_LAYOUT to the parts that are there.

    With one part the layout has the photo's scale; with none it lies in the photo's middle.
    Returns (centres_BP2, usual window sides_BP), pixels.
    """
    layout_P3 = FACE_LAYOUT.to(centres_BP2)
    layout_P = torch.complex(layout_P3[:, 0], layout_P3[:, 1])
    found_BP = torch.complex(centres_BP2[..., 0], centres_BP2[..., 1])
    weight_BP = present_BP.to(centres_BP2.dtype)
    count_B1 = weight_BP.sum(1, keepdim=True)
    middle_B2 = (sizes_B2.flip(-1).to(centres_BP2.dtype) - 1) / 2
    middle_B1 = torch.complex(middle_B2[:, 0], middle_B2[:, 1]).unsqueeze(1)

    mean_layout_B1 = (weight_BP * layout_P).sum(1, keepdim=True) / count_B1.clamp(min=1)
    mean_found_B1 = (weight_BP * found_BP).sum(1, keepdim=True) / count_B1.clamp(min=1)
    layout_BP = weight_BP * (layout_P - mean_layout_B1)
    spread_B1 = (layout_BP.abs() ** 2).sum(1, keepdim=True)
    fit_B1 = (layout_BP.conj() * (found_BP - mean_found_B1)).sum(1, keepdim=True) / spread_B1.clamp(min=1e-6)
    photo_B1 = middle_B2.amin(1, keepdim=True)
    fit_B1 = torch.polar(fit_B1.abs().clamp(0.1 * photo_B1, 2 * photo_B1), fit_B1.angle())
    fit_B1 = torch.where(count_B1 >= 2, fit_B1, photo_B1.to(fit_B1.dtype))
    mean_found_B1 = torch.where(count_B1 >= 1, mean_found_B1, middle_B1)

    presumed_BP = mean_found_B1 + fit_B1 * (layout_P - mean_layout_B1)
    presumed_BP2 = torch.stack([presumed_BP.real, presumed_BP.imag], -1)
    sides_BP = fit_B1.abs() * 2 * layout_P3[:, 2]
    return torch.where(present_BP.unsqueeze(-1), centres_BP2, presumed_BP2), sides_BP
