"""Label sets: what the ids of a label map mean, for each data set and each parser.

Side convention, the same everywhere: ``brow1`` and ``eye1`` lie on the **image's left** (the subject's right),
``brow2`` and ``eye2`` on the image's right.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from utils.errors import InputError
from utils.files import parse_json, read_text

NO_ID = 255  # what a map between label sets gives for ids that do not exist, and the id of ignored pixels

# The six parts that STN-iCNN crops, and the labels that make up each of them.
PARTS = {
    "brow1": ("brow1",),
    "brow2": ("brow2",),
    "eye1": ("eye1",),
    "eye2": ("eye2",),
    "nose": ("nose",),
    "mouth": ("upper_lip", "inner_mouth", "lower_lip"),
}
NUM_PARTS = len(PARTS)
MIRROR_PARTS = (1, 0, 3, 2, 4, 5)  # part at the same place once the photo is mirrored

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class LabelSet:
    """The labels of a data set or of a parser; sets of equal name and names are equal.

    name: what checkpoints and scores.json call it. names: position = id; 0 is background. colours: RGB, 0 to 255; by
    default those of the same labels in other sets, and hues far apart. pairs: labels that change places once a photo is
    mirrored. groups: columns of the paper's F1 table, each with the labels that it pools; empty for sets that the paper
    has no table for. shared: own name -> the name that other sets have for the same label, where it differs. published:
    RGB of the labels in the pictures of the data set's own authors; empty where there is no such palette. ignores:
    whether label maps may hold the id 255, whose pixels count neither in losses nor in scores. Raises ValueError where
    these do not fit each other.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...] = field(default=(), compare=False)
    pairs: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    shared: Mapping[str, str] = field(default_factory=dict, compare=False)
    published: tuple[tuple[int, int, int], ...] = field(default=(), compare=False)
    ignores: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= NO_ID or len(set(self.names)) < len(self.names):
            raise ValueError(f"label set {self.name}: needs 2 to {NO_ID} different names")
        for palette in (self.colours, self.published):
            if palette and len(palette) != len(self.names):
                raise ValueError(f"label set {self.name}: {len(self.names)} names, but {len(palette)} colours")
        used = {*sum(self.pairs, ()), *sum(self.groups.values(), ()), *self.shared}
        if unknown := used - set(self.names):
            raise ValueError(f"label set {self.name} has no {', '.join(sorted(unknown))}")
        if not self.colours:
            colours = (_colour(self.shared.get(name, name), number) for number, name in enumerate(self.names))
            object.__setattr__(self, "colours", tuple(colours))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def stored(self) -> str | dict[str, Any]:
        """What checkpoints hold of it: the name of a set of this module, all of any other; see ``label_set``."""
        if self.name in LABEL_SETS:
            return self.name
        groups = {name: list(labels) for name, labels in self.groups.items()}
        lists = {"names": list(self.names), "colours": [*map(list, self.colours)], "pairs": [*map(list, self.pairs)]}
        return {"name": self.name, **lists, "groups": groups, "shared": dict(self.shared)}

    @property
    def foreground(self) -> tuple[str, ...]:
        """All names but the background's."""
        return self.names[1:]

    @property
    def words(self) -> tuple[str, ...]:
        """The names as people say them; left and right are the subject's."""
        sides = {"l_": "left ", "r_": "right "}
        return tuple(_WORDS.get(name) or sides.get(name[:2], name[:2]) + name[2:] for name in self.names)

    @cached_property
    def mirror(self) -> tuple[int, ...]:
        """Id of the same pixel once the photo is mirrored, for each id."""
        swapped = {one: two for pair in self.pairs for one, two in (pair, pair[::-1])}
        return tuple(self.names.index(swapped.get(name, name)) for name in self.names)

    @cached_property
    def mirror_256(self) -> tuple[int, ...]:
        """``mirror`` for all numbers of a uint8; those without a label stay what they are."""
        return (*self.mirror, *range(len(self), 256))

    @cached_property
    def part_ids(self) -> tuple[tuple[int, ...], ...]:
        """The ids of each of ``PARTS``; empty for a set that lacks any of their labels."""
        ids = {name: i for i, name in enumerate(self._shared_names)}
        parts = tuple(tuple(ids[name] for name in names if name in ids) for names in PARTS.values())
        return parts if all(map(len, parts)) else ()

    @property
    def _shared_names(self) -> tuple[str, ...]:
        return tuple(self.shared.get(name, name) for name in self.names)

    def group_ids(self, group: str) -> tuple[int, ...]:
        """The ids that a column of the paper's F1 table pools."""
        return tuple(self.names.index(name) for name in self.groups[group])

    def map_to(self, target: "LabelSet") -> np.ndarray:
        """The same label maps in another set's ids: uint8 (256,), id here -> id there.

        Labels that the other set does not have become background; ids that do not exist map to ``NO_ID``.
        Raises InputError where the other set has labels that cannot be told from this set's.
        """
        own, wanted = self._shared_names, target._shared_names
        lacking = [name for name, same in zip(target.names, wanted, strict=True) if same not in own]
        if lacking:
            raise InputError(
                f"label set {self.name} has no separate {', '.join(lacking)}, which label set {target.name} needs: "
                "choose a checkpoint and data with compatible labels"
            )
        lut = np.full(256, NO_ID, np.uint8)
        lut[: len(own)] = [wanted.index(name) if name in wanted else 0 for name in own]
        return lut


