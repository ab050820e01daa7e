"""The chain: every stage and every row of the table, and nothing twice."""

import argparse
from pathlib import Path

import pytest

import demo
import reproduce
from utils.errors import InputError


@pytest.fixture(scope="module")
def chain(tiny_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("chain")
    small = ["--coarse-size", "32", "--crop-size", "17", "--batch-size", "2", "--max-images", "2"]
    options = [*tiny_options, *small, "--recipe", "best", "--epochs", "1", "1", "1", "1", "--out", str(out)]
    assert reproduce.main(options) == 0
    return options


def files(out: Path) -> dict[Path, int]:
    kept = [path for path in out.rglob("*") if path.name in ("last.pt", "best.pt", "scores.json", "log.jsonl")]
    return {path: path.stat().st_mtime_ns for path in kept}


def test_one_command_trains_all_stages_and_scores_every_row(chain: list[str]) -> None:
    out = Path(chain[-1])
    for stage in reproduce.STAGES:
        assert (out / stage / "best.pt").exists()
    table = (out / "table_test.md").read_text()
    for row in ("coarse mask enlarged", "iCNN (old cropper)", "before end-to-end", "crops on the truth"):
        assert row in table
    assert len(list((out / "scores" / "test").glob("*/scores.json"))) == 5


def test_what_is_finished_is_not_done_again(chain: list[str]) -> None:
    before = files(Path(chain[-1]))
    assert reproduce.main(chain) == 0
    assert files(Path(chain[-1])) == before


def test_a_row_is_scored_again_once_its_weights_are_newer(chain: list[str]) -> None:
    out = Path(chain[-1])
    before = files(out)
    (out / "end2end" / "best.pt").touch()
    assert reproduce.main(chain) == 0
    changed = {
        path.parent.name for path, time in files(out).items() if path.name == "scores.json" and time != before[path]
    }
    assert changed == {"STN-iCNN", "STN-iCNN__crops_on_the_truth"}


def test_scores_of_other_faces_do_not_pass_for_those_asked_for(chain: list[str]) -> None:
    file = next((Path(chain[-1]) / "scores" / "test").glob("*/scores.json"))
    args = argparse.Namespace(dataset="helen", partition=None, face_size=None)
    assert reproduce.is_scored(file, [], args)
    args.face_size = 96
    assert not reproduce.is_scored(file, [], args)


def test_other_options_do_not_pass_for_the_old_results(chain: list[str]) -> None:
    before = files(Path(chain[-1]))
    with pytest.raises(InputError, match=r"trained with seed 0, not 5"):
        reproduce.main([*chain, "--seed", "5"])
    with pytest.raises(InputError, match=r"trained with face_size None, not 96"):
        reproduce.main([*chain, "--face-size", "96"])
    assert files(Path(chain[-1])) == before


def test_each_of_the_four_epochs_is_checked(chain: list[str]) -> None:
    at = chain.index("--epochs") + 4
    with pytest.raises(InputError, match="--epochs 0: must be at least 1"):
        reproduce.main([*chain[:at], "0", *chain[at + 1 :]])


def test_the_demo_draws_a_summary_of_what_it_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--face-size", "64", "--max-images", "4", "--coarse-size", "32", "--crop-size", "17"]
    monkeypatch.setattr(demo, "SMALL", small)
    monkeypatch.setattr(demo, "SCHEDULE", ["--recipe", "best", "--batch-size", "2", "--epochs", "1", "1", "1", "1"])
    monkeypatch.setattr(demo, "FACES", 4)
    monkeypatch.setattr(demo, "FACE_SIZE", 64)
    monkeypatch.setattr(demo, "SHOWN", 4)
    assert demo.main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "summary.png").stat().st_size > 1000
