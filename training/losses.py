"""The losses of the paper's four stages, and those of the other parsers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from data.labels import NO_ID as IGNORED
from utils.distributed import sum_over_processes, world_size


def segmentation_loss(
    logits_BKHW: Tensor, targets_BHW: Tensor, dice: float = 0.0, class_weights_K: Tensor | None = None
) -> Tensor:
    """Softmax cross-entropy, averaged over all pixels, plus ``dice`` times one minus the soft Dice of the foreground.

    The released code uses this cross-entropy; the paper writes an averaged binary one. The Dice is averaged over the
    foreground classes that a photo holds, then over the photos.
    logits_BKHW: float, any precision; the loss is computed in float32. targets_BHW: integer classes below K; pixels of
    ``IGNORED`` (255) do not count. class_weights_K: float32, factors of the cross-entropy.
    Returns a float32 scalar.
    """
    logits_BKHW = logits_BKHW.float()
    targets_BHW = targets_BHW.long()
    loss = _mean(
        F.cross_entropy(logits_BKHW, targets_BHW, class_weights_K, ignore_index=IGNORED, reduction="sum"), targets_BHW
    )
    if dice > 0:
        counted_B1N = (targets_BHW != IGNORED).flatten(1)[:, None]
        probs_BKN = logits_BKHW.softmax(1).flatten(2)[:, 1:] * counted_B1N
        classes_K = torch.arange(1, logits_BKHW.shape[1], device=logits_BKHW.device)
        truth_BKN = targets_BHW.flatten(1)[:, None] == classes_K[:, None]
        count_BK = truth_BKN.sum(2)
        overlap_BK = 2 * (probs_BKN * truth_BKN).sum(2)
        area_BK = probs_BKN.sum(2) + count_BK
        held_BK = (count_BK > 0).float()
        missed_BK = (1 - overlap_BK / area_BK.clamp(min=1e-6)) * held_BK
        loss = loss + dice * (missed_BK.sum(1) / held_BK.sum(1).clamp(min=1)).mean()
    return loss


def _mean(total: Tensor, targets_BHW: Tensor) -> Tensor:
    """The costs of all pixels of this process, divided by how many count; the same for any number of processes."""
    counted = (targets_BHW != IGNORED).sum().float()
    if world_size() > 1:
        counted = sum_over_processes(counted) / world_size()
    return total / counted.clamp(min=1)


def focal_loss(logits_BKHW: Tensor, targets_BHW: Tensor) -> Tensor:
    """(1 - p)² times the cross-entropy, p the probability of the true label, averaged over all pixels (Lin et al. 2017
    with gamma 2, without class weights). Arguments and value as of ``segmentation_loss``."""
    loss_BHW = F.cross_entropy(logits_BKHW.float(), targets_BHW.long(), ignore_index=IGNORED, reduction="none")
    return _mean(((1 - torch.exp(-loss_BHW)) ** 2 * loss_BHW).sum(), targets_BHW)


def batch_dice_loss(logits_BKHW: Tensor, targets_BHW: Tensor) -> Tensor:
    """One minus the soft Dice of each class over the whole batch, averaged over all classes, background too; a class
    that the batch lacks costs up to 1. Arguments and value as of ``segmentation_loss``."""
    probs_BKHW = logits_BKHW.float().softmax(1) * (targets_BHW != IGNORED)[:, None]
    classes_K11 = torch.arange(logits_BKHW.shape[1], device=logits_BKHW.device)[:, None, None]
    truth_BKHW = targets_BHW[:, None] == classes_K11
    overlap_K = (probs_BKHW * truth_BKHW).sum((0, 2, 3))
    area_K = probs_BKHW.sum((0, 2, 3)) + truth_BKHW.sum((0, 2, 3))
    return 1 - ((2 * overlap_K + 1e-6) / (area_K + 1e-6)).mean()


def edge_loss(logits_B2HW: Tensor, edges_BHW: Tensor) -> Tensor:
    """Cross-entropy of "no edge" and "edge", each weighted by the share of the other among the pixels of the whole
    batch, over all processes; a weighted mean (EAGRNet's paper, section 3.5). 0 where the batch has no edge.

    logits_B2HW: float. edges_BHW: bool. Returns a float32 scalar.
    """
    costs_BHW = F.cross_entropy(logits_B2HW.float(), edges_BHW.long(), reduction="none")
    pixels = edges_BHW.numel() * world_size()
    edge_share = sum_over_processes(edges_BHW.sum().float()) / pixels
    weights_BHW = torch.where(edges_BHW, 1 - edge_share, edge_share)
    total_weight = (2 * edge_share * (1 - edge_share) * pixels).clamp(min=1e-6)
    return (weights_BHW * costs_BHW).sum() / total_weight * world_size()


def boundary_loss(logits_BKHW: Tensor, targets_BHW: Tensor, edges_BHW: Tensor) -> Tensor:
    """The mean cross-entropy of the labels over each photo's edge pixels, averaged over the photos; one without an edge
    costs nothing (EAGRNet's paper, section 3.5).

    logits_BKHW, targets_BHW: as of ``segmentation_loss``; but here pixels of ``IGNORED`` cost nothing and count.
    edges_BHW: bool. Returns a float32 scalar.
    """
    costs_BHW = F.cross_entropy(logits_BKHW.float(), targets_BHW.long(), ignore_index=IGNORED, reduction="none")
    return ((costs_BHW * edges_BHW).sum((1, 2)) / edges_BHW.sum((1, 2)).clamp(min=1)).mean()


def parts_loss(logits: list[Tensor], targets: list[Tensor], dice: float = 0.0) -> Tensor:
    """Sum of ``segmentation_loss`` over the parts: the paper's loss of stage two and of end-to-end training.

    logits, targets: one tensor for each part, in the order of ``data.labels.PARTS``; all of one size, so that parts of
    equally many labels can share the mean.
    """
    losses = []
    for count in sorted({x.shape[1] for x in logits}):
        alike = [(x, y) for x, y in zip(logits, targets, strict=True) if x.shape[1] == count]
        x, y = (torch.cat(values) for values in zip(*alike, strict=True))
        losses.append(len(alike) * segmentation_loss(x, y, dice))
    return torch.stack(losses).sum()


def theta_loss(theta_BP23: Tensor, target_BP23: Tensor, present_BP: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth L1 loss of the four entries of theta that are not shear, for the parts that the photo shows.

    The mean is taken over all B x P parts, present or not, so that it does not depend on how a batch is divided
    among processes; missing parts add nothing to the sum.
    theta_BP23, target_BP23: predicted and true theta. present_BP: bool, or 0.0 and 1.0. beta: where the loss turns from
    quadratic to linear (1 in the paper and in the released code). Returns a float32 scalar.
    """
    predicted_BP4, wanted_BP4 = _free_entries(theta_BP23.float()), _free_entries(target_BP23)
    loss_BP4 = F.smooth_l1_loss(predicted_BP4, wanted_BP4, beta=beta, reduction="none")
    return (loss_BP4.mean(-1) * present_BP).mean()


def _free_entries(theta_BP23: Tensor) -> Tensor:
    """s_x, t_x, s_y and t_y of each theta; the shear is held at zero."""
    return torch.stack([theta_BP23[..., row, column] for row, column in ((0, 0), (0, 2), (1, 1), (1, 2))], -1)
