"""The chain: every stage and every row of the table, and nothing twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evaluate
import reproduce
from data.labels import NINE
from data.loaders import open_faces
from data.source import FaceData
from scoring.evaluation import Request
from tests.damage import refuses
from tests.fixtures import draw_faces, write_challenge
from utils.files import sha256
from utils.runtime import Machine


@pytest.fixture(scope="module")
def small(tiny_options) -> list[str]:
    """Options of a chain that trains for seconds."""
    sizes = ["--coarse-size", "32", "--crop-size", "17", "--batch-size", "2", "--max-images", "2"]
    return [*tiny_options, *sizes, "--recipe", "best", "--epochs", "1", "1", "1", "1"]


@pytest.fixture(scope="module")
def chain(small, tmp_path_factory) -> list[str]:
    """The options of a chain that is finished; the last one is its folder. No other script's main was called."""

    def refuse(*_):
        raise AssertionError("a script's main was called")

    options = [*small, "--out", str(tmp_path_factory.mktemp("chain"))]
    with pytest.MonkeyPatch.context() as patch:
        for script in (evaluate, *(stage.script for stage in reproduce.STAGES.values())):
            patch.setattr(script, "main", refuse)
        assert reproduce.main(options) == 0
    return options


@pytest.fixture
def copy(chain, tmp_path) -> tuple[list[str], Path]:
    """The options of a copy of it, and its folder."""
    out = Path(shutil.copytree(chain[-1], tmp_path / "chain"))
    return [*chain[:-1], str(out)], out


def changed(options: list[str], flag: str, value: object, nth: int = 1) -> list[str]:
    """The options with another nth value of one."""
    at = options.index(flag) + nth
    return [*options[:at], str(value), *options[at + 1 :]]


def written(out: Path) -> dict[Path, int]:
    """When each file of the chain was written."""
    kept = [path for path in out.rglob("*") if path.name in ("last.pt", "best.pt", "scores.json", "log.jsonl")]
    return {path: path.stat().st_mtime_ns for path in kept}


def test_one_command_trains_all_stages_and_scores_every_row_through_no_other_command_line(chain):
    out = Path(chain[-1])
    assert all((out / stage / "best.pt").exists() for stage in reproduce.STAGES)
    table = (out / "table_test.md").read_text()
    for title in reproduce.ROWS:
        assert f"| {title} |" in table
        about = json.loads((out / "scores" / "test" / reproduce.slug(title) / "scores.json").read_text())
        assert len(about["sha256"]) == len(reproduce.ROWS[title].stages)
    assert len(list((out / "scores" / "test").glob("*/scores.json"))) == 5


def test_one_command_trains_on_helen_and_fine_tunes_on_celebamask_for_each_seed(small, helen_root, tmp_path):
    write_challenge(tmp_path / "celeb", draw_faces(train=3, val=1, test=1))
    options = ["--hybrid", str(helen_root), "--seeds", "4", "--out", str(tmp_path / "mine")]
    changed = [{"helen": "celebamask", str(helen_root): str(tmp_path / "celeb")}.get(word, word) for word in small]
    assert reproduce.main([*changed, *options]) == 0
    out, helen = tmp_path / "mine-seed4", tmp_path / "mine-seed4-helen"
    assert "| *paper: STN-iCNN* | 0.895 |" in (helen / "table_test.md").read_text()
    text = (out / "table_test.md").read_text()
    assert "| STN-iCNN |" in text
    assert "old cropper" not in text.split("*paper")[0]
    config = json.loads((out / "end2end" / "config.json").read_text())
    assert (config["dataset"], config["images"], config["seed"]) == ("celebamask", 2, 4)
    assert config["started_from"] == {"init_from": sha256(helen / "end2end" / "best.pt")}


def test_what_is_finished_is_not_done_again_by_the_content_of_weights_and_data(chain, helen_root, tmp_path):
    (Path(chain[-1]) / "end2end" / "best.pt").touch()  # its time counts for nothing
    before = written(Path(chain[-1]))
    assert reproduce.main(changed(chain, "--data", shutil.copytree(helen_root, tmp_path / "faces"))) == 0
    assert written(Path(chain[-1])) == before


def test_a_stage_whose_folder_is_trained_anew_is_scored_again(copy):
    options, out = copy
    before = written(out)
    shutil.rmtree(out / "end2end")
    assert reproduce.main(changed(options, "--epochs", 2, nth=4)) == 0
    now = written(out)
    again = {path.parent.name for path in before if path.name == "scores.json" and now[path] != before[path]}
    assert again == {"STN-iCNN", "STN-iCNN__true_windows"}


def test_a_stage_whose_source_was_trained_anew_is_refused_in_one_line(copy):
    options, out = copy
    shutil.rmtree(out / "stage1")
    with refuses(out / "cropper" / "last.pt", "was trained with started_from.init_from "):
        reproduce.main(changed(options, "--epochs", 2))


OTHER = {"face_size": 96, "max_images": 1, "partition": "thirds", "dataset": "synthetic", "data": 64 * "0"}


def test_scores_of_other_faces_do_not_pass_for_those_asked_for(chain, helen_root, tmp_path):
    out = Path(chain[-1])
    file = out / "scores" / "test" / "STN-iCNN" / "scores.json"
    data = FaceData("helen", helen_root, max_images=2, cache=Path(chain[chain.index("--cache") + 1]))
    request = Request([out / "end2end" / "best.pt"], data, Machine(torch.device("cpu")))
    assert reproduce.is_scored(file, request)
    scores = json.loads(file.read_text())
    assert scores["data"] == open_faces(data, "test", NINE).fingerprint
    for name, value in OTHER.items():
        (tmp_path / "scores.json").write_text(json.dumps({**scores, name: value}))
        assert not reproduce.is_scored(tmp_path / "scores.json", request), name
    for other in ({"checkpoints": [out / "stage2" / "best.pt"]}, {"split": "val"}, {"crops": "truth"}):
        assert not reproduce.is_scored(file, replace(request, **other)), other
    (tmp_path / "scores.json").write_bytes(b'{"a": [1, 2')
    with refuses("scores.json"):
        reproduce.is_scored(tmp_path / "scores.json", request)
