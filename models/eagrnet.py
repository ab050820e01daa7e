"""EAGRNet (Te et al., ECCV 2020, "Edge-aware Graph Representation Learning and Reasoning for Face Parsing").

ResNet-101, pyramid pooling, a branch that finds the edges between labels, and graphs whose vertices gather what lies
along them; 66.7 M parameters.

The modules carry the names of the authors' code; only their normalisation with its activation (``ABN``) is two modules
here, see ``from_released``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from data.labels import CELEBAMASK, HELEN, LabelSet
from models.parser import WholeFaceParser
from utils import checkpoint
from utils.errors import InputError

# channels, blocks, stride of the first one and dilation of each of ResNet-101's four layers
LAYERS = ((64, 3, 1, 1), (128, 4, 2, 1), (256, 23, 1, 1), (512, 3, 1, 2))
BINS = (1, 2, 3, 6)  # of the pyramid pooling
GRID = 6  # cells a side from which a graph's vertices are taken; the outermost ones are left out
VERTICES = (GRID - 2) ** 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's photos, RGB in [0, 1]
EPS = 1e-5  # of batch normalisation, and of the authors' weights


@dataclass(frozen=True)
class EAGRNetConfig:
    """size: side of the stretched photo, pixels; the weights fit any. bgr: whether the network was trained on photos
    with blue and red in each other's place, as the authors' are."""

    size: int = 473
    bgr: bool = False

    def __post_init__(self) -> None:
        if not 64 <= self.size <= 2048:
            raise ValueError(f"the size must be between 64 and 2048 pixels, not {self.size}")


class ABN(nn.Sequential):
    """Batch normalisation, then a leaky ReLU: the authors' InPlaceABN."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels, eps=EPS), nn.LeakyReLU(0.01))


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs), ABN(outputs))


