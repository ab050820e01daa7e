"""Inception-ResNet-v1, aligned face -> embedding: the graph of FaceNet's release, with facenet-pytorch's names.

The facenet-pytorch package itself pins torch below 2.3, so its module would not install next to ours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.loading import read_config
from utils import checkpoint, files
from utils.errors import InputError

EMBEDDING = 512
KIND = "identity"  # what our checkpoints call it


@dataclass(frozen=True)
class EmbeddingConfig:
    """size: side of the square that the network sees, pixels; aligned faces are shrunk to it. momentum: share of a
    batch in the running statistics (the release: 0.005). Raises ValueError for values out of range."""

    size: int = 160
    momentum: float = 0.005

    def __post_init__(self) -> None:
        if not 75 <= self.size <= 160:
            raise ValueError(f"the size is {self.size}: must be between 75 and 160")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"the momentum is {self.momentum}: must be within 0 and 1")


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, wide_in: int, wide: int, kernel: Any = 1, stride: int = 1, padding: Any = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide_in, wide, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(wide, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Reduction(nn.Module):
    """Branches side by side, the last a max pooling: half the size."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)
        self.count = len(branches)

    def branches(self, x: Tensor) -> list[Tensor]:
        return [getattr(self, f"branch{number}")(x) for number in range(self.count)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*self.branches(x), F.max_pool2d(x, 3, 2)], 1)


class Residual(Reduction):
    """Branches side by side, joined by a 1x1 convolution with bias, scaled and added to the input."""

    def __init__(self, wide: int, joined: int, scale: float, branches: list[nn.Module], relu: bool = True) -> None:
        super().__init__(branches)
        self.scale, self.relu = scale, relu
        self.conv2d = nn.Conv2d(joined, wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.conv2d(torch.cat(self.branches(x), 1))
        return F.relu(x) if self.relu else x


def block35() -> Residual:
    three = nn.Sequential(Unit(256, 32), Unit(32, 32, 3, padding=1))
    five = nn.Sequential(Unit(256, 32), Unit(32, 32, 3, padding=1), Unit(32, 32, 3, padding=1))
    return Residual(256, 96, 0.17, [Unit(256, 32), three, five])


def block17() -> Residual:
    seven = nn.Sequential(
        Unit(896, 128), Unit(128, 128, (1, 7), padding=(0, 3)), Unit(128, 128, (7, 1), padding=(3, 0))
    )
    return Residual(896, 256, 0.10, [Unit(896, 128), seven])


def block8(scale: float = 0.20, relu: bool = True) -> Residual:
    three = nn.Sequential(
        Unit(1792, 192), Unit(192, 192, (1, 3), padding=(0, 1)), Unit(192, 192, (3, 1), padding=(1, 0))
    )
    return Residual(1792, 384, scale, [Unit(1792, 192), three], relu)


class InceptionResnetV1(nn.Module):
    """Aligned faces, float (B, 3, H, W) of any range -> embeddings (B, 512), not normalised.

    Faces are shrunk to ``config.size`` and whitened. dropout: share of the features that training drops before the last
    layer.
    """

    def __init__(self, config: EmbeddingConfig | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config or EmbeddingConfig()
        self.conv2d_1a = Unit(3, 32, 3, 2)
        self.conv2d_2a = Unit(32, 32, 3)
        self.conv2d_2b = Unit(32, 64, 3, padding=1)
        self.conv2d_3b = Unit(64, 80)
        self.conv2d_4a = Unit(80, 192, 3)
        self.conv2d_4b = Unit(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*(block35() for _ in range(5)))
        three = nn.Sequential(Unit(256, 192), Unit(192, 192, 3, padding=1), Unit(192, 256, 3, 2))
        self.mixed_6a = Reduction([Unit(256, 384, 3, 2), three])
        self.repeat_2 = nn.Sequential(*(block17() for _ in range(10)))
        first = nn.Sequential(Unit(896, 256), Unit(256, 384, 3, 2))
        second = nn.Sequential(Unit(896, 256), Unit(256, 256, 3, 2))
        third = nn.Sequential(Unit(896, 256), Unit(256, 256, 3, padding=1), Unit(256, 256, 3, 2))
        self.mixed_7a = Reduction([first, second, third])
        self.repeat_3 = nn.Sequential(*(block8() for _ in range(5)))
        self.block8 = block8(1.0, relu=False)
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(1792, EMBEDDING, bias=False)
        self.last_bn = nn.BatchNorm2d(EMBEDDING, eps=1e-3)  # 2d: as all others, over the batch of all processes
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.config.momentum

    def features(self, x: Tensor) -> Tensor:
        """Whitened faces (B, 3, S, S) -> embeddings (B, 512)."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(F.max_pool2d(x, 3, 2))))
        x = self.repeat_2(self.mixed_6a(self.repeat_1(x)))
        x = self.block8(self.repeat_3(self.mixed_7a(x)))
        x = self.last_linear(self.dropout(x.mean((2, 3))))
        return self.last_bn(x[..., None, None])[..., 0, 0]

    def forward(self, faces_B3HW: Tensor) -> Tensor:
        size = (self.config.size, self.config.size)
        if faces_B3HW.shape[2:] != size:
            faces_B3HW = F.interpolate(faces_B3HW, size, mode="bilinear", antialias=True)
        return self.features(whiten(faces_B3HW))


def whiten(photos_B3HW: Tensor) -> Tensor:
    """(x - mean) / max(deviation, 1 / sqrt(n)) over all n values of each photo, as FaceNet's release does."""
    flat_BN = photos_B3HW.flatten(1)
    deviation_B = flat_BN.std(1, correction=0).clamp(min=flat_BN.shape[1] ** -0.5)
    return (photos_B3HW - flat_BN.mean(1)[:, None, None, None]) / deviation_B[:, None, None, None]


def load_published(path: Path) -> InceptionResnetV1:
    """The network of facenet-pytorch's file for VGGFace2, without its classes. Raises InputError for another file."""
    state = checkpoint.read_tensors(path)
    if "format" in state:
        raise InputError(f"--pretrained {path} is a checkpoint of this repository: give it as --init-from")
    weights = {key: value for key, value in state.items() if key not in ("logits.weight", "logits.bias")}
    network = InceptionResnetV1()
    checkpoint.load_module(network, weights, path, "embedding")
    return network


def load_network(path: Path) -> tuple[InceptionResnetV1, str]:
    """The network of a checkpoint of ours or of the published file, for inference, and the file's SHA-256.

    Raises InputError for anything else.
    """
    state = checkpoint.read_tensors(path)
    if "format" not in state:
        network = load_published(path)
    else:
        config, weights = read_checkpoint(state, path)
        network = InceptionResnetV1(config)
        checkpoint.load_module(network, weights.get("embedding", {}), path, "embedding")
    return network.eval().requires_grad_(False), files.sha256(path)


def read_checkpoint(state: dict[str, Any], path: Path) -> tuple[EmbeddingConfig, dict[str, Any]]:
    """The configuration and the networks' weights of a checkpoint of ours. Raises InputError for another one."""
    checkpoint.require(state, path)
    if state.get("parser") != KIND:
        raise InputError(f"{path} holds {checkpoint.shown(state.get('parser'))}, not an identity embedding")
    return read_config(state, EmbeddingConfig, path), state["modules"]
