"""MTCNN, three small networks in a row, as FaceNet's release runs it; the networks are those of facenet-pytorch.

The package's own detector shrinks and rounds otherwise, and its boxes differ by two pixels. Coordinates are the
release's: counted from 1, both ends inside.
"""

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from faces.detect import Detection
from utils.errors import InputError

SMALLEST = 20  # side of the smallest face, pixels
FACTOR = 0.709  # of each size of the pyramid to the one before
THRESHOLDS = (0.6, 0.7, 0.7)  # least probability after each network
CELL, STRIDE = 12, 2  # what a cell of the first network sees, and the step from cell to cell, pixels


class Mtcnn:
    """The three networks. Raises InputError where the package is missing."""

    def __init__(self) -> None:
        try:
            from facenet_pytorch import ONet, PNet, RNet
        except ImportError as error:
            message = "MTCNN needs the package: pip install --no-deps facenet-pytorch==2.6.0"
            raise InputError(f"{message} ({error})") from error
        # (B, 3, H, W) -> box offsets (B, 4, h, w) and probabilities (B, 2, h, w) of every cell; (B, 3, 24, 24) -> those
        # (B, 4) and (B, 2); (B, 3, 48, 48) -> offsets (B, 4), points (B, 10: five x, five y) and probabilities (B, 2)
        self.pnet, self.rnet, self.onet = (network().requires_grad_(False) for network in (PNet, RNet, ONet))

    def find(self, photo_HW3: np.ndarray) -> list[Detection]:
        """Every face of a photo (uint8 (H, W, 3), RGB), most probable first.

        The corners of a box are the release's numbers as they are: pixels counted from 1.
        """
        boxes_N5 = self.propose(photo_HW3)
        if len(boxes_N5):
            boxes_N5, offsets_N4 = _likely(self.rnet, photo_HW3, boxes_N5, 24, THRESHOLDS[1])
            order = suppress(boxes_N5, 0.7)
            boxes_N5 = _squares(_moved(boxes_N5[order], offsets_N4[order], 1))
        if not len(boxes_N5):
            return []
        boxes_N5, offsets_N4, points_N10 = _likely(self.onet, photo_HW3, boxes_N5, 48, THRESHOLDS[2])
        low_N2, side_N2 = boxes_N5[:, :2], boxes_N5[:, 2:4] - boxes_N5[:, :2] + 1
        points_N52 = points_N10.reshape(-1, 2, 5).transpose(0, 2, 1) * side_N2[:, None] + low_N2[:, None] - 1
        boxes_N5 = _moved(boxes_N5, offsets_N4, 1)
        order = suppress(boxes_N5, 0.7, smaller=True)
        return [
            Detection((x1, y1, x2 - x1, y2 - y1), points_52, score)
            for (x1, y1, x2, y2, score), points_52 in zip(boxes_N5[order].tolist(), points_N52[order], strict=True)
        ]

    def propose(self, photo_HW3: np.ndarray) -> np.ndarray:
        """The first network over a pyramid of sizes: squares (N, 5) for the second."""
        height, width = photo_HW3.shape[:2]
        found = [np.zeros((0, 9))]
        for scale in scales(height, width):
            size = int(np.ceil(width * scale)), int(np.ceil(height * scale))
            maps = self.pnet(_input(cv2.resize(photo_HW3, size, interpolation=cv2.INTER_AREA)[None]))
            offsets_4hw, scores_2hw = (values_1Khw[0].numpy() for values_1Khw in maps)
            candidates_N9 = _candidates(scores_2hw[1], offsets_4hw, scale)
            found.append(candidates_N9[suppress(candidates_N9, 0.5)])
        boxes_N9 = np.concatenate(found)
        boxes_N9 = boxes_N9[suppress(boxes_N9, 0.7)]
        return _squares(_moved(boxes_N9[:, :5], boxes_N9[:, 5:], 0))


def _input(photos_NHW3: np.ndarray) -> Tensor:
    return (torch.from_numpy(photos_NHW3).permute(0, 3, 1, 2).float() - 127.5) / 128


def scales(height: int, width: int) -> list[float]:
    """The pyramid's scales: until the shorter side is smaller than a cell."""
    found, scale = [], CELL / SMALLEST
    while min(height, width) * scale >= CELL:
        found.append(scale)
        scale *= FACTOR
    return found