def _enlarge(x_BCHW: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear; the outermost pixel centres keep their places, as everywhere inside this network."""
    return F.interpolate(x_BCHW, size, mode="bilinear", align_corners=True)


def _layer(inputs: int, channels: int, count: int, stride: int, dilation: int) -> nn.Sequential:
    """One layer of torchvision's ResNet; its blocks add the shortcut to what an ``ABN`` gives, before the last ReLU."""
    outputs = channels * Bottleneck.expansion
    shortcut = nn.Sequential(_conv(inputs, outputs, stride=stride), ABN(outputs))
    blocks = [Bottleneck(inputs, channels, stride, shortcut, dilation=dilation, norm_layer=ABN)]
    blocks += [Bottleneck(outputs, channels, dilation=dilation, norm_layer=ABN) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


class PyramidPooling(nn.Module):
    """The means over grids of 1, 2, 3 and 6 cells a side, with the features themselves."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.Sequential(nn.AdaptiveAvgPool2d(bins), _conv(inputs, outputs), ABN(outputs)) for bins in BINS]
        )
        self.bottleneck = nn.Sequential(_conv(inputs + len(BINS) * outputs, outputs, 3), ABN(outputs))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pooled = [_enlarge(stage(x_BCHW), x_BCHW.shape[-2:]) for stage in self.stages]
        return self.bottleneck(torch.cat([*pooled, x_BCHW], 1))


class EdgeBranch(nn.Module):
    """Features of the first three layers -> logits of "no edge" and "edge" on the first one's grid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            _unit(channels * Bottleneck.expansion, 256) for channels, *_ in LAYERS[:3]
        )
        self.conv4 = nn.Conv2d(256, 2, 3, padding=1)  # the same for each layer
        self.conv5 = nn.Conv2d(6, 2, 1)

    def forward(self, *layers: Tensor) -> Tensor:
        size = layers[0].shape[-2:]
        features = [conv(x_BCHW) for conv, x_BCHW in zip((self.conv1, self.conv2, self.conv3), layers, strict=True)]
        return self.conv5(torch.cat([_enlarge(self.conv4(x_BCHW), size) for x_BCHW in features], 1))


class GraphConvolution(nn.Module):
    """vertices_BSV -> vertices_BSV: mixes the vertices, then their states (paper, equation 6)."""

    def __init__(self, states: int, vertices: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(vertices, vertices, 1)
        self.conv2 = nn.Conv1d(states, states, 1, bias=False)

    def forward(self, vertices_BSV: Tensor) -> Tensor:
        mixed_BSV = self.conv1(vertices_BSV.mT).mT - vertices_BSV
        return F.relu(self.conv2(mixed_BSV))


class EdgeAwareGraph(nn.Module):
    """Pixels are gathered into vertices that lie along edges, the vertices reason, and tell the pixels (paper, section
    3.2 to 3.4). The edges themselves do not learn from it."""

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        self.conv_state = nn.Conv2d(channels, states, 1)
        self.conv_proj = nn.Conv2d(channels, states, 1)
        self.gcn = GraphConvolution(states, VERTICES)
        self.conv_extend = _conv(states, channels)
        self.blocker = ABN(channels)

    def forward(self, x_BCHW: Tensor, edge_logits_B2HW: Tensor) -> Tensor:
        edge_B1HW = F.interpolate(edge_logits_B2HW.detach(), x_BCHW.shape[-2:]).softmax(1)[:, 1:]
        state_BSN, proj_BSHW = self.conv_state(x_BCHW).flatten(2), self.conv_proj(x_BCHW)
        share_BVN = (self.anchors(proj_BSHW * edge_B1HW).mT @ proj_BSHW.flatten(2)).softmax(1)
        vertices_BSV = self.gcn(state_BSN @ share_BVN.mT)
        context_BSHW = (vertices_BSV @ share_BVN).unflatten(2, x_BCHW.shape[-2:])
        return x_BCHW + self.blocker(self.conv_extend(context_BSHW))

    @staticmethod
    def anchors(x_BSHW: Tensor) -> Tensor:
        """The means over the inner cells of the grid: (B, S, V)."""
        return F.adaptive_avg_pool2d(x_BSHW, GRID)[:, :, 1:-1, 1:-1].flatten(2)


class Decoder(nn.Module):
    """Features of both grids -> logits on the finer one."""

    def __init__(self, low: int, high: int, num_labels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _unit(high, 256), _unit(low, 48)
        self.conv3 = nn.Sequential(_conv(304, 256), ABN(256), _conv(256, 256), ABN(256))
        self.conv4 = nn.Conv2d(256, num_labels, 1)

    def forward(self, high_BCHW: Tensor, low_BCHW: Tensor) -> Tensor:
        high_BCHW = _enlarge(self.conv1(high_BCHW), low_BCHW.shape[-2:])
        return self.conv4(self.conv3(torch.cat([high_BCHW, self.conv2(low_BCHW)], 1)))


class Logits(NamedTuple):
    """labels_BKHW, edges_B2HW ("no edge", "edge"): both on a quarter of the photo's grid."""

    labels_BKHW: Tensor
    edges_B2HW: Tensor


class EAGRNet(nn.Module):
    """images_B3HW, float, normalised as for ImageNet, at least 64 pixels a side, to ``Logits``."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 3, stride=2), ABN(64)
        self.conv2, self.bn2 = _conv(64, 64, 3), ABN(64)
        self.conv3, self.bn3 = _conv(64, 128, 3), ABN(128)
        inputs = 128
        for number, (channels, count, stride, dilation) in enumerate(LAYERS, 1):
            self.add_module(f"layer{number}", _layer(inputs, channels, count, stride, dilation))
            inputs = channels * Bottleneck.expansion
        low = LAYERS[0][0] * Bottleneck.expansion
        self.layer5 = PyramidPooling(inputs, 512)
        self.edge_layer = EdgeBranch()
        self.block1, self.block2 = EdgeAwareGraph(512, 128), EdgeAwareGraph(low, 64)
        self.layer6 = Decoder(low, 512, num_labels)

    def backbone(self, images_B3HW: Tensor) -> list[Tensor]:
        """What ResNet's four layers give, on 1/4, 1/8, 1/8 and 1/8 of the photo's grid."""
        x_BCHW = images_B3HW
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x_BCHW = F.relu(norm(conv(x_BCHW)))
        features = [F.max_pool2d(x_BCHW, 3, 2, 1)]
        for number in range(1, len(LAYERS) + 1):
            features.append(self.get_submodule(f"layer{number}")(features[-1]))
        return features[1:]

    def forward(self, images_B3HW: Tensor) -> Logits:
        fine_BCHW, *middle, coarse_BCHW = self.backbone(images_B3HW)
        edges_B2HW = self.edge_layer(fine_BCHW, *middle)
        high_BCHW = self.block1(self.layer5(coarse_BCHW), edges_B2HW)
        return Logits(self.layer6(high_BCHW, self.block2(fine_BCHW, edges_B2HW)), edges_B2HW)


class EAGRNetParser(WholeFaceParser):
    """The whole face by one network of the stretched photo."""

    kind = "eagrnet"
    Config = EAGRNetConfig
    network: EAGRNet

    def __init__(self, config: EAGRNetConfig, labels: LabelSet) -> None:
        super().__init__(config, labels, EAGRNet(len(labels)))
        self.mean_311: Tensor
        self.std_311: Tensor
        self.register_buffer("mean_311", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std_311", torch.tensor(STD)[:, None, None], persistent=False)

    def both(self, images_B3SS: Tensor) -> Logits:
        """Logits of labels and edges for photos in [0, 1], RGB."""
        images_B3SS = images_B3SS.flip(1) if self.config.bgr else images_B3SS
        return self.network((images_B3SS - self.mean_311) / self.std_311)

    def logits(self, images_B3SS: Tensor) -> Tensor:
        return _enlarge(self.both(images_B3SS).labels_BKHW, images_B3SS.shape[-2:])


def released_names(network: EAGRNet) -> dict[str, str]:
    """The name in our state dict -> that in the authors', which has one module for both of an ``ABN``."""
    norms = {f"{name}.0" for name, module in network.named_modules() if isinstance(module, ABN)}
    names = {}
    for key in network.state_dict():
        module, _, value = key.rpartition(".")
        names[key] = f"{module.removesuffix('.0')}.{value}" if module in norms else key
    return names


def from_released(found: Mapping[str, Any]) -> tuple[LabelSet, dict[str, Any]]:
    """The label set and the state dict of ``EAGRNet`` that a state dict of the authors' code is.

    Their InPlaceABN multiplies by |weight| + 1e-5; here that is the weight itself. 11 classes are taken for HELEN's, 19
    for CelebAMask-HQ's. Raises InputError for other numbers of classes.
    """
    bias = found.get("layer6.conv4.bias")
    classes = len(bias) if isinstance(bias, Tensor) and bias.ndim == 1 else 0
    labels = {len(labels): labels for labels in (HELEN, CELEBAMASK)}.get(classes)
    if labels is None:
        raise InputError(
            f"its EAGRNet has {classes} classes: only those of HELEN (11) and CelebAMask-HQ (19) are known"
        )
    with torch.device("meta"):
        network = EAGRNet(classes)
    return labels, _renamed(network, found)


def imagenet_start(network: EAGRNet, state: Mapping[str, Any]) -> None:
    """Fill the backbone from a ResNet-101 of the deep stem that was trained on ImageNet; other values are ignored.

    Raises InputError where the file lacks one of the backbone's values, or has another shape of it.
    """
    start, values = network.state_dict(), _renamed(network, checkpoint.foreign_weights(state))
    backbone = ("conv1.", "bn1.", "conv2.", "bn2.", "conv3.", "bn3.", *(f"layer{k}." for k in range(1, 5)))
    for name in filter(lambda name: name.startswith(backbone), start):
        value = values.get(name)
        if not isinstance(value, Tensor) or value.shape != start[name].shape:
            raise InputError(
                f"its {released_names(network)[name]} is missing or of another shape: a ResNet-101 with a stem of "
                "three 3x3 layers is needed"
            )
        start[name] = value
    network.load_state_dict(start)


def _renamed(network: EAGRNet, found: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of the authors' code under our names; unknown ones stay as they are."""
    ours = {theirs: name for name, theirs in released_names(network).items()}
    values = {ours.get(name, name): value for name, value in found.items()}
    for norm in [name for name, module in network.named_modules() if isinstance(module, ABN)]:
        values[f"{norm}.0.num_batches_tracked"] = torch.zeros((), dtype=torch.long)  # InPlaceABN 1.0 has none
        if isinstance(weight := values.get(f"{norm}.0.weight"), Tensor):
            values[f"{norm}.0.weight"] = weight.abs() + EPS
    return values
