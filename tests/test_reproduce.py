"""The chain: every stage and every row of the table, and nothing twice."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import reproduce
from data.labels import NINE
from data.loaders import open_faces
from data.source import FaceData
from scoring.evaluation import Request
from tests.damage import JSON_BYTES, SPECIAL
from tests.fixtures import draw_faces, write_challenge
from tests.test_resume import another_run
from utils.errors import InputError
from utils.files import sha256
from utils.runtime import Machine, run_main

TITLES = (
    "coarse mask enlarged",
    "iCNN (old cropper)",
    "STN-iCNN before end-to-end",
    "STN-iCNN",
    "STN-iCNN, true windows",
)


@pytest.fixture(scope="module")
def small(tiny_options: list[str]) -> list[str]:
    """Options of a chain that trains for seconds."""
    sizes = ["--coarse-size", "32", "--crop-size", "17", "--batch-size", "2", "--max-images", "2"]
    return [*tiny_options, *sizes, "--recipe", "best", "--epochs", "1", "1", "1", "1"]


@pytest.fixture(scope="module")
def chain(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a chain that is finished; the last one is its folder. No other script's main was called."""

    def refuse(*_: object) -> int:
        raise AssertionError("a script's main was called")

    options = [*small, "--out", str(tmp_path_factory.mktemp("chain"))]
    with pytest.MonkeyPatch.context() as patch:
        for script in (evaluate, *(stage.script for stage in reproduce.STAGES.values())):
            patch.setattr(script, "main", refuse)
        assert reproduce.main(options) == 0
    return options


def written(out: Path) -> dict[Path, int]:
    """When each file of the chain was written."""
    kept = [path for path in out.rglob("*") if path.name in ("last.pt", "best.pt", "scores.json", "log.jsonl")]
    return {path: path.stat().st_mtime_ns for path in kept}


def rescored(out: Path, before: dict[Path, int]) -> set[str]:
    """The rows whose scores.json was written anew."""
    return {
        path.parent.name for path, time in written(out).items() if path.name == "scores.json" and time != before[path]
    }


def test_one_command_trains_all_stages_and_scores_every_row_through_no_other_command_line(chain: list[str]) -> None:
    out = Path(chain[-1])
    for stage in reproduce.STAGES:
        assert (out / stage / "best.pt").exists()
    table = (out / "table_test.md").read_text()
    assert tuple(reproduce.ROWS) == TITLES
    for title in TITLES:
        assert f"| {title} |" in table
        about = json.loads((out / "scores" / "test" / reproduce.slug(title) / "scores.json").read_text())
        assert len(about["sha256"]) == len(reproduce.ROWS[title].stages)
    assert len(list((out / "scores" / "test").glob("*/scores.json"))) == 5


def test_what_is_finished_is_not_done_again_by_the_content_of_weights_and_data(
    chain: list[str], helen_root: Path, tmp_path: Path
) -> None:
    (Path(chain[-1]) / "end2end" / "best.pt").touch()  # its time counts for nothing
    shutil.copytree(helen_root, tmp_path / "faces")
    before = written(Path(chain[-1]))
    assert reproduce.main(with_data(chain, tmp_path / "faces")) == 0
    assert written(Path(chain[-1])) == before


def test_a_stage_whose_folder_is_trained_anew_is_scored_again(chain: list[str], tmp_path: Path) -> None:
    out = tmp_path / "chain"
    shutil.copytree(chain[-1], out)
    before = written(out)
    shutil.rmtree(out / "end2end")
    options = chain[:-1]
    at = options.index("--epochs") + 4
    options[at] = "2"
    assert reproduce.main([*options, str(out)]) == 0
    assert rescored(out, before) == {"STN-iCNN", "STN-iCNN__true_windows"}


