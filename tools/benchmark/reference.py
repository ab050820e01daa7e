"""The method as the paper's release runs it, step by step: what ours is compared with.

Contiguous layout, batch normalisation as a step of its own; one network call for each of the six parts; every part
pasted onto a whole canvas, nine of which are compared. The canvas is the photo's own grid (the release's is
1024 x 1024, without whose padding this is faster). Both see the same stretched photo, so that labels can differ
through the steps compared alone.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.batch import photo_batch
from models.stn_icnn.model import STNiCNN
from models.stn_icnn.parts import NETWORKS


@torch.no_grad()
def parse(plain: STNiCNN, photos: list[np.ndarray], device: torch.device) -> np.ndarray:
    """Decoded photos of one size, uint8 (H, W, 3), to labels (B, H, W) uint8. plain: on the device, as
    ``models.loading.load_parser`` gives it."""
    batch = photo_batch(photos, plain.labels).to(device)
    photos_B3HW = batch.photos_BHW3.permute(0, 3, 1, 2).float() / 255
    theta_BP23, size = plain.windows_of(batch, "predicted"), plain.config.crop_size
    canvas_BKHW = torch.zeros(len(photos), len(plain.labels), *photos_B3HW.shape[2:], device=device)
    canvas_BKHW[:, 0] = 1
    for name, (first, *others) in NETWORKS.items():
        for part in (first, *others):  # the second of a pair goes through mirrored, in and out
            grid_BSS2 = F.affine_grid(theta_BP23[:, part], [len(photos), 3, size, size], align_corners=True)
            crop_B3SS = F.grid_sample(photos_B3HW, grid_BSS2, align_corners=True)
            logits_BKSS = plain.parts.nets[name](crop_B3SS if part == first else crop_B3SS.flip(-1))
            probs_BKSS = (logits_BKSS if part == first else logits_BKSS.flip(-1)).softmax(1)
            paste(probs_BKSS[:, 1:], theta_BP23[:, part], plain.labels.part_ids[part], canvas_BKHW, plain.paste)
    return canvas_BKHW.argmax(1).byte().cpu().numpy()


def paste(probs_BKSS: Tensor, theta_B23: Tensor, labels: tuple[int, ...], canvas_BKHW: Tensor, mode: str) -> None:
    """Resample a part's labels onto whole canvases by the inverse theta, and multiply the background by what they
    leave of 1, in place."""
    scale_B2, shift_B2 = theta_B23.diagonal(dim1=1, dim2=2), theta_B23[:, :, 2]
    inverse_B23 = torch.cat([torch.diag_embed(1 / scale_B2), (-shift_B2 / scale_B2).unsqueeze(-1)], -1)
    grid_BHW2 = F.affine_grid(inverse_B23, list(canvas_BKHW[:, :1].shape), align_corners=True)
    pasted_BKHW = F.grid_sample(probs_BKSS, grid_BHW2, mode, "zeros", align_corners=True)
    canvas_BKHW[:, list(labels)] = pasted_BKHW
    canvas_BKHW[:, 0] *= 1 - pasted_BKHW.sum(1)
