"""DeepLabV3+ (Chen et al. 2018) on a thinned MobileNetV2 (Sandler et al. 2018), as a team of the CelebAMask challenge
trained it: 1,992,599 parameters for 19 labels, output stride 16.

The modules carry the names of that team's code, so that its state dicts are state dicts of this network.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.labels import LabelSet
from models.parser import WholeFaceParser

STEM = 32
# expansion, channels, blocks, stride and dilation of the first block, dilation of the others
STAGES = (
    (1, 8, 1, 1, 1, 1),
    (6, 12, 2, 2, 1, 1),
    (6, 16, 2, 2, 1, 1),
    (6, 32, 3, 2, 1, 1),
    (6, 48, 2, 1, 1, 1),
    (6, 80, 2, 1, 1, 2),  # stride 2 in MobileNetV2: from here on dilation takes its place
    (6, 162, 1, 1, 2, 2),
)
LOW_LEVEL = 4  # the stem and three blocks: what the decoder reads of the fine grid
RATES = (6, 12, 18)


@dataclass(frozen=True)
class DeepLabConfig:
    """size: side of the stretched photo, pixels; the weights fit any."""

    size: int = 512

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 2048:
            raise ValueError(f"the size must be between 32 and 2048 pixels, not {self.size}")


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, dilation: int = 1, padding: int = 0
) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


def _unit(convolution: nn.Conv2d, activation: type[nn.Module]) -> nn.Sequential:
    """Convolution, batch normalisation, activation."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), activation(inplace=True))


class InvertedResidual(nn.Module):
    """MobileNetV2's block. Its *input* is padded with zeros, by the dilation, and not that of the depthwise
    convolution: what lies outside the photo is normalised too."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        wide = inputs * expansion
        depthwise = nn.Conv2d(wide, wide, 3, stride, 0, dilation, groups=wide, bias=False)
        expand = [] if expansion == 1 else [_unit(_conv(inputs, wide), nn.ReLU6)]
        self.conv = nn.Sequential(*expand, _unit(depthwise, nn.ReLU6), _conv(wide, outputs), nn.BatchNorm2d(outputs))
        self.padding, self.residual = dilation, stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv(F.pad(x_BCHW, [self.padding] * 4))
        return x_BCHW + y_BCHW if self.residual else y_BCHW


class Backbone(nn.Module):
    """images_B3HW -> (low level features at a quarter of the size, high level features at a sixteenth)."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_unit(_conv(3, STEM, 3, stride=2), nn.ReLU6)]
        inputs = STEM
        for expansion, channels, count, stride, first_dilation, dilation in STAGES:
            for k in range(count):
                step = (stride, first_dilation) if k == 0 else (1, dilation)
                blocks.append(InvertedResidual(inputs, channels, expansion, *step))
                inputs = channels
        self.low_level_features, self.high_level_features = nn.Sequential(*blocks[:LOW_LEVEL]), nn.Sequential()
        for k, block in enumerate(blocks[LOW_LEVEL:], LOW_LEVEL):
            self.high_level_features.add_module(str(k), block)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        low_BCHW = self.low_level_features(images_B3HW)
        return low_BCHW, self.high_level_features(low_BCHW)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 and the mean of the photo, side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_unit(_conv(inputs, outputs), nn.ReLU))
        dilated = [_unit(_conv(inputs, outputs, 3, dilation=r, padding=r), nn.ReLU) for r in RATES]
        self.convs = nn.ModuleList([_unit(_conv(inputs, outputs), nn.ReLU), *dilated, pooled])
        self.project = nn.Sequential(*_unit(_conv(5 * outputs, outputs), nn.ReLU), nn.Dropout(0.1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branches = [conv(x_BCHW) for conv in self.convs]
        branches[-1] = branches[-1].expand_as(branches[0])
        return self.project(torch.cat(branches, 1))


class Head(nn.Module):
    """Features of both grids -> logits on the finer one."""

    def __init__(self, low: int, high: int, num_labels: int) -> None:
        super().__init__()
        self.project = _unit(_conv(low, 48), nn.ReLU)
        self.aspp = ASPP(high, 192)
        hidden = _unit(_conv(48 + 192, 256, 3, padding=1), nn.ReLU)
        self.classifier = nn.Sequential(*hidden, nn.Conv2d(256, num_labels, 1))

    def forward(self, low_BCHW: Tensor, high_BCHW: Tensor) -> Tensor:
        fine_BCHW = self.project(low_BCHW)
        coarse_BCHW = self.aspp(high_BCHW)
        with torch.autocast(coarse_BCHW.device.type, enabled=False):  # under it, the sum of both grids were float32
            coarse_BCHW = F.interpolate(coarse_BCHW, fine_BCHW.shape[-2:], mode="bilinear")
        return self.classifier(torch.cat([fine_BCHW, coarse_BCHW], 1))


class DeepLabV3Plus(nn.Module):
    """images_B3HW, float in [0, 1], any size of at least 32 pixels a side, to logits_BKHW of the same size."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.classifier = Head(STAGES[1][1], STAGES[-1][1], num_labels)
        for part, mode in ((self.backbone, "fan_out"), (self.classifier, "fan_in")):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode=mode)  # type: ignore[arg-type]

    def coarse_logits(self, images_B3HW: Tensor) -> Tensor:
        """The logits before they are enlarged: on a quarter of the photo's grid."""
        return self.classifier(*self.backbone(images_B3HW))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return F.interpolate(self.coarse_logits(images_B3HW), images_B3HW.shape[-2:], mode="bilinear")


class DeepLab(WholeFaceParser):
    """The whole face by one network of the stretched photo."""

    kind = "deeplab"
    Config = DeepLabConfig
    folded = ("network",)
    network: DeepLabV3Plus

    def __init__(self, config: DeepLabConfig, labels: LabelSet) -> None:
        super().__init__(config, labels, DeepLabV3Plus(len(labels)))
