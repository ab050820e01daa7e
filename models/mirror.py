"""Test-time mirroring: a network also sees the mirrored photo, and its logits are the mean of both."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from data.labels import LabelSet


class Mirrored(nn.Module):
    """A network, or its ``logits``, over a photo and its mirror image, whose sides are swapped back."""

    def __init__(self, logits: Callable[[Tensor], Tensor], labels: LabelSet) -> None:
        super().__init__()
        self.logits = logits
        self.swap: Tensor
        self.register_buffer("swap", torch.tensor(labels.mirror), persistent=False)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """images_B3SS: float in [0, 1]. Returns logits_BKhw."""
        plain_BKhw, mirrored_BKhw = self.logits(torch.cat([images_B3SS, images_B3SS.flip(-1)])).chunk(2)
        return (plain_BKhw + mirrored_BKhw.flip(-1).index_select(1, self.swap)) / 2
