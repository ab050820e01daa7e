"""Test-time mirroring: each network also sees what it sees mirrored, and its logits are the mean of both."""

from torch import Tensor, nn

from data.labels import NINE
from models.stn_icnn.parts import NETWORKS, PartNets


class MirroredCoarse(nn.Module):
    """A coarse network over a photo and its mirror image, whose sides are swapped back."""

    def __init__(self, coarse: nn.Module) -> None:
        super().__init__()
        self.coarse = coarse

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """images_B3SS: float in [0, 1]. Returns logits_BKSS."""
        mirrored_BKSS = self.coarse(images_B3SS.flip(-1)).flip(-1)[:, list(NINE.mirror)]
        return (self.coarse(images_B3SS) + mirrored_BKSS) / 2


class MirroredParts(nn.Module):
    """Part networks whose nose and mouth are labelled twice; a pair of brows or eyes shares its network by mirroring
    already, so that a mirrored photo shows it the very same crops."""

    def __init__(self, parts: PartNets) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, crops_BP3SS: Tensor) -> list[Tensor]:
        """See ``PartNets.forward``."""
        logits = self.parts(crops_BP3SS)
        for name, parts in NETWORKS.items():
            if len(parts) == 1:
                mirrored = self.parts.nets[name](crops_BP3SS[:, parts[0]].flip(-1)).flip(-1)
                logits[parts[0]] = (logits[parts[0]] + mirrored) / 2
        return logits


def mirror_too(model: nn.Module) -> None:
    """Let an STN-iCNN, in place, label with test-time mirroring."""
    model.coarse = MirroredCoarse(model.coarse)  # type: ignore[arg-type]
    model.parts = MirroredParts(model.parts)  # type: ignore[arg-type]
