"""torch.hub gives a parser that is ready to label photos, from whatever folder it is asked."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from data.images import read_labels
from data.labels import NINE
from models.loading import SHIPPED_WEIGHTS
from tests.fixtures import REPOSITORY
from tests.test_evaluate import save_models
from tools.portrait import portrait

# What a user's own program does, in a folder with modules that are called like some of ours; the parser of faces has to
# go on working when the hub's path is gone.
PROGRAM = """
import sys
import numpy as np, torch
from PIL import Image
torch.set_num_threads(1)
parser = torch.hub.load(sys.argv[1], "stn_icnn", source="local", trust_repo=True)
photo = np.array(Image.open("portrait.png"))
narrow = photo[:, 20:170]
whole, cut = parser.label_photos([photo, narrow])
assert not parser.training and cut.shape == narrow.shape[:2]
parse = torch.hub.load(sys.argv[1], "faces", source="local", trust_repo=True)
assert sys.argv[1] not in sys.path
scene = parse("portrait.png")
assert len(scene.faces) == 1 and scene.faces[0].report()["box"]
assert np.array_equal(scene.labels_HW, parse(Image.open("portrait.png")).labels_HW)
np.savez("labels.npz", none=whole, all=scene.labels_HW)
print(" ".join(parser.labels.names))
"""


def load(*arguments: str, entry: str = "stn_icnn", **options: object) -> Any:
    return torch.hub.load(str(REPOSITORY), entry, *arguments, source="local", trust_repo=True, **options)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real face."""
    path = tmp_path_factory.mktemp("photo") / "portrait.png"
    Image.fromarray(portrait()).save(path)
    return path


def predicted(photo: Path, out: Path, *options: str, faces: str = "none") -> np.ndarray:
    """The labels that predict.py writes."""
    argv = f"{photo} --out {out} --device cpu --amp off --no-overlay --faces {faces}".split()
    assert predict.main([*argv, *options]) == 0
    return read_labels(out / "portrait.png")


@pytest.mark.skipif(not SHIPPED_WEIGHTS.is_file(), reason="needs the weights that ship")
def test_another_program_labels_a_portrait_and_finds_faces_as_predict_does(photo, tmp_path):
    for name in ("utils", "faces"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')")
    command = [sys.executable, "-c", PROGRAM, str(REPOSITORY)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "portrait.png").write_bytes(photo.read_bytes())
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == " ".join(NINE.names)
    for faces, labels in np.load(tmp_path / "labels.npz").items():
        assert np.array_equal(labels, predicted(photo, tmp_path / faces, faces=faces))
        assert np.unique(labels).tolist() == list(range(9))


def test_a_checkpoint_that_is_named_labels_as_predict_does(photo, tmp_path):
    path = save_models(tmp_path)["end2end"]
    (labels,) = load(path, mirror=True).label_photos([portrait()])
    assert np.array_equal(labels, predicted(photo, tmp_path / "out", "--checkpoint", path, "--mirror"))


@pytest.mark.skipif(not SHIPPED_WEIGHTS.is_file(), reason="needs the weights that ship")
def test_the_options_of_faces_reach_it():
    twice = np.concatenate([portrait(), portrait()[:, ::-1]], 1)
    largest = load(entry="faces", faces="largest")(twice)
    mirrored = load(entry="faces", faces="largest", mirror=True)(twice)
    assert len(largest.faces) == 1
    assert 0.9 < (largest.labels_HW == mirrored.labels_HW)[largest.labels_HW > 0].mean() < 1
