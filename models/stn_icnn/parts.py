"""The four part networks that label six crops (paper section 2.2, stage two)."""

import torch
from torch import Tensor, nn

from data.labels import NINE, NO_ID, NUM_PARTS
from models.stn_icnn.icnn import CHANNELS, ICNN, KERNELS, ICNNConfig
from utils.runtime import constant

# Which network labels which parts: the second of a pair goes through mirrored, in and out.
NETWORKS = {"brows": (0, 1), "eyes": (2, 3), "nose": (4,), "mouth": (5,)}


class PartNets(nn.Module):
    """Four iCNNs for six crops: brows, eyes, nose (two labels each) and mouth (four).

    channels: widths of each network's rows. kernel: see ``STNiCNNConfig``. twice: average nose and mouth with their
    mirror images; a pair shares its network by mirroring already: a mirrored photo shows it the very same crops.
    """

    def __init__(self, channels: tuple[int, ...] = CHANNELS, kernel: int = 5) -> None:
        super().__init__()
        self.twice = False
        self.nets = nn.ModuleDict(
            {
                name: ICNN(ICNNConfig(1 + len(NINE.part_ids[one]), channels, *KERNELS[kernel]))
                for name, (one, *_) in NETWORKS.items()
            }
        )

    def forward(self, crops_BP3SS: Tensor) -> list[Tensor]:
        """crops_BP3SS: float in [0, 1], parts in the order of ``data.labels.PARTS``.

        Returns six logits tensors, (B, 2, S, S) for the brows, eyes and nose, (B, 4, S, S) for the mouth;
        channel 0 is background, channel k the k-th of the part's labels.
        """
        logits: list[Tensor] = [crops_BP3SS] * NUM_PARTS
        for name, (one, *other) in NETWORKS.items():
            mirrored = other or ([one] if self.twice else [])
            crops = [crops_BP3SS[:, one], *(crops_BP3SS[:, part].flip(-1) for part in mirrored)]
            outputs = self.nets[name](torch.cat(crops) if mirrored else crops[0]).unflatten(0, (len(crops), -1))
            logits[one] = outputs[0]
            for part in mirrored:
                flipped = outputs[1].flip(-1)
                logits[part] = flipped if other else (outputs[0] + flipped) / 2
        return logits


def part_targets(labels_BPSS: Tensor) -> list[Tensor]:
    """Nine-label crops (uint8) to the targets of each part network (int64): what is not the part is background,
    and 255, ignored, stays."""
    rows = ((1 + ids.index(k) if k in ids else 0 for k in range(NO_ID)) for ids in NINE.part_ids)
    lut_PK = constant(tuple((*row, NO_ID) for row in rows), torch.long, labels_BPSS.device)
    offsets_P11 = (NO_ID + 1) * torch.arange(NUM_PARTS, device=labels_BPSS.device)[:, None, None]
    return list(lut_PK.flatten()[labels_BPSS + offsets_P11].unbind(1))
