"""Test-time mirroring: each network also sees what it sees mirrored, and its logits are the mean of both."""

import torch
from torch import Tensor, nn

from data.labels import NINE


class MirroredCoarse(nn.Module):
    """A coarse network over a photo and its mirror image, whose sides are swapped back."""

    def __init__(self, coarse: nn.Module) -> None:
        super().__init__()
        self.coarse = coarse
        self.register_buffer("swap", torch.tensor(NINE.mirror), persistent=False)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """images_B3SS: float in [0, 1]. Returns logits_BKSS."""
        plain_BKSS, mirrored_BKSS = self.coarse(torch.cat([images_B3SS, images_B3SS.flip(-1)])).chunk(2)
        return (plain_BKSS + mirrored_BKSS.flip(-1).index_select(1, self.swap)) / 2


def mirror_too(model: nn.Module) -> None:
    """Let an STN-iCNN, in place, label with test-time mirroring."""
    model.coarse = MirroredCoarse(model.coarse)  # type: ignore[arg-type]
    model.parts.twice = True  # type: ignore[union-attr]
