"""Half the size, the same labels."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import release
from models.pretrained import MODULES, load_model
from models.stn_icnn import STNiCNN, STNiCNNConfig
from utils import checkpoint
from utils.errors import InputError


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = STNiCNN(STNiCNNConfig(coarse_size=32, crop_size=17))
    modules = {name: getattr(model, name).state_dict() for name in MODULES}
    about = {
        "dataset": "synthetic",
        "images": 4,
        "seed": 0,
        "recipe": {"batch_size": 2},
        "epoch": 0,
        "best": {"f1": 0.5},
    }
    state = {"stage": "end2end", "config": asdict(model.config), "modules": modules, **about, "optimizer": {}}
    checkpoint.save(tmp_path / "best.pt", state)
    return tmp_path / "best.pt"


def test_weights_that_ship_are_half_as_large_and_label_alike(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "shipped.pt"
    assert release.main(["--checkpoint", str(trained), "--out", str(out)]) == 0
    assert out.stat().st_size < 0.6 * trained.stat().st_size
    photos_BHW3 = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        one, two = (load_model([path])(photos_BHW3).argmax(1) for path in (trained, out))
    assert (one == two).float().mean() > 0.99


def test_modules_of_a_later_checkpoint_win(trained: Path, tmp_path: Path) -> None:
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


def test_a_file_that_is_there_is_not_replaced_unasked(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        release.main(["--checkpoint", str(trained), "--out", str(tmp_path / "mine.pt")])
    assert (tmp_path / "mine.pt").read_text() == "mine"


def test_weights_beyond_half_precision_are_refused() -> None:
    with pytest.raises(InputError, match=r"coarse\.w does not fit"):
        release.halved({"coarse": {"w": torch.tensor([1e6])}})
