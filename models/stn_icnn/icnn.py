"""The interlinked convolutional network (iCNN) of Zhou et al. 2015, as STN-iCNN uses it (paper section 2.2)."""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (8, 16, 24, 32)  # the paper's
KERNELS = {5: (5, 9), 3: (3, 3)}  # all convolutions, the last one: the released code's, the paper's Fig. 2


@dataclass(frozen=True)
class ICNNConfig:
    """Shape of an iCNN.

    num_labels: channels of the logits.
    channels: width of each row, finest first; row r works at scale 1 / 2**r.
    kernel, head_kernel: odd sizes of all convolutions and of the last one (released code: 5 and 9;
        the paper's Fig. 2 prints 3).
    interlinks: number of interlink layers.
    """

    num_labels: int = 9
    channels: tuple[int, ...] = CHANNELS
    kernel: int = 5
    head_kernel: int = 9
    interlinks: int = 3


def conv_bn(inputs: int, outputs: int, kernel: int, activation: nn.Module) -> nn.Sequential:
    """Same-size convolution, batch normalisation, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs), activation=activation))


def downsample(x_BCHW: Tensor) -> Tensor:
    """Max pooling 3, stride 2, padding 1: size n becomes (n + 1) // 2."""
    return F.max_pool2d(x_BCHW, 3, 2, 1)


def upsample_to(x_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    """Nearest neighbour, to the height and width of ``like_BCHW``, in its own dtype: autocast would give float32, which
    the concatenation would take over."""
    if not torch.is_autocast_enabled(x_BCHW.device.type):
        return F.interpolate(x_BCHW, like_BCHW.shape[-2:], mode="nearest")
    with torch.autocast(x_BCHW.device.type, enabled=False):
        return F.interpolate(x_BCHW, like_BCHW.shape[-2:], mode="nearest")


class Interlink(nn.Module):
    """One interlink layer: every row reads its finer and coarser neighbour of the layer before."""

    def __init__(self, channels: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        padded = (0, *channels, 0)
        self.mix = nn.ModuleList(
            conv_bn(sum(padded[r : r + 3]), width, kernel, nn.ReLU(inplace=True)) for r, width in enumerate(channels)
        )
        self.conv = nn.ModuleList(conv_bn(width, width, kernel, nn.ReLU(inplace=True)) for width in channels)

    def forward(self, rows: list[Tensor]) -> list[Tensor]:
        mixed = []
        for r, row in enumerate(rows):
            finer = [downsample(rows[r - 1])] if r > 0 else []
            coarser = [upsample_to(rows[r + 1], row)] if r + 1 < len(rows) else []
            mixed.append(self.conv[r](self.mix[r](torch.cat([*finer, row, *coarser], 1))))
        return mixed


class ICNN(nn.Module):
    """Image to logits of the same height and width; any size of at least 8 pixels a side."""

    def __init__(self, config: ICNNConfig) -> None:
        super().__init__()
        self.config = config
        widths, kernel, labels = config.channels, config.kernel, config.num_labels
        self.inputs = nn.ModuleList(conv_bn(3, width, kernel, nn.Tanh()) for width in widths)
        self.interlinks = nn.ModuleList(Interlink(widths, kernel) for _ in range(config.interlinks))
        self.integrate = nn.ModuleList(
            conv_bn(fine + coarse, fine, kernel, nn.Tanh()) for fine, coarse in pairwise(widths)
        )
        self.head = nn.Sequential(
            conv_bn(widths[0], 2 * labels + 8, kernel, nn.Tanh()),
            nn.Conv2d(2 * labels + 8, labels, kernel, padding=kernel // 2),
            nn.Conv2d(labels, labels, config.head_kernel, padding=config.head_kernel // 2),
        )

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """images_B3HW: float in [0, 1]. Returns logits_BLHW (float, no softmax)."""
        device = images_B3HW.device.type
        if torch.is_autocast_enabled(device):
            images_B3HW = images_B3HW.to(torch.get_autocast_dtype(device))  # once: the maximum commutes with it
            if next(self.parameters()).dtype == images_B3HW.dtype:  # autocast has nothing left to do
                with torch.autocast(device, enabled=False):
                    return self._logits(images_B3HW)
        return self._logits(images_B3HW)

    def _logits(self, images_B3HW: Tensor) -> Tensor:
        rows = []
        for r, block in enumerate(self.inputs):
            if r > 0:
                images_B3HW = downsample(images_B3HW)
            rows.append(block(images_B3HW))
        for layer in self.interlinks:
            rows = layer(rows)
        merged = rows[-1]
        for r in range(len(rows) - 2, -1, -1):
            merged = self.integrate[r](torch.cat([rows[r], upsample_to(merged, rows[r])], 1))
        return self.head(merged)