def among(labels: Array, ids: Sequence[int]) -> Array:
    """Where a label map (integer, any shape, NumPy or torch) holds one of these ids: bool, of the same shape."""
    found = labels == ids[0]
    for other in ids[1:]:
        found = found | (labels == other)
    return found


_BROWS_AND_EYES = (("brow1", "brow2"), ("eye1", "eye2"))
_WORDS = {
    "eye_g": "glasses",
    "ear_r": "earring",
    "neck_l": "necklace",
    "cloth": "clothes",
    "mouth": "inner mouth",
    "u_lip": "upper lip",
    "l_lip": "lower lip",
    "upper_lip": "upper lip",
    "inner_mouth": "inner mouth",
    "lower_lip": "lower lip",
}
_RGB = {
    "background": (0, 0, 0),
    "brow1": (255, 196, 0),
    "brow2": (255, 120, 0),
    "eye1": (0, 200, 255),
    "eye2": (0, 90, 255),
    "nose": (80, 220, 80),
    "upper_lip": (255, 60, 130),
    "inner_mouth": (20, 0, 130),
    "lower_lip": (190, 70, 255),
    "skin": (0, 150, 120),  # no colour that skin has, nor hair
    "hair": (220, 30, 30),
    "eye_g": (120, 255, 255),
    "l_ear": (140, 200, 0),
    "r_ear": (90, 140, 0),
    "hat": (130, 80, 30),
    "ear_r": (255, 240, 150),
    "neck_l": (255, 0, 255),
    "neck": (180, 150, 200),
    "cloth": (100, 110, 170),
}
_CELEBAMASK_SHARED = {
    "r_brow": "brow1",
    "l_brow": "brow2",
    "r_eye": "eye1",
    "l_eye": "eye2",
    "u_lip": "upper_lip",
    "mouth": "inner_mouth",
    "l_lip": "lower_lip",
}


def _colour(name: str, number: int) -> tuple[int, ...]:
    """RGB of a label: of the same name in the sets below, or hues far apart."""
    hue = colorsys.hsv_to_rgb((number * 0.618) % 1, 0.8, 0.95)
    return _RGB.get(_CELEBAMASK_SHARED.get(name, name)) or tuple(round(255 * value) for value in hue)


_INNER = ("brow1", "brow2", "eye1", "eye2", "nose", "upper_lip", "inner_mouth", "lower_lip")
_GROUPS = {
    "eyes": ("eye1", "eye2"),
    "brows": ("brow1", "brow2"),
    "nose": ("nose",),
    "in_mouth": ("inner_mouth",),
    "upper_lip": ("upper_lip",),
    "lower_lip": ("lower_lip",),
    "mouth": ("upper_lip", "inner_mouth", "lower_lip"),
    "overall": _INNER,
}
_NINE = ("background", *_INNER)

# What STN-iCNN labels (paper section 3.1); skin and hair count as background. Confusions inside a group of the F1
# table count as correct (see scoring.metrics).
NINE = LabelSet("nine", _NINE, pairs=_BROWS_AND_EYES, groups=_GROUPS)

# HELEN (Smith et al. 2013), and the faces that are drawn here. Which side its files' "left" is, data.datasets.helen
# settles by reading the masks.
_HELEN = ("background", "skin", *_INNER, "hair")
HELEN = LabelSet("helen", _HELEN, pairs=_BROWS_AND_EYES, groups=_GROUPS)

# LaPa (Liu et al. 2020). Its list of labels says "left eyebrow, right eyebrow, left eye, right eye" for ids 2 to 5 and
# means the image's left: FaRL's parser, trained on LaPa, calls the same ids right and left of the subject.
# data.datasets.merged settles it by reading the maps all the same.
LAPA = LabelSet("lapa", _HELEN, pairs=_BROWS_AND_EYES, groups=_GROUPS)

# CelebAMask-HQ (Lee et al. 2019), challenge numbering. l_ is the subject's left, hence the image's right.
_CELEBAMASK = (
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
)
CELEBAMASK = LabelSet(
    "celebamask",
    _CELEBAMASK,
    pairs=(("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear")),
    shared=_CELEBAMASK_SHARED,
    published=(
        (0, 0, 0),
        (204, 0, 0),
        (76, 153, 0),
        (204, 204, 0),
        (51, 51, 255),
        (204, 0, 204),
        (51, 255, 255),
        (247, 206, 205),
        (102, 51, 0),
        (255, 0, 0),
        (102, 204, 0),
        (255, 255, 0),
        (0, 0, 153),
        (0, 0, 204),
        (255, 51, 153),
        (0, 204, 204),
        (0, 51, 0),
        (255, 153, 51),
        (0, 204, 0),
    ),
)