def suppress(boxes_N5: np.ndarray, most: float, smaller: bool = False) -> np.ndarray:
    """Indices of the boxes that stay, most probable first: none overlaps a better one by more than ``most``.

    The overlap is the intersection over the union, or, with ``smaller``, over the smaller of both boxes.
    """
    x1, y1, x2, y2, score = boxes_N5[:, :5].T
    area_N = (x2 - x1 + 1) * (y2 - y1 + 1)
    order, kept = np.argsort(score, kind="stable")[::-1], []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        wide = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + 1
        high = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + 1
        common = np.maximum(wide, 0) * np.maximum(high, 0)
        whole = np.minimum(area_N[best], area_N[rest]) if smaller else area_N[best] + area_N[rest] - common
        order = rest[common / whole <= most]
    return np.array(kept, np.int64)


def _candidates(scores_hw: np.ndarray, offsets_4hw: np.ndarray, scale: float) -> np.ndarray:
    """Cells of one size of the pyramid that may be faces: (N, 9: box, probability, offsets)."""
    rows, columns = np.nonzero(scores_hw >= THRESHOLDS[0])
    # the release reads the offsets of a size's only candidate from the mirrored cell
    read = scores_hw.shape[1] - 1 - columns if len(rows) == 1 else columns
    cells_N2 = np.stack([columns, rows], 1)
    low_N2, high_N2 = (np.fix((STRIDE * cells_N2 + end) / scale) for end in (1, CELL))
    return np.concatenate([low_N2, high_N2, scores_hw[rows, columns, None], offsets_4hw[:, rows, read].T], 1)


def _moved(boxes_N5: np.ndarray, offsets_N4: np.ndarray, plus: int) -> np.ndarray:
    """Boxes whose corners are moved by shares of their sides; plus: 1 where a side counts both its ends."""
    side_N2 = boxes_N5[:, 2:4] - boxes_N5[:, :2] + plus
    corners_N4 = boxes_N5[:, :4] + offsets_N4 * np.tile(side_N2, 2)
    return np.concatenate([corners_N4, boxes_N5[:, 4:5]], 1)


def _squares(boxes_N5: np.ndarray) -> np.ndarray:
    """Squares of the longer side about the same middles."""
    side_N2 = boxes_N5[:, 2:4] - boxes_N5[:, :2]
    longer_N1 = side_N2.max(1, keepdims=True)
    low_N2 = boxes_N5[:, :2] + side_N2 / 2 - longer_N1 / 2
    return np.concatenate([low_N2, low_N2 + longer_N1, boxes_N5[:, 4:5]], 1)


def _likely(
    network: nn.Module, photo_HW3: np.ndarray, boxes_N5: np.ndarray, side: int, least: float
) -> list[np.ndarray]:
    """What a network makes of the boxes, of which there are some: [those that are more probable than ``least``, with
    that probability; their offsets; further values], float64. side: of what it sees, pixels."""
    boxes_N4 = np.fix(boxes_N5[:, :4])
    *values, scores_N2 = (value.double().numpy() for value in network(_input(_crops(photo_HW3, boxes_N4, side))))
    kept_N = scores_N2[:, 1] > least
    return [value[kept_N] for value in (np.concatenate([boxes_N4, scores_N2[:, 1:]], 1), *values)]


def _crops(photo_HW3: np.ndarray, boxes_N4: np.ndarray, side: int) -> np.ndarray:
    """The boxes (whole numbers) cut out, black outside the photo, shrunk to the side: float32 (N, side, side, 3)."""
    height, width = photo_HW3.shape[:2]
    crops = []
    for x1, y1, x2, y2 in boxes_N4.astype(int):
        cut = np.zeros((max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1), 3), np.float32)
        top, left, bottom, right = max(y1, 1), max(x1, 1), min(y2, height), min(x2, width)
        if top <= bottom and left <= right:
            cut[top - y1 : bottom - y1 + 1, left - x1 : right - x1 + 1] = photo_HW3[top - 1 : bottom, left - 1 : right]
        crops.append(cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA))
    return np.stack(crops)
