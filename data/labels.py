"""The one class table: every data set's ids, their merge into the nine labels, sides and colours.

Side convention, the same for every data set: ``brow1`` and ``eye1`` lie on the **image's left**
(the subject's right), ``brow2`` and ``eye2`` on the image's right.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The nine labels that STN-iCNN segments (paper section 3.1); skin and hair count as background.
LABELS = (
    "background",
    "brow1",
    "brow2",
    "eye1",
    "eye2",
    "nose",
    "upper_lip",
    "inner_mouth",
    "lower_lip",
)
NUM_LABELS = len(LABELS)
MIRROR_LABELS = (0, 2, 1, 4, 3, 5, 6, 7, 8)  # label of the same pixel once the photo is mirrored

# The six parts that are cropped, and the labels that each window may hold besides background.
PARTS = ("brow1", "brow2", "eye1", "eye2", "nose", "mouth")
PART_LABELS = ((1,), (2,), (3,), (4,), (5,), (6, 7, 8))
NUM_PARTS = len(PARTS)
MIRROR_PARTS = (1, 0, 3, 2, 4, 5)

# Groups of the paper's F1 tables: confusions inside a group count as correct (spec of the metric: utils.metrics).
PAPER_GROUPS = {
    "eyes": (3, 4),
    "brows": (1, 2),
    "nose": (5,),
    "in_mouth": (7,),
    "upper_lip": (6,),
    "lower_lip": (8,),
    "mouth": (6, 7, 8),
    "overall": (1, 2, 3, 4, 5, 6, 7, 8),
}

# One colour (RGB) per label, for overlays and colour maps.
COLOURS = np.array(
    [
        (0, 0, 0),
        (255, 196, 0),
        (255, 120, 0),
        (0, 200, 255),
        (0, 90, 255),
        (80, 220, 80),
        (255, 60, 130),
        (150, 0, 60),
        (190, 70, 255),
    ],
    np.uint8,
)


@dataclass(frozen=True)
class ClassTable:
    """Classes of one data set.

    names: class names, position = id in the label maps.
    merge: uint8 array (256,), id -> one of the nine labels; ids that do not exist map to 255.
    mirror: uint8 array (256,), id -> id of the same pixel once the photo is mirrored.
    """

    names: tuple[str, ...]
    merge: np.ndarray
    mirror: np.ndarray


def _table(names: tuple[str, ...], merge: dict[str, str], pairs: tuple[tuple[str, str], ...]) -> ClassTable:
    lut = np.full(256, 255, np.uint8)
    lut[: len(names)] = 0
    for name, label in merge.items():
        lut[names.index(name)] = LABELS.index(label)
    mirror = np.arange(256, dtype=np.uint8)
    for one, two in pairs:
        a, b = names.index(one), names.index(two)
        mirror[a], mirror[b] = b, a
    return ClassTable(names, lut, mirror)


# HELEN (Smith et al. 2013). Its files' "left" is settled by data.helen, which reads the masks' x-centres;
# the label maps that it returns already follow the side convention above, as the synthetic faces do.
HELEN = _table(
    ("background", "skin", "brow1", "brow2", "eye1", "eye2", "nose", "upper_lip", "inner_mouth", "lower_lip", "hair"),
    {name: name for name in LABELS},
    (("brow1", "brow2"), ("eye1", "eye2")),
)
SYNTHETIC = HELEN

# CelebAMask-HQ (Lee et al. 2019), challenge numbering. l_ is the subject's left, hence the image's right.
CELEBAMASK = _table(
    (
        "background",
        "skin",
        "nose",
        "eye_g",
        "l_eye",
        "r_eye",
        "l_brow",
        "r_brow",
        "l_ear",
        "r_ear",
        "mouth",
        "u_lip",
        "l_lip",
        "hair",
        "hat",
        "ear_r",
        "neck_l",
        "neck",
        "cloth",
    ),
    {
        "r_brow": "brow1",
        "l_brow": "brow2",
        "r_eye": "eye1",
        "l_eye": "eye2",
        "nose": "nose",
        "u_lip": "upper_lip",
        "mouth": "inner_mouth",
        "l_lip": "lower_lip",
    },
    (("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear")),
)

TABLES = {"helen": HELEN, "celebamask": CELEBAMASK, "synthetic": SYNTHETIC}


def labels_at(labels_BHW: Tensor, points_px: Tensor, sizes_B2: Tensor) -> Tensor:
    """Label (uint8) of the pixel nearest to each point; 0 outside the photo.

    points_px: (B, ..., 2) as (x, y) in pixels of the photo.
    """
    batch, _, width = labels_BHW.shape
    flat_BN2 = points_px.reshape(batch, -1, 2).round().long()
    x_BN, y_BN = flat_BN2.unbind(-1)
    inside_BN = (x_BN >= 0) & (y_BN >= 0) & (x_BN < sizes_B2[:, 1:]) & (y_BN < sizes_B2[:, :1])
    index_BN = torch.where(inside_BN, y_BN * width + x_BN, 0)
    found_BN = labels_BHW.reshape(batch, -1).gather(1, index_BN)
    return torch.where(inside_BN, found_BN, 0).reshape(points_px.shape[:-1])
