"""The old, non-differentiable cropper (Zhou et al. 2015): the "iCNN" row of the paper's tables."""

import torch
from torch import Tensor

from data.labels import PART_LABELS
from models.grid import window_theta


def mask_centroids(labels_Bhw: Tensor) -> tuple[Tensor, Tensor]:
    """Centroid of each part in a label map. Returns (centres_BP2 as (x, y) in pixels, present_BP bool)."""
    height, width = labels_Bhw.shape[-2:]
    ys_h = torch.arange(height, dtype=torch.float32, device=labels_Bhw.device)
    xs_w = torch.arange(width, dtype=torch.float32, device=labels_Bhw.device)
    centres, counts = [], []
    for labels in PART_LABELS:
        part_Bhw = torch.isin(
            labels_Bhw, torch.tensor(labels, dtype=labels_Bhw.dtype, device=labels_Bhw.device)
        ).float()
        count_B = part_Bhw.sum((1, 2))
        x_B = (part_Bhw.sum(1) * xs_w).sum(1) / count_B.clamp(min=1)
        y_B = (part_Bhw.sum(2) * ys_h).sum(1) / count_B.clamp(min=1)
        centres.append(torch.stack([x_B, y_B], 1))
        counts.append(count_B)
    return torch.stack(centres, 1), torch.stack(counts, 1) > 0


def baseline_theta(coarse_labels_Bhw: Tensor, sizes_B2: Tensor, side: int) -> Tensor:
    """Windows of ``side`` photo pixels around the rough mask's centroids, on integer pixels.

    A part that the rough mask lacks gets the photo's centre, as in the released code: the very failure that the
    STN removes (paper Fig. 5). Returns theta_BP23 in the frame of each photo.
    """
    centres_BP2, present_BP = mask_centroids(coarse_labels_Bhw)
    height, width = coarse_labels_Bhw.shape[-2:]
    photo_B12 = sizes_B2.flip(-1).float().unsqueeze(1)
    rough_2 = torch.tensor([width, height], dtype=torch.float32, device=photo_B12.device)
    found_BP2 = ((centres_BP2 + 0.5) * photo_B12 / rough_2 - 0.5).round()
    centres_BP2 = torch.where(present_BP.unsqueeze(-1), found_BP2, ((photo_B12 - 1) / 2).floor())
    sides_BP = torch.full_like(centres_BP2[..., 0], side)
    return window_theta(centres_BP2, sides_BP, sizes_B2)
