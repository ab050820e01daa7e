"""The old, non-differentiable cropper (Zhou et al. 2015): the "iCNN" row of the paper's tables."""

import torch
from torch import Tensor

from data.labels import PART_LABELS
from models.grid import window_theta
from models.windows import window_sides


def mask_geometry(labels_Bhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where each part is in a label map (integer, the nine labels).

    Returns (centroids_BP2, extents_BP2) as (x, y) in pixels, 0 for missing parts, and present_BP (bool).
    """
    centroids, extents, present = [], [], []
    for labels in PART_LABELS:
        part_Bhw = (labels_Bhw >= labels[0]) & (labels_Bhw <= labels[-1])
        count_B1 = part_Bhw.sum((1, 2), dtype=torch.float32).clamp(min=1).unsqueeze(1)
        axes = []
        for axis in (1, 2):  # sums over rows give x, over columns y
            along_BN = part_Bhw.sum(axis, dtype=torch.float32)
            ticks_N = torch.arange(along_BN.shape[1], dtype=torch.float32, device=labels_Bhw.device)
            hit_BN = along_BN > 0
            low_B = torch.where(hit_BN, ticks_N, torch.inf).amin(1)
            high_B = torch.where(hit_BN, ticks_N, -torch.inf).amax(1)
            axes.append(((along_BN * ticks_N).sum(1), (high_B - low_B + 1).clamp(min=0)))
        centroids.append(torch.stack([axes[0][0], axes[1][0]], 1) / count_B1)
        extents.append(torch.stack([axes[0][1], axes[1][1]], 1))
        present.append(part_Bhw.flatten(1).any(1))
    return torch.stack(centroids, 1), torch.stack(extents, 1), torch.stack(present, 1)


def baseline_theta(coarse_labels_Bhw: Tensor, sizes_B2: Tensor, crop_size: int, margin: float, aspect: float) -> Tensor:
    """Windows around the rough mask's centroids, on integer pixels of the photo.

    margin: 0 for windows of ``crop_size`` pixels; else they follow the part (see ``window_sides``).
    A part that the rough mask lacks gets a window of ``crop_size`` pixels at the photo's centre, as in the released
    code: the very failure that the STN removes (paper Fig. 5). Returns theta_BP23 in the frame of each photo.
    """
    centroids_BP2, extents_BP2, present_BP = mask_geometry(coarse_labels_Bhw)
    height, width = coarse_labels_Bhw.shape[-2:]
    photo_B12 = sizes_B2.flip(-1).float().unsqueeze(1)
    ratio_B12 = photo_B12 / torch.tensor([width, height], device=photo_B12.device)
    found_BP2 = ((centroids_BP2 + 0.5) * ratio_B12 - 0.5).round()
    centres_BP2 = torch.where(present_BP.unsqueeze(-1), found_BP2, ((photo_B12 - 1) / 2).floor())
    sides_BP2 = torch.full_like(centres_BP2, crop_size)
    if margin > 0:
        following_BP2 = window_sides(extents_BP2 * ratio_B12, margin, aspect).round()
        sides_BP2 = torch.where(present_BP.unsqueeze(-1), following_BP2, sides_BP2)
    return window_theta(centres_BP2, sides_BP2, sizes_B2)