def test_a_stage_whose_source_was_trained_anew_is_refused_in_one_line(
    chain: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "chain"
    shutil.copytree(chain[-1], out)
    shutil.rmtree(out / "stage1")
    options = chain[:-1]
    options[options.index("--epochs") + 1] = "2"
    capsys.readouterr()
    assert run_main(lambda: reproduce.main([*options, str(out)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{out / 'cropper' / 'last.pt'} was trained with started_from.init_from " in line


def test_one_command_trains_on_helen_and_fine_tunes_on_celebamask_for_each_seed(
    small: list[str], helen_root: Path, tmp_path: Path
) -> None:
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


def with_data(options: list[str], root: Path) -> list[str]:
    """The options with another data folder."""
    changed = list(options)
    changed[changed.index("--data") + 1] = str(root)
    return changed


def repainted(root: Path, folder: Path, face: str) -> Path:
    """A copy of the data whose one photo differs by a grey pixel and nothing else, its times included."""
    shutil.copytree(root, folder)
    path = folder / "images" / f"{face}.jpg"
    stat = path.stat()
    photo = np.array(Image.open(path))
    photo[:8, :8] = 128
    Image.fromarray(photo).save(path, quality=95)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return folder


def test_other_test_faces_of_equal_count_are_scored_again(chain: list[str], helen_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "chain"
    shutil.copytree(chain[-1], out)
    before = written(out)
    options = with_data(chain, repainted(helen_root, tmp_path / "faces", "test0"))
    assert reproduce.main([*options[:-1], str(out)]) == 0
    assert rescored(out, before) == {reproduce.slug(title) for title in TITLES}
    assert {path for path, time in written(out).items() if time != before[path]} == set(out.rglob("scores.json"))


@pytest.mark.parametrize(("face", "split"), [("train1", "train"), ("val0", "val")])
def test_other_faces_to_train_on_of_equal_count_are_refused_in_one_line(
    face: str, split: str, chain: list[str], helen_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = written(Path(chain[-1]))
    options = with_data(chain, repainted(helen_root, tmp_path / "faces", face))
    capsys.readouterr()
    assert run_main(lambda: reproduce.main(options)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"last\.pt was trained with data\.{split} [0-9a-f]{{64}}, not [0-9a-f]{{64}}: ", line)
    assert written(Path(chain[-1])) == before


def test_a_second_chain_in_a_folder_is_refused_while_the_first_one_runs(
    chain: list[str], capsys: pytest.CaptureFixture
) -> None:
    before = written(Path(chain[-1]))
    with another_run(Path(chain[-1])):
        assert run_main(lambda: reproduce.main(chain)) == 2
    line = f"error: --out {chain[-1]} is in use by another run: wait until it ends, or choose another folder"
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert written(Path(chain[-1])) == before


@pytest.mark.parametrize(
    ("changed", "value"),
    [("face_size", 96), ("max_images", 1), ("partition", "thirds"), ("dataset", "synthetic"), ("data", 64 * "0")],
)
def test_scores_of_other_faces_do_not_pass_for_those_asked_for(
    changed: str, value: object, chain: list[str], helen_root: Path, tmp_path: Path
) -> None:
    out = Path(chain[-1])
    file = out / "scores" / "test" / "STN-iCNN" / "scores.json"
    machine = Machine(torch.device("cpu"))
    cache = Path(chain[chain.index("--cache") + 1])
    data = FaceData("helen", helen_root, max_images=2, cache=cache)
    request = Request([out / "end2end" / "best.pt"], data, machine)
    assert reproduce.is_scored(file, request)
    scores = json.loads(file.read_text())
    assert scores["data"] == open_faces(data, "test", NINE).fingerprint
    other = tmp_path / "scores.json"
    other.write_text(json.dumps({**scores, changed: value}))
    assert not reproduce.is_scored(other, request)
    assert not reproduce.is_scored(file, replace(request, checkpoints=[out / "stage2" / "best.pt"]))
    assert not reproduce.is_scored(file, replace(request, split="val"))
    assert not reproduce.is_scored(file, replace(request, crops="truth"))


@pytest.mark.parametrize("kind", [*sorted(JSON_BYTES.keys() - {"an empty dict"}), "pipe", "folder", "endless device"])
def test_damaged_scores_are_named(kind: str, chain: list[str], tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    SPECIAL[kind](file) if kind in SPECIAL else file.write_bytes(JSON_BYTES[kind])
    machine = Machine(torch.device("cpu"))
    request = Request([Path(chain[-1]) / "end2end" / "best.pt"], FaceData("helen", Path("faces")), machine)
    with pytest.raises(InputError, match=r"^.*scores\.json.*$"):
        reproduce.is_scored(file, request)


def test_other_options_do_not_pass_for_the_old_results(chain: list[str]) -> None:
    before = written(Path(chain[-1]))
    with pytest.raises(InputError, match=r"trained with seed 0, not 5"):
        reproduce.main([*chain, "--seed", "5"])
    with pytest.raises(InputError, match=r"trained with face_size None, not 96"):
        reproduce.main([*chain, "--face-size", "96"])
    at = chain.index("--epochs") + 4
    with pytest.raises(InputError, match="--epochs 0: must be at least 1"):
        reproduce.main([*chain[:at], "0", *chain[at + 1 :]])
    assert written(Path(chain[-1])) == before


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--crop-size", "7", "--crop-size 7: coarse size must lie"),
        ("--coarse-size", "2000", "--coarse-size 2000: coarse size must lie"),
        ("--batch-size", "50", "--batch-size 50 is larger than the 2 faces of an epoch"),
        ("--device", "cpu:99", "--device cpu:99"),
        ("--partition", "paper", "--partition paper: --dataset helen has only one split"),
    ],
)
def test_options_that_a_later_stage_cannot_have_are_refused_before_the_first_stage_trains(
    flag: str, value: str, message: str, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_main(lambda: reproduce.main([*small, flag, value, "--out", str(tmp_path / "out")])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_test_faces_that_cannot_be_read_are_told_before_the_first_stage_trains(
    small: list[str], helen_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(helen_root, tmp_path / "faces")
    (tmp_path / "faces" / "images" / "test0.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"test0\.jpg"):
        reproduce.main([*with_data(small, tmp_path / "faces"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
