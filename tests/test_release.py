"""Half the size, the same labels."""

import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.labels import CELEBAMASK
from models.deeplab import DeepLab, DeepLabConfig
from models.loading import KINDS, load_parser
from models.parser import FaceParser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from tests.tiny_parser import TinyConfig, TinyParser
from tools import release
from utils import checkpoint
from utils.errors import InputError

ABOUT = {"dataset": "synthetic", "images": 4, "seed": 0, "recipe": {"batch_size": 2}, "epoch": 0, "best": {"f1": 0.5}}


def save(path: Path, model: FaceParser, stage: str) -> Path:
    """A checkpoint as training leaves it."""
    modules = {name: getattr(model, name).state_dict() for name in model.networks}
    what = {"stage": stage, "parser": model.kind, "labels": model.labels.name, "config": asdict(model.config)}
    checkpoint.save(path, {**what, "modules": modules, **ABOUT, "optimizer": {}})
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(tmp_path / "best.pt", STNiCNN(STNiCNNConfig(coarse_size=32, crop_size=17)), "end2end")


def test_weights_that_ship_are_half_as_large_and_label_alike(trained, tmp_path):
    out = tmp_path / "shipped.pt"
    assert release.main(["--checkpoint", str(trained), "--out", str(out)]) == 0
    assert out.stat().st_size < 0.6 * trained.stat().st_size
    photos_BHW3 = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        one, two = (load_parser([path])(photos_BHW3).argmax(1) for path in (trained, out))
    assert (one == two).float().mean() > 0.99


def test_what_the_weights_are_is_kept_and_what_only_training_needs_is_not(trained, tmp_path):
    out = tmp_path / "shipped.pt"
    assert release.main(["--checkpoint", str(trained), "--out", str(out)]) == 0
    shipped, state = checkpoint.load(out), checkpoint.load(trained)
    assert shipped.keys() == state.keys() - {"optimizer"}
    for key in shipped.keys() - {"modules"}:
        assert shipped[key] == state[key]


def test_any_parser_ships(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, TinyParser.kind, TinyParser)
    best = save(tmp_path / "best.pt", TinyParser(TinyConfig(channels=4), CELEBAMASK), "tiny")
    out = tmp_path / "shipped.pt"
    assert release.main(["--checkpoint", str(best), "--out", str(out)]) == 0
    assert checkpoint.load(out, ("tiny",))["labels"] == "celebamask"
    assert isinstance(load_parser([out]), TinyParser)


def test_modules_of_a_later_checkpoint_win(trained, tmp_path):
    state = checkpoint.load(trained)
    localizer = {key: torch.zeros_like(value) for key, value in state["modules"]["localizer"].items()}
    other = {**state, "stage": "cropper", "modules": {"localizer": localizer}, "seed": 7}
    checkpoint.save(tmp_path / "other.pt", other)
    out = tmp_path / "shipped.pt"
    assert release.main(["--checkpoint", str(trained), str(tmp_path / "other.pt"), "--out", str(out)]) == 0
    shipped = checkpoint.load(out, ("end2end",))
    assert not any(value.any() for value in shipped["modules"]["localizer"].values())
    for key, value in state["modules"]["parts"].items():
        torch.testing.assert_close(shipped["modules"]["parts"][key].to(value.dtype), value, rtol=1e-3, atol=1e-4)
    assert shipped["seed"] == 7


def test_a_file_that_is_there_is_not_replaced_unasked(trained, tmp_path):
    (tmp_path / "mine.pt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        release.main(["--checkpoint", str(trained), "--out", str(tmp_path / "mine.pt")])
    assert (tmp_path / "mine.pt").read_text() == "mine"


def test_a_name_that_no_file_can_have_is_one_line(trained, tmp_path):
    with pytest.raises(InputError, match=r"could not be saved \(File name too long\)"):
        release.main(["--checkpoint", str(trained), "--out", str(tmp_path / ("a" * 300))])


def test_weights_that_are_not_finite_do_not_ship(trained, tmp_path):
    state = checkpoint.load(trained)
    state["modules"]["parts"]["nets.brows.head.2.bias"].fill_(torch.nan)
    checkpoint.save(trained, state)
    with pytest.raises(InputError, match=r"parts\.nets\.brows\.head\.2\.bias holds NaN or infinity"):
        release.main(["--checkpoint", str(trained), "--out", str(tmp_path / "shipped.pt")])
    assert not (tmp_path / "shipped.pt").exists()


def test_the_help_names_the_command_as_it_is_typed(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="tools.release"))
    with pytest.raises(SystemExit):
        release.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m tools.release ")


def test_weights_beyond_half_precision_are_refused():
    with pytest.raises(InputError, match=r"coarse\.w does not fit"):
        release.halved({"coarse": {"w": torch.tensor([1e6])}})


def test_two_parsers_are_not_released_as_one(trained, tmp_path):
    whole = save(tmp_path / "whole.pt", DeepLab(DeepLabConfig(32), CELEBAMASK), "deeplab")
    with pytest.raises(InputError, match="are of two parsers"):
        release.main(["--checkpoint", str(trained), str(whole), "--out", str(tmp_path / "shipped.pt")])
    assert not (tmp_path / "shipped.pt").exists()


def test_the_average_of_trainings_is_the_mean_of_weights_and_statistics(trained, tmp_path):
    state, out = checkpoint.load(trained), tmp_path / "shipped.pt"
    paths = [trained, tmp_path / "second.pt", tmp_path / "third.pt"]
    for factor, path in zip((4, 7), paths[1:], strict=True):
        modules = {
            name: {key: value * factor if value.is_floating_point() else value for key, value in weights.items()}
            for name, weights in state["modules"].items()
        }
        checkpoint.save(path, {**state, "modules": modules})
    assert release.main(["--average", "--checkpoint", *map(str, paths), "--out", str(out)]) == 0
    shipped = checkpoint.load(out, ("end2end",))
    assert not shipped.keys() & {"seed", "epoch", "best", "optimizer"}  # of one training, not of three
    for name, weights in state["modules"].items():
        for key, value in weights.items():
            mean = 4 * value if value.is_floating_point() else value
            torch.testing.assert_close(shipped["modules"][name][key].to(value.dtype), mean, rtol=1e-3, atol=1e-4)


def test_only_trainings_of_one_parser_are_averaged(trained, tmp_path):
    def average(*paths: Path) -> None:
        release.main(["--average", "--checkpoint", *map(str, paths), "--out", str(tmp_path / "shipped.pt")])

    with pytest.raises(InputError, match="two checkpoints or more"):
        average(trained)
    other = save(tmp_path / "other.pt", STNiCNN(STNiCNNConfig(coarse_size=64, crop_size=17)), "end2end")
    whole = save(tmp_path / "whole.pt", DeepLab(DeepLabConfig(32), CELEBAMASK), "deeplab")
    for path in (other, whole):
        with pytest.raises(InputError, match=f"{path} holds another parser"):
            average(trained, path)
    state = checkpoint.load(trained)
    checkpoint.save(tmp_path / "part.pt", {**state, "modules": {"coarse": state["modules"]["coarse"]}})
    with pytest.raises(InputError, match=r"part\.pt"):
        average(trained, tmp_path / "part.pt")
    assert not (tmp_path / "shipped.pt").exists()
