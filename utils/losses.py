"""The losses of the four stages."""

import torch
import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(logits_BKHW: Tensor, targets_BHW: Tensor, dice: float = 0.0) -> Tensor:
    """Mean softmax cross-entropy (released code; the paper writes an averaged binary one), plus ``dice`` times
    one minus the soft Dice of the foreground, averaged over images and over the classes that an image holds.

    targets_BHW: integer classes below K.
    """
    logits_BKHW = logits_BKHW.float()
    targets_BHW = targets_BHW.long()
    loss = F.cross_entropy(logits_BKHW, targets_BHW)
    if dice > 0:
        probs_BKN = logits_BKHW.softmax(1).flatten(2)[:, 1:]
        truth_BKN = F.one_hot(targets_BHW.flatten(1), logits_BKHW.shape[1]).mT[:, 1:].to(probs_BKN.dtype)
        overlap_BK = 2 * (probs_BKN * truth_BKN).sum(2)
        area_BK = probs_BKN.sum(2) + truth_BKN.sum(2)
        held_BK = (truth_BKN.sum(2) > 0).float()
        missed_BK = (1 - overlap_BK / area_BK.clamp(min=1e-6)) * held_BK
        loss = loss + dice * (missed_BK.sum(1) / held_BK.sum(1).clamp(min=1)).mean()
    return loss


def parts_loss(logits: list[Tensor], targets: list[Tensor], dice: float = 0.0) -> Tensor:
    """Sum over the six parts (paper eq. for stage two and end to end; see ``models.parts``)."""
    return torch.stack([segmentation_loss(x, y, dice) for x, y in zip(logits, targets, strict=True)]).sum()


def theta_loss(theta_BP23: Tensor, target_BP23: Tensor, present_BP: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth L1 over the four free entries of the parts that the photo shows; missing parts weigh nothing.

    The mean is taken over all B x P parts, present or not, so that it does not depend on how a batch is shared
    out between processes. beta: where the loss turns from quadratic to linear (1 in paper and code).
    """
    free = torch.tensor([[True, False, True], [False, True, True]], device=theta_BP23.device)
    loss_BP4 = F.smooth_l1_loss(theta_BP23.float()[..., free], target_BP23[..., free], beta=beta, reduction="none")
    return (loss_BP4.mean(-1) * present_BP).mean()
