"""The evaluation loop that every parser shares."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from scoring.metrics import confusion_matrices


def evaluate(
    label: Callable[[Any], Tensor], batches: Iterable[Any], device: torch.device, num_labels: int
) -> tuple[Tensor, Tensor]:
    """Label every face on its own photo's grid and count.

    label: batch -> labels_BHW (uint8). Returns (index_N, matrices_NKK) on the CPU: position of each face in the split
    and its int64 confusion matrix (rows: truth); over all processes the matrices' sum is the data set's.
    Raises ValueError for ids that the label set does not have.
    """
    index, matrices, invalid = [], [], []
    for batch in batches:
        batch = batch.to(device)
        counts_BKK, invalid_B = confusion_matrices(label(batch), batch.labels_BHW, batch.sizes_B2, num_labels)
        index.append(batch.index_B)
        matrices.append(counts_BKK)
        invalid.append(invalid_B)
    if not matrices:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, num_labels, num_labels, dtype=torch.long)
    if wrong := int(torch.cat(invalid).sum()):
        raise ValueError(f"{wrong} pixels hold ids that are not 0..{num_labels - 1}")
    return torch.cat(index).cpu(), torch.cat(matrices).cpu()
