"""torch.hub gives a parser that is ready to label photos, from whatever folder it is asked."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hubconf
import predict
from data.images import read_labels
from data.labels import NINE
from models.loading import SHIPPED_WEIGHTS
from tests.test_evaluate import save_models
from tools.portrait import portrait
from utils.errors import InputError

REPOSITORY = Path(hubconf.__file__).resolve().parent

# What a user's own program does, in a folder with modules that are called like some of ours.
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
np.save("labels.npy", whole)
print(" ".join(parser.labels.names))
"""


def load(*arguments: str, **options: object) -> torch.nn.Module:
    return torch.hub.load(str(REPOSITORY), "stn_icnn", *arguments, source="local", trust_repo=True, **options)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real face."""
    path = tmp_path_factory.mktemp("photo") / "portrait.png"
    Image.fromarray(portrait()).save(path)
    return path


def predicted(photo: Path, out: Path, *options: str) -> np.ndarray:
    """The labels that predict.py writes."""
    argv = [str(photo), "--out", str(out), "--device", "cpu", "--amp", "off", "--no-overlay", *options]
    assert predict.main(argv) == 0
    return read_labels(out / "portrait.png")


def test_the_hub_offers_the_parser_alone_and_says_what_it_is() -> None:
    assert [name for name, value in vars(hubconf).items() if callable(value) and name[0] != "_"] == ["stn_icnn"]
    assert "label_photos" in hubconf.stn_icnn.__doc__


@pytest.mark.skipif(not SHIPPED_WEIGHTS.is_file(), reason="needs the weights that ship")
def test_another_program_labels_a_portrait_as_predict_does(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("raise SystemExit('the wrong utils')")
    command = [sys.executable, "-c", PROGRAM, str(REPOSITORY)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "portrait.png").write_bytes(photo.read_bytes())
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == " ".join(NINE.names)
    labels = np.load(tmp_path / "labels.npy")
    assert np.array_equal(labels, predicted(photo, tmp_path / "out"))
    assert np.unique(labels).tolist() == list(range(9))


@pytest.mark.parametrize("mirror", [False, True])
def test_a_checkpoint_that_is_named_labels_as_predict_does(mirror: bool, photo: Path, tmp_path: Path) -> None:
    path = save_models(tmp_path)["end2end"]
    parser = load(path, mirror=mirror)
    (labels,) = parser.label_photos([portrait()])
    more = ["--mirror"] if mirror else []
    assert np.array_equal(labels, predicted(photo, tmp_path / "out", "--checkpoint", path, *more))


def test_a_wrong_file_is_an_input_error(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt: no such checkpoint file"):
        load(str(tmp_path / "none.pt"))
    with pytest.raises(InputError, match=r"portrait\.png: .* get it again"):
        load(checkpoint=str(photo))
    stage1 = save_models(tmp_path)["stage1"]
    with pytest.raises(InputError, match=r"stage1\.pt: no localizer or parts weights"):
        load(stage1)