LABEL_SETS = {labels.name: labels for labels in (NINE, HELEN, LAPA, CELEBAMASK)}

# Other orders of the same labels, which label maps to be scored may come in: that of the BiSeNet releases.
_BISENET = (
    *("background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r", "nose", "mouth"),
    *("u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat"),
)
ORDERS = {"bisenet": _BISENET}


_KNOWN = [*dict.fromkeys(name for labels in LABEL_SETS.values() for name in labels.names)]


def read_ids(text: str) -> LabelSet:
    """The label set that maps to be scored follow: one of ``LABEL_SETS`` or ``ORDERS``, or a JSON file, which holds a
    list of names, an object {id: name}, where several ids may have one name, or a set as ``label_set`` takes it. Raises
    InputError for anything else."""
    if text in LABEL_SETS:
        return LABEL_SETS[text]
    names: object = list(ORDERS.get(text, ()))
    if not names:
        if not text.lower().endswith(".json"):
            raise InputError(f"ids {text!r}: choose from {', '.join((*LABEL_SETS, *ORDERS))}, or give a file.json")
        names = parse_json(read_text(Path(text), "ids"), text, "ids")
        if isinstance(names, dict) and "names" in names:
            return read_label_set(text)
        if isinstance(names, dict):
            if names.keys() != {str(number) for number in range(len(names))}:
                raise InputError(f"{text}: name every id from 0 on, without gaps; those without a label: background")
            names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not 2 <= len(names) <= NO_ID:
        raise InputError(f"{text} must hold a list of 2 to {NO_ID} names, or an object {{id: name}}")
    if unknown := [str(name)[:40] for name in names if not isinstance(name, str) or name not in _KNOWN]:
        raise InputError(f"{text}: unknown labels {', '.join(unknown[:5])}: choose from {', '.join(_KNOWN)}")
    own = [name if name not in names[:number] else f"{name} {number}" for number, name in enumerate(names)]
    shared = {one: _CELEBAMASK_SHARED.get(name, name) for one, name in zip(own, names, strict=True)}
    return LabelSet(text, tuple(own), shared=shared)


def read_label_set(text: str) -> LabelSet:
    """The set of a name in ``LABEL_SETS``, or of a JSON file that holds an object as ``label_set`` takes it. Raises
    InputError for anything else."""
    if not text.lower().endswith(".json"):
        return label_set(text)
    held = parse_json(read_text(Path(text), "label set"), text, "label set")
    try:
        if not isinstance(held, dict):
            raise InputError("must hold an object with the names of its labels")
        return label_set({"name": Path(text).stem, **held})
    except InputError as error:
        raise InputError(f"{text}: {error}") from None


def label_set(held: object) -> LabelSet:
    """The set of a name in ``LABEL_SETS``, or of a dict: "name", "names", and if wanted "colours", "pairs", "groups",
    "shared" and "ignores", see ``LabelSet``. Raises InputError for anything else."""
    if not isinstance(held, dict):
        if not isinstance(held, str) or held not in LABEL_SETS:
            choices = f"{', '.join(LABEL_SETS)}, or give a file.json"
            raise InputError(f"unknown label set {str(held)[:40]!r}: choose from {choices}")
        return LABEL_SETS[held]
    values: dict[str, Any] = {"colours": [], "pairs": [], "groups": {}, "shared": {}, "ignores": False}
    if strange := [str(key)[:40] for key in held if key not in (*values, "name", "names")]:
        raise InputError(f"a label set has no {', '.join(strange[:5])}: it has name, names, {', '.join(values)}")
    values |= held
    try:
        (name,), names = _texts([values.get("name")]), _texts(values.get("names"))
        groups, shared = dict(values["groups"]), dict(values["shared"])
        _texts([*groups, *shared, *shared.values()])
        colours = [*map(tuple, values["colours"])]
        if not all(len(rgb) == 3 and {*rgb} <= {*range(256)} for rgb in colours):
            raise ValueError("its colours must be three numbers of 0 to 255 each")
        pairs = [_texts(pair) for pair in values["pairs"]]
        if not all(len(pair) == 2 for pair in pairs) or name in LABEL_SETS:
            raise ValueError(f"its pairs must be of two names, its own name none of {', '.join(LABEL_SETS)}")
        groups = {group: _texts(pooled) for group, pooled in groups.items()}
        return LabelSet(name, names, tuple(colours), tuple(pairs), groups, shared, ignores=values["ignores"] is True)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(f"label set {str(held.get('name'))[:40]!r}: {error}") from None


def _texts(values: Any) -> tuple[str, ...]:
    """Raises TypeError for anything but a list of short texts."""
    short = isinstance(values, list | tuple) and all(isinstance(v, str) and 0 < len(v) < 100 for v in values)
    if not short or not all(v.isprintable() for v in values):
        raise TypeError(f"expected a list of names, not {str(values)[:60]}")
    return tuple(values)
