"""Data sets with one label map a face: LaPa, lists of pairs, HELEN merged; read right, checked, refused in one line."""

import re
import shutil
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
from tests.damage import SPECIAL
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


LINES: dict[str, tuple[bytes, str]] = {
    "one column": (b"images/0.jpg", "train_list.txt line 2"),
    "three columns": (b"a b c", "train_list.txt line 2"),
    "a path from the root": (b"images/1.jpg /etc/passwd", "train_list.txt line 2"),
    "a path that leaves the folder": (b"images/../../0.jpg labels/0.png", "train_list.txt line 2"),
    "a zero byte": (b"images/1\0.jpg labels/1.png", "train_list.txt line 2"),
    "names of 5,000 letters": (b"n" * 5000 + b" " + b"m" * 5000, "train_list.txt line 2"),
    "no UTF-8": (b"images/\xe9.jpg labels/1.png", "UTF-8"),
    "a path that does not exist": (b"images/9.jpg labels/9.png", "that are not in"),
    "a folder as photo": (b"images labels/1.png", "that are not in"),
    "a line twice": (b"images/0.jpg labels/0.png", "listed twice"),
    "photo and map exchanged": (b"labels/1.png images/1.jpg", "1.jpg"),
    "the photo as map": (b"images/1.jpg images/1.jpg", "1.jpg"),
}


@pytest.mark.parametrize("kind", LINES)
def test_lines_that_name_no_pair_of_the_folder_are_refused(tmp_path: Path, kind: str) -> None:
    line, said = LINES[kind]
    fixtures.write_list(tmp_path, fixtures.draw_faces())
    (tmp_path / "train_list.txt").write_bytes(b"images/0.jpg labels/0.png\n" + line + b"\n")
    with refuses(said):
        read_all(FaceData("list", tmp_path, label_set="helen"), "train")


FAULTS: dict[str, tuple[str, str, object, str]] = {
    "no folder of maps": ("lapa", "train/labels", SPECIAL["missing"], "no folder"),
    "a pipe as folder": ("lapa", "train/labels", SPECIAL["pipe"], "no folder"),
    "a link to itself as folder": ("lapa", "train/images", SPECIAL["link to itself"], "no folder"),
    "a missing map": ("lapa", "train/labels/0.png", SPECIAL["missing"], "photos without mask"),
    "a missing photo": ("lapa", "train/images/1.jpg", SPECIAL["missing"], "masks without photo"),
    "a pipe as map": ("lapa", "train/labels/0.png", SPECIAL["pipe"], "0.png"),
    "a folder as photo": ("lapa", "train/images/0.jpg", SPECIAL["folder"], "0.jpg"),
    "a map of another size": ("lapa", "train/labels/0.png", np.ones((32, 32), np.uint8), "sizes differ"),
    "id 11": ("lapa", "train/labels/0.png", np.full((64, 64), 11, np.uint8), "unknown ids"),
    "id 255": ("lapa", "train/labels/0.png", np.full((64, 64), 255, np.uint8), "unknown ids"),
    "16 bits": ("helen", "labels/0.png", np.full((64, 64), 40_000, np.uint16), "16-bit"),
    "a map of colours": ("lapa", "train/labels/0.png", fixtures.draw_face(64)[0], "colours"),
    "two photos of one name": ("lapa", "train/images/00.png", np.ones((64, 64), np.uint8), "two files for one name"),
    "a socket as map": ("helen", "labels/0.png", SPECIAL["socket"], "0.png"),
    "a name twice": ("helen", "exemplars.txt", "1 , 0\n2 , 1\n3 , 0\n", "twice"),
    "no maps at all": ("helen", "labels", SPECIAL["folder"], "photos without mask"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_folders_with_a_fault_are_one_line(tmp_path: Path, kind: str) -> None:
    dataset, at, fault, said = FAULTS[kind]
    root, path = tmp_path / "faces", tmp_path / "faces" / at
    WRITERS[dataset](root, fixtures.draw_faces())
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if isinstance(fault, np.ndarray):
        Image.fromarray(fault).save(path)
    elif isinstance(fault, str):
        path.write_text(fault)
    else:
        fault(path)
    with refuses(said):
        read_all(FaceData(dataset, root), "train")


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
