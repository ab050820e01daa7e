"""Edges between the labels of a face."""

import torch
from torch import Tensor

from data.labels import NO_ID


def edges(labels_BHW: Tensor) -> Tensor:
    """The pixels that have a neighbour to the left, right, above or below with another label: bool, of the same shape.

    What lies outside the map is no neighbour, nor is a pixel that is ignored (255).
    """
    found_BHW = torch.zeros_like(labels_BHW, dtype=torch.bool)
    for axis in (1, 2):
        before, after = (slice(None, -1), slice(1, None))
        one, other = (labels_BHW.movedim(axis, 0)[part] for part in (before, after))
        for part in (before, after):
            found_BHW.movedim(axis, 0)[part] |= (one != other) & (one != NO_ID) & (other != NO_ID)
    return found_BHW
