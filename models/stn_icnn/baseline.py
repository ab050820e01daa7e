"""The old, non-differentiable cropper (Zhou et al. 2015): the "iCNN" row of the paper's tables."""

import numpy as np
import torch
from torch import Tensor

from data.cache import label_geometry, part_geometry
from data.labels import NINE
from geometry.theta import window_theta
from models.stn_icnn.windows import Windows, window_sides


def baseline_theta(coarse_labels_Bhw: Tensor, sizes_B2: Tensor, windows: Windows) -> Tensor:
    """Windows around the rough mask's centroids, on integer pixels of the photo.

    A part that the rough mask lacks gets a window of ``crop_size`` pixels at the photo's centre, as in the released
    code: the very failure that the STN removes (paper Fig. 5). Returns theta_BP23 in the frame of each photo.
    """
    records = [label_geometry(ids_hw, len(NINE)) for ids_hw in coarse_labels_Bhw.cpu().numpy()]
    present_BP, centroids_BP2, extents_BP2 = (
        torch.from_numpy(values).to(coarse_labels_Bhw.device)
        for values in part_geometry(np.stack(records), NINE.part_ids)
    )
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
