"""The weights that ship label a real portrait: every part is there, and lies where a face has it."""

import numpy as np
import skimage.data
from PIL import Image

from data.labels import NINE
from faces import load
from models.loading import SHIPPED_WEIGHTS, SHIPPED_WHOLE
from tools import demo


def test_the_portrait_s_parts_are_where_a_face_has_them(tmp_path):
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


def test_the_parser_of_the_whole_face_puts_hair_above_skin_above_neck():
    scene = load(device="cpu", labels="celebamask")(skimage.data.astronaut())  # Eileen Collins, NASA, public domain
    names, (face,) = scene.labels.names, scene.faces
    assert {"hair", "skin", "neck", "nose", "l_eye", "r_eye", "u_lip", "l_lip"} <= face.areas.keys()
    rows = {name: np.nonzero(scene.labels_HW == names.index(name))[0].mean() for name in ("hair", "nose", "neck")}
    columns = {name: np.nonzero(scene.labels_HW == names.index(name))[1].mean() for name in ("l_eye", "r_eye")}
    assert rows["hair"] < rows["nose"] < rows["neck"]
    assert columns["r_eye"] < columns["l_eye"]  # the subject's right is the image's left
    assert SHIPPED_WHOLE.stat().st_size < 8e6
