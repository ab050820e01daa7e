"""The old, non-differentiable cropper (Zhou et al. 2015): the "iCNN" row of the paper's tables."""

import torch
from torch import Tensor

from data.labels import NINE, among
from geometry.theta import window_theta
from models.stn_icnn.windows import Windows, window_sides


def part_boxes(labels_BHW: Tensor) -> Tensor:
    """Bounding boxes of the six parts in a label map (integer, the nine labels).

    Returns boxes_BP4 as (left, top, right, bottom), the outermost pixels that are the part; NaN where it is missing.
    """
    boxes = []
    for ids in NINE.part_ids:
        part_BHW = among(labels_BHW, ids)
        lows, highs = [], []
        for axis in (1, 2):  # a column that holds the part gives an x, a row a y
            hit_BN = part_BHW.any(axis)
            ticks_N = torch.arange(hit_BN.shape[1], dtype=torch.float32, device=labels_BHW.device)
            lows.append(torch.where(hit_BN, ticks_N, torch.inf).amin(1))
            highs.append(torch.where(hit_BN, ticks_N, -torch.inf).amax(1))
        boxes.append(torch.stack(lows + highs, 1))
    boxes_BP4 = torch.stack(boxes, 1)
    return torch.where(boxes_BP4.isfinite(), boxes_BP4, torch.nan)


def mask_geometry(labels_Bhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where each part is in a label map (integer, the nine labels).

    Returns (centroids_BP2, extents_BP2) as (x, y) in pixels, 0 for missing parts, and present_BP (bool).
    """
    centroids = []
    for ids in NINE.part_ids:
        part_Bhw = among(labels_Bhw, ids)
        sums = []
        for axis in (1, 2):  # sums over rows give x, over columns y
            along_BN = part_Bhw.sum(axis, dtype=torch.float32)
            ticks_N = torch.arange(along_BN.shape[1], dtype=torch.float32, device=labels_Bhw.device)
            sums.append((along_BN * ticks_N).sum(1))
        count_B1 = part_Bhw.sum((1, 2), dtype=torch.float32).clamp(min=1).unsqueeze(1)
        centroids.append(torch.stack(sums, 1) / count_B1)
    boxes_BP4 = part_boxes(labels_Bhw)
    extents_BP2 = (boxes_BP4[..., 2:] - boxes_BP4[..., :2] + 1).nan_to_num(0)
    return torch.stack(centroids, 1), extents_BP2, ~boxes_BP4[..., 0].isnan()


def baseline_theta(coarse_labels_Bhw: Tensor, sizes_B2: Tensor, windows: Windows) -> Tensor:
    """Windows around the rough mask's centroids, on integer pixels of the photo.

    A part that the rough mask lacks gets a window of ``crop_size`` pixels at the photo's centre, as in the released
    code: the very failure that the STN removes (paper Fig. 5). Returns theta_BP23 in the frame of each photo.
    """
    centroids_BP2, extents_BP2, present_BP = mask_geometry(coarse_labels_Bhw)
    height, width = coarse_labels_Bhw.shape[-2:]
    photo_B12 = sizes_B2.flip(-1).float().unsqueeze(1)
    ratio_B12 = photo_B12 / torch.tensor([width, height], device=photo_B12.device)
    found_BP2 = ((centroids_BP2 + 0.5) * ratio_B12 - 0.5).round()
    centres_BP2 = torch.where(present_BP.unsqueeze(-1), found_BP2, ((photo_B12 - 1) / 2).floor())
    crop_size, margin, aspect = windows
    sides_BP2 = torch.full_like(centres_BP2, crop_size)
    if margin > 0:
        following_BP2 = window_sides(extents_BP2 * ratio_B12, margin, aspect).round()
        sides_BP2 = torch.where(present_BP.unsqueeze(-1), following_BP2, sides_BP2)
    return window_theta(centres_BP2, sides_BP2, sizes_B2)
