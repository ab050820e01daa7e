"""Data sets with one label map a face: LaPa, lists of pairs, HELEN merged; read right, checked, refused in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from data.labels import HELEN, LAPA, NINE
from data.listing import SPLITS
from data.loaders import open_faces
from data.source import FaceData, open_source
from tests import fixtures
from tests.test_check import draw_faces
from tools.check import main as check
from utils.errors import InputError

WRITERS = {"lapa": fixtures.write_lapa, "helen": fixtures.write_helen_merged}


def refuses(*words: str):
    return pytest.raises(InputError, match="^.*" + ".*".join(re.escape(str(word)) for word in words) + ".*$")


def read_all(data: FaceData, split: str) -> dict[str, np.ndarray]:
    source = open_source(data, split)
    return {sample.name: source.read(sample)[1] for sample in source.samples}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("first_is_left", [True, False])
@pytest.mark.parametrize("dataset", list(WRITERS))
def test_merged_maps_follow_one_side_convention_whichever_their_files_do(
    tmp_path: Path, dataset: str, first_is_left: bool, split: str
) -> None:
    faces = fixtures.draw_faces()
    WRITERS[dataset](tmp_path, faces, first_is_left)
    found = read_all(FaceData(dataset, tmp_path), split)
    assert found.keys() == {name for name, _, _ in faces[split]}
    for name, _, labels in faces[split]:
        np.testing.assert_array_equal(found[name], labels)


@pytest.mark.parametrize(("name", "ids"), [("helen", None), ("celebamask", fixtures.TO_CELEBAMASK)])
def test_lists_of_pairs_hold_any_label_set(tmp_path: Path, name: str, ids: np.ndarray | None) -> None:
    faces = fixtures.draw_faces()
    fixtures.write_list(tmp_path / "data", faces, ids)
    data = FaceData("list", tmp_path / "data", cache=tmp_path / "cache", label_set=name)
    cached = open_faces(data, "train", NINE)
    assert cached.data_labels.name == name
    for index, (_, _, labels) in enumerate(faces["train"]):
        np.testing.assert_array_equal(cached.label_map(index), HELEN.map_to(NINE)[labels])


def test_the_same_list_in_other_ids_has_a_cache_of_its_own(tmp_path: Path) -> None:
    fixtures.write_list(tmp_path / "data", fixtures.draw_faces())
    for name in ("helen", "lapa", "celebamask"):
        data = FaceData("list", tmp_path / "data", cache=tmp_path / "cache", label_set=name)
        assert open_faces(data, "val", data.labels).data_labels.name == name
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_brow_and_eye_of_lapa_with_the_smaller_id_are_the_images_left() -> None:
    assert [LAPA.names.index(name) for name in ("brow1", "brow2", "eye1", "eye2")] == [2, 3, 4, 5]
    assert LAPA.map_to(HELEN)[:11].tolist() == list(range(11))


@pytest.mark.parametrize(
    ("dataset", "write", "more"),
    [
        ("lapa", fixtures.write_lapa, []),
        ("helen", fixtures.write_helen_merged, []),
        ("list", fixtures.write_list, ["--labels", "helen"]),
    ],
)
def test_check_passes_a_sound_folder_and_lists_what_is_wrong(tmp_path: Path, capsys, dataset, write, more) -> None:
    write(tmp_path / "data", draw_faces(train=6))
    options = ["--dataset", dataset, "--data", str(tmp_path / "data"), *more]
    assert check(options) == 0
    masks = tmp_path / "data" / ("train/labels" if dataset == "lapa" else "labels")
    (masks / "3.png").unlink()
    Image.fromarray(np.full((64, 64), 11, np.uint8)).save(masks / "4.png")
    assert check(options) == 1
    told = capsys.readouterr().out
    assert "3.png" in told or "1 (3)" in told
    assert f"unknown ids in mask {masks / '4.png'}: 1 (11)" in told


def test_folders_that_are_no_such_layout_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with refuses("no folder", "train/images", "LaPa's layout"):
        open_source(FaceData("lapa", tmp_path), "train")
    with refuses("train_list.txt", "set some faces"):
        open_source(FaceData("list", tmp_path, label_set="helen"), "train")
    with refuses("--labels"):
        open_source(FaceData("list", tmp_path), "train")
    with refuses("--labels nine", "lapa"):
        _ = FaceData("lapa", tmp_path, label_set="nine").labels


@pytest.mark.parametrize(
    "line", ["images/0.jpg", "a b c", "/etc/passwd labels/0.png", "images/../../0.jpg labels/0.png"]
)
def test_lines_that_name_no_pair_of_the_folder_are_refused(tmp_path: Path, line: str) -> None:
    fixtures.write_list(tmp_path, fixtures.draw_faces())
    (tmp_path / "train_list.txt").write_text(f"images/0.jpg labels/0.png\n{line}\n")
    with refuses("train_list.txt line 2", "expected"):
        open_source(FaceData("list", tmp_path, label_set="helen"), "train")


def test_brows_and_eyes_that_disagree_about_the_sides_are_refused(tmp_path: Path) -> None:
    faces = fixtures.draw_faces()
    swapped = np.arange(11, dtype=np.uint8)
    swapped[[2, 3]] = 3, 2
    fixtures.write_list(tmp_path, faces, swapped)
    with refuses("brows and eyes disagree"):
        open_source(FaceData("list", tmp_path, label_set="helen"), "train")


def test_the_scripts_ask_what_the_ids_of_lists_mean(tmp_path: Path) -> None:
    fixtures.write_list(tmp_path, fixtures.draw_faces())
    with refuses("--labels is needed"):
        evaluate.main(["--dataset", "list", "--data", str(tmp_path)])
    with refuses("--labels nine", "has its own"):
        evaluate.main(["--dataset", "helen", "--data", str(tmp_path), "--labels", "nine"])
