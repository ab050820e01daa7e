"""Localizers: rough mask -> theta (paper section 2.3). Only s_x, t_x, s_y and t_y are free; shear is held at zero."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from data.labels import NINE, NUM_PARTS

KINDS = ("paper", "resnet18", "released")

# A plain frontal face in normalised coordinates, (x, y, scale) of each part's window (medians over aligned portraits,
# windows 1.6 times the part): where the paper's localizer starts from, and where parts that a photo does not show are
# presumed.
FACE_LAYOUT = torch.tensor(
    [
        [-0.26, -0.17, 0.27],
        [0.26, -0.17, 0.27],
        [-0.245, -0.04, 0.15],
        [0.245, -0.04, 0.15],
        [0.00, 0.16, 0.33],
        [0.00, 0.50, 0.35],
    ]
)

# Their extents (x, y) as shares of the longer one, medians too.
PART_SHAPES = torch.tensor([[1, 0.33], [1, 0.33], [1, 0.37], [1, 0.37], [0.74, 1], [1, 0.4]])


class ZeroShear(nn.Module):
    """theta * [[1, 0, 1], [0, 1, 1]], of (B, 36) values or (B, 6, 2, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.free_23: Tensor
        self.register_buffer("free_23", torch.tensor([[1.0, 0, 1], [0, 1, 1]]), persistent=False)

    def forward(self, theta: Tensor) -> Tensor:
        return theta.view(-1, NUM_PARTS, 2, 3) * self.free_23


class PaperLocalizer(nn.Module):
    """Eight 3x3 convolutions (BN, ReLU), average pooling (3, stride 2) after every two, one linear layer to 36.

    The paper calls it a simplified VGG16 and gives no widths; these make 0.1 M parameters and 0.13 GFLOP at
    128 x 128. The linear layer starts as a frontal face, so that the first windows already hold a face.
    """

    def __init__(self, input_size: int = 128, widths: tuple[int, ...] = (8, 16, 24, 32)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, size = len(NINE), input_size
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.AvgPool2d(3, 2, 1))
            size = (size + 1) // 2
        self.features, self.zero_shear = nn.Sequential(*layers), ZeroShear()
        self.linear = nn.Linear(channels * size * size, NUM_PARTS * 6)
        nn.init.normal_(self.linear.weight, std=1e-3)
        with torch.no_grad():
            start_P23 = torch.zeros(NUM_PARTS, 2, 3)
            start_P23[:, :, 2] = FACE_LAYOUT[:, :2]
            start_P23[:, 0, 0] = start_P23[:, 1, 1] = FACE_LAYOUT[:, 2]
            self.linear.bias.copy_(start_P23.flatten())

    def forward(self, probs_BKHW: Tensor) -> Tensor:
        """probs_BKHW: softmax of the coarse logits. Returns theta_BP23."""
        return self.zero_shear(self.linear(self.features(probs_BKHW).flatten(1)))


class ResNetLocalizer(nn.Module):
    """torchvision's ResNet-18 with a 9-channel stem and a linear head to 36 (released code, option 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet, self.zero_shear = resnet18(num_classes=NUM_PARTS * 6), ZeroShear()
        self.resnet.conv1 = nn.Conv2d(len(NINE), 64, 7, 2, 3, bias=False)

    def forward(self, probs_BKHW: Tensor) -> Tensor:
        """probs_BKHW: softmax of the coarse logits. Returns theta_BP23."""
        return self.zero_shear(self.resnet(probs_BKHW))


class ReleasedLocalizer(nn.Module):
    """Fifteen convolutions of six channels down to a 6 x 2 x 3 map (released code, option 0); 128 x 128 input."""

    def __init__(self) -> None:
        super().__init__()
        strides = (2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1)
        layers: list[nn.Module] = []
        for k, stride in enumerate(strides):
            # the eleventh turns 4 x 4 into the 2 x 3 of a theta
            kernel = (3, 2) if k == 10 else (3, 3)
            layers.append(nn.Conv2d(len(NINE) if k == 0 else NUM_PARTS, NUM_PARTS, kernel, stride, padding=1))
            if k == 14:
                layers.append(nn.Tanh())
            else:
                layers.append(nn.BatchNorm2d(NUM_PARTS))
                if k != 9:
                    layers.append(nn.ReLU(inplace=True))
        self.layers, self.zero_shear = nn.Sequential(*layers), ZeroShear()

    def forward(self, probs_BKHW: Tensor) -> Tensor:
        """probs_BKHW: softmax of the coarse logits, 128 x 128. Returns theta_BP23."""
        return self.zero_shear(self.layers(probs_BKHW))


def build_localizer(kind: str, input_size: int = 128) -> nn.Module:
    """kind: one of ``KINDS``. input_size: side of the rough mask; the released one works at 128 alone."""
    if kind == "paper":
        return PaperLocalizer(input_size)
    return ResNetLocalizer() if kind == "resnet18" else ReleasedLocalizer()
