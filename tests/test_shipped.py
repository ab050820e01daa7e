"""The weights that ship label a real portrait: every part is there, and lies where a face has it."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.labels import NINE
from models.loading import SHIPPED_WEIGHTS
from tools import demo


def test_the_portrait_s_parts_are_where_a_face_has_them(tmp_path: Path) -> None:
    assert SHIPPED_WEIGHTS.stat().st_size < 20e6
    overlay = demo.parse_portrait(tmp_path)
    assert Image.open(overlay).size == (384, 384)
    labels = np.array(Image.open(tmp_path / "parsed" / "portrait.png"))
    assert labels.shape == (384, 384)
    x, y = ({name: np.nonzero(labels == k)[axis].mean() for k, name in enumerate(NINE.names)} for axis in (1, 0))
    assert x["brow1"] < x["nose"] < x["brow2"]
    assert x["eye1"] < x["nose"] < x["eye2"]
    for brow, eye in (("brow1", "eye1"), ("brow2", "eye2")):
        assert y[brow] < y[eye] < y["nose"] < y["upper_lip"] < y["inner_mouth"] < y["lower_lip"]
        assert abs(x[brow] - x[eye]) < 20
