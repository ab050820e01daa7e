"""Data sets on disk in every layout: read right, checked, and refused in one line where a file or a folder is wrong.
Synthetic faces: repeatable, exact, and not to be parsed by colour alone."""

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.datasets.synthetic import COUNTS, draw_face, draw_named, sample_names
from data.labels import CELEBAMASK, HELEN, NINE, label_set
from data.listing import SPLITS
from data.loaders import open_faces
from data.source import FaceData, open_source
from tests import fixtures
from tests.damage import SPECIAL, refuses
from tests.fixtures import TO_CELEBAMASK, draw_faces

PARTS, MAPPING = "CelebAMask-HQ-mask-anno/0", "CelebA-HQ-to-CelebA-mapping.txt"
LAYOUTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "helen": ("helen", fixtures.write_helen),
    "merged": ("helen", fixtures.write_helen_merged),
    "official": ("celebamask", fixtures.write_celebamask_official),
    "challenge": ("celebamask", fixtures.write_challenge),
    "lapa": ("lapa", fixtures.write_lapa),
    "list": ("list", fixtures.write_list),
}


def write(layout: str, root: Path, **more: Any) -> FaceData:
    """Three block faces to train on, two to validate, one to test, named 0 to 5."""
    dataset, writer = LAYOUTS[layout]
    writer(root, draw_faces(), **more)
    return FaceData(dataset, root, label_set=HELEN if dataset == "list" else None)


def names_of(data: FaceData, split: str) -> list[str]:
    return [sample.name for sample in open_source(data, split).samples]


def read_all(data: FaceData, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    source = pickle.loads(pickle.dumps(open_source(data, split)))  # as other processes get it
    return [source.read(sample) for sample in source.samples]


def assert_labels(data: FaceData, split: str, faces: fixtures.Faces) -> None:
    for (_, ids), (_, _, labels) in zip(read_all(data, split), faces[split], strict=True):
        np.testing.assert_array_equal(ids, labels)


SIDES = [{"first_is_left": True}, {"first_is_left": False}]


@pytest.mark.parametrize(
    ("layout", "more"),
    [
        *((layout, more) for layout in ("helen", "merged", "lapa") for more in SIDES),
        *((layout, {}) for layout in ("official", "challenge", "list")),
    ],
)
def test_every_layout_gives_names_photos_and_labels_in_one_side_convention(tmp_path, layout, more):
    data, faces = write(layout, tmp_path / "faces", **more), draw_faces()
    for split in SPLITS:
        assert names_of(data, split) == [name for name, _, _ in faces[split]]
        for (photo, ids), (_, drawn, labels) in zip(read_all(data, split), faces[split], strict=True):
            assert photo.dtype == ids.dtype == np.uint8
            assert photo.shape == drawn.shape
            assert np.abs(photo.astype(int) - drawn).mean() < 25  # of JPEG
            np.testing.assert_array_equal(ids, TO_CELEBAMASK[labels] if data.dataset == "celebamask" else labels)


def test_helen_sides_are_decided_by_the_training_faces_and_without_their_list_by_the_split_itself(tmp_path):
    faces = draw_faces()
    name, photo, labels = faces["test"][0]
    faces["test"] = [(name, photo, np.array(HELEN.mirror, np.uint8)[labels])]
    fixtures.write_helen(tmp_path / "odd", faces)
    assert_labels(FaceData("helen", tmp_path / "odd"), "test", faces)
    data = write("helen", tmp_path / "helen", first_is_left=False)
    (tmp_path / "helen" / "exemplars.txt").unlink()
    assert_labels(data, "val", faces)


def test_the_strongest_soft_mask_wins_and_the_first_in_a_tie(tmp_path):
    data = write("helen", tmp_path / "helen")
    expected, soft = np.zeros((64, 64), np.uint8), np.zeros((11, 64, 64), np.uint8)
    soft[1, 0], soft[6, 0], expected[0] = 127, 128, 6
    soft[7, 1], soft[8, 1], expected[1] = 99, 99, 7
    for mask, path in zip(soft, open_source(data, "train").samples[0].masks, strict=True):
        Image.fromarray(mask).save(path)
    np.testing.assert_array_equal(read_all(data, "train")[0][1], expected)


def test_the_version_of_a_source_tells_the_two_side_conventions_apart(tmp_path):
    one, two = (write("helen", tmp_path / str(k), **more) for k, more in enumerate(SIDES))
    assert open_source(one, "val").version != open_source(two, "val").version


def test_the_papers_partition_goes_by_number_and_is_taken_without_a_mapping_file(tmp_path):
    photo, labels = fixtures.draw_face(32)
    (tmp_path / "CelebA-HQ-img").mkdir()
    ends = {"train": (0, 17999), "val": (18000, 23999), "test": (24000, 29999)}
    for number in sum(ends.values(), ()):
        fixtures.save_photo(tmp_path / "CelebA-HQ-img" / f"{number}.jpg", photo)
        folder = tmp_path / "CelebAMask-HQ-mask-anno" / str(number // 2000)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((labels == 6) * np.uint8(255)).save(folder / f"{number:05d}_nose.png")
    for split, numbers in ends.items():
        assert names_of(FaceData("celebamask", tmp_path), split) == [*map(str, numbers)]
    fixtures.write_mapping(tmp_path, dict.fromkeys(sum(ends.values(), ()), 5))
    assert len(names_of(FaceData("celebamask", tmp_path), "train")) == 6
    assert len(names_of(FaceData("celebamask", tmp_path, "paper"), "train")) == 2


def test_the_standard_partition_ends_where_the_data_sets_own_does(tmp_path):
    fixtures.write_celebamask_official(tmp_path, draw_faces(train=4, val=0, test=0))
    fixtures.write_mapping(tmp_path, dict(enumerate((162770, 162771, 182637, 182638))))
    data = FaceData("celebamask", tmp_path)
    assert [names_of(data, split) for split in SPLITS] == [["0"], ["1", "2"], ["3"]]


def test_official_parts_are_painted_in_the_order_of_their_ids(tmp_path):
    data = write("official", tmp_path)
    full = Image.fromarray(np.full((64, 64), 255, np.uint8))
    full.save(tmp_path / PARTS / "00000_neck.png")  # a later part hides all but later ones
    assert set(np.unique(read_all(data, "train")[0][1])) == {CELEBAMASK.names.index("neck")}


def test_opening_a_source_reads_no_photo_and_no_mask(tmp_path):
    data = write("challenge", tmp_path)
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        path.write_bytes(b"")
    assert len(names_of(data, "train")) == 3


def test_lists_of_pairs_hold_any_label_set_each_in_a_cache_of_its_own(tmp_path):
    faces, cache = draw_faces(), tmp_path / "cache"
    for name, ids in (("helen", None), ("celebamask", TO_CELEBAMASK), ("lapa", None)):
        fixtures.write_list(tmp_path / "data", faces, ids)  # three label sets in the same place
        cached = open_faces(FaceData("list", tmp_path / "data", cache=cache, label_set=label_set(name)), "train", NINE)
        assert cached.data_labels.name == name
        for index, (_, _, labels) in enumerate(faces["train"]):
            np.testing.assert_array_equal(cached.label_map(index), HELEN.map_to(NINE)[labels])
        shutil.rmtree(tmp_path / "data")
    assert len(list(cache.iterdir())) == 3


# Refused

# layout, arguments of FaceData, split, words of the message
ASKED: tuple[tuple[str | None, tuple[Any, ...], str, tuple[str, ...]], ...] = (
    (None, ("mine", "."), "train", ("unknown data set mine", "helen")),
    (None, ("helen", "."), "valid", ("unknown split valid", "train, val, test")),
    ("challenge", ("celebamask", ".", "paper"), "train", ("partition paper", "challenge layout")),
    ("official", ("celebamask", ".", "mine"), "train", ("unknown partition mine", "standard, paper")),
    ("unmapped", ("celebamask", ".", "standard"), "train", (MAPPING, "partition paper")),
    (None, ("synthetic", "."), "train", ("root .", "synthetic")),
    (None, ("helen", None), "train", ("helen", "needs its folder")),
    (None, ("celebamask", "file"), "train", ("file", "not a folder")),
    (None, ("celebamask", "empty"), "train", ("empty", "is empty", "expected")),
    *((None, (dataset, "."), "train", ("no ", "expected")) for dataset in ("helen", "celebamask")),
    (None, ("lapa", "."), "train", ("no folder", "train/images", "LaPa's layout")),
    (None, ("list", ".", None, HELEN), "train", ("train_list.txt", "set some faces")),
    (None, ("list", "."), "train", ("needs labels",)),
)


@pytest.mark.parametrize(("layout", "asked", "split", "words"), ASKED, ids=[f"{row[1]} {row[2]}" for row in ASKED])
def test_what_cannot_be_asked_of_a_folder_is_refused(tmp_path, monkeypatch, layout, asked, split, words):
    monkeypatch.chdir(tmp_path)
    if layout is None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
    else:
        writer = LAYOUTS["official" if layout == "unmapped" else layout][1]
        writer(tmp_path, draw_faces(), **{"mapping": False} if layout == "unmapped" else {})
    dataset, root, partition, labels = (*asked, None, None, None)[:4]
    with refuses(*words):
        open_source(FaceData(dataset, root and Path(root), partition, label_set=labels), split)


HEAD, GOOD, MAP = b"idx orig_idx orig_file\n", b"images/0.jpg labels/0.png\n", np.ones((64, 64), np.uint8)
WIDE = np.zeros((64, 80, 3), np.uint8)
LISTS: tuple[tuple[str, str, str, str, tuple[bytes, ...]], ...] = (  # layout, split, list, message, texts of the list
    ("helen", "test", "testing.txt", "is empty", (b"",)),
    (
        *("helen", "test", "testing.txt", "line 1: expected"),
        (b"1 5\n", b"x , 5\n", b"1 , \n", b"1 , a\0b\n", b"1 , " + b"n" * 5000 + b"\n", b"1 , ../../1\n"),
    ),
    ("helen", "test", "testing.txt", "line 2: expected", (b"1 , 5\nfour\n",)),
    ("helen", "test", "testing.txt", "not UTF-8 text", (b"1 , caf\xe9\n",)),
    ("helen", "test", "testing.txt", "2 (images/nobody.jpg, images/nothing.jpg)", (b"1 , nobody\n2 , nothing\n",)),
    ("helen", "test", "testing.txt", "names both in", (b"1 , 0\n",)),  # of another split
    ("official", "test", MAPPING, "line 1", (b"", b"0 1 000001.jpg\n")),
    ("official", "test", MAPPING, "line 2", (HEAD + b"0 zero 1.jpg\n", HEAD + b"1\n", HEAD + b"1" * 5000 + b" 1 x\n")),
    ("official", "test", MAPPING, "faces not in", (HEAD,)),
    ("official", "test", MAPPING, "5 (1, 2, 3, 4, 5)", (HEAD + b"0 0 000001.jpg\n",)),
    ("official", "test", MAPPING, "face 1 is listed twice", (HEAD + b"1 5 000006.jpg\n" * 2,)),
    (
        *("list", "train", "train_list.txt", "train_list.txt line 2"),
        tuple(GOOD + row for row in (b"one\n", b"images/1.jpg /etc/passwd\n", b"images/../../0.jpg labels/0.png\n")),
    ),
    ("list", "train", "train_list.txt", "that are not in", (b"images/9.jpg labels/9.png",)),
    ("list", "train", "train_list.txt", "listed twice", (2 * GOOD,)),
    ("list", "train", "train_list.txt", "1.jpg", (b"labels/1.png images/1.jpg", b"images/1.jpg images/1.jpg")),
)

# layout, split, what is removed (a pattern, perhaps), what takes its place, words of the message
FAULTS: tuple[tuple[str, str, str, Any, tuple[str, ...]], ...] = (
    ("helen", "val", "labels/3", None, ("tuning.txt that are not in", "1 (labels/3/3_lbl00.png)")),
    ("helen", "train", "labels/0/0_lbl07.png", None, ("that are not in", "1 (labels/0/0_lbl07.png)")),
    ("merged", "train", "labels/0.png", None, ("that are not in", "1 (labels/0.png)")),
    ("helen", "test", "testing.txt", None, ("testing.txt", "expected")),
    ("helen", "train", "images/0.jpg", WIDE, ("sizes differ", "images/0.jpg", "80×64", "0_lbl00.png", "64×64")),
    ("helen", "train", "labels/1/1_lbl05.png", MAP[:, :50], ("sizes differ", "1_lbl00.png", "1_lbl05.png")),
    ("challenge", "test", "test/test_mask", None, ("no masks for split test", "test/test_mask", "another split")),
    ("challenge", "val", "val", None, ("val/val_image",)),
    ("challenge", "val", "val/*/*", None, ("no faces for split val",)),
    ("challenge", "train", "train/train_mask/[01].png", None, ("photos without mask", "2 (0, 1)", "train_image")),
    ("challenge", "val", "val/val_image/3.jpg", None, ("masks without photo", "1 (3)", "val/val_mask")),
    ("challenge", "train", "train/train_image/0.jpg", WIDE, ("sizes differ", "80×64", "64×64")),
    ("challenge", "train", "train/train_image/0001.jpg", WIDE, ("two files for one name in", "0001.jpg", "1.jpg")),
    (
        *("challenge", "train", "train/train_mask/0.png", np.arange(4096).reshape(64, 64).astype(np.uint8) % 21),
        ("unknown ids", "train_mask/0.png", "2 (19, 20)", "0 to 18"),
    ),
    ("official", "train", f"{PARTS}/00000_snout.png", MAP, ("no known part", "0/00000_snout.png")),
    ("official", "train", f"{PARTS}/1_nose.png", MAP, ("two files for one part in", "00001_nose.png", "1_nose.png")),
    ("official", "train", "CelebAMask-HQ-mask-anno", None, ("CelebAMask-HQ-mask-anno", "official layout")),
    *((layout, split, at, text, (message,)) for layout, split, at, message, texts in LISTS for text in texts),
    *(("challenge", "train", at, SPECIAL["pipe"], ("faces",)) for at in (".", "train", "train/train_mask")),
    ("helen", "test", "exemplars.txt", SPECIAL["link to nothing"], ("exemplars.txt",)),
    ("official", "test", MAPPING, SPECIAL["folder"], (MAPPING,)),
)


@pytest.mark.parametrize("row", FAULTS, ids=[f"{row[0]} {row[2]} {row[4][0]}" for row in FAULTS])
def test_a_wrong_file_or_folder_is_one_line(tmp_path, row):
    layout, split, at, fault, words = row
    data = write(layout, tmp_path / "faces")
    for path in list(data.root.glob(at)) if "*" in at or "[" in at else [data.root / at]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if isinstance(fault, np.ndarray):
            Image.fromarray(fault).save(path)
        elif isinstance(fault, bytes):
            path.write_bytes(fault)
        elif fault:
            fault(path)
    with refuses(*words) as caught:
        read_all(data, split)
    assert str(tmp_path) in str(caught.value)


def test_brows_and_eyes_that_disagree_about_the_sides_are_refused(tmp_path):
    swapped = np.arange(11, dtype=np.uint8)
    swapped[[2, 3]] = 3, 2
    faces = {split: [(n, photo, swapped[ids]) for n, photo, ids in group] for split, group in draw_faces().items()}
    fixtures.write_helen(tmp_path, faces)
    with refuses("brows and eyes disagree", tmp_path):
        open_source(FaceData("helen", tmp_path), "train")


FACES, SIZE = 90, 96


@pytest.fixture(scope="module")
def faces() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_face(8, i, SIZE) for i in range(FACES)]


def test_a_face_is_the_same_in_any_thread(faces):
    with ThreadPoolExecutor(2) as pool:
        for face, again in zip(faces, pool.map(lambda i: draw_face(8, i, SIZE), range(FACES)), strict=True):
            assert all(np.array_equal(one, two) for one, two in zip(face, again, strict=True))


def test_every_label_is_in_many_faces_most_parts_missing_from_some_and_brow1_and_eye1_lie_on_the_left(faces):
    present = np.array([[(labels == k).any() for k in range(11)] for _, labels in faces])
    assert present.mean(0).min() >= 0.3
    assert present[:, 2:10].all(0).sum() <= 1  # of so few faces, the nose may be in all
    brows_and_eyes = [(labels == one, labels == two) for _, labels in faces for one, two in ((2, 3), (4, 5))]
    pairs = [[np.nonzero(part)[1] for part in pair] for pair in brows_and_eyes]
    seen = [(left.mean(), right.mean()) for left, right in pairs if min(len(left), len(right)) >= 4]
    assert len(seen) > FACES
    assert all(left < right for left, right in seen)


def test_a_face_is_the_same_at_two_sizes(faces):
    both, either = np.zeros(11), np.zeros(11)
    for i, (photo, small) in enumerate(faces[:12]):
        large_photo, large = draw_face(8, i, 3 * SIZE)
        large = large[1::3, 1::3]
        for label in range(11):
            both[label] += ((small == label) & (large == label)).sum()
            either[label] += ((small == label) | (large == label)).sum()
        blocks = large_photo.reshape(SIZE, 3, SIZE, 3, 3).mean((1, 3))
        assert np.abs(blocks.mean((0, 1)) - photo.mean((0, 1))).max() < 6
    assert (both / either).min() > 0.85


def test_splits_share_no_face():
    names = {split: sample_names(split, 10) for split in COUNTS}
    drawn = [draw_named(name, 0, 32)[0].tobytes() for each in names.values() for name in each]
    assert len({*drawn, draw_named(names["train"][0], 1, 32)[0].tobytes()}) == 31  # nor do seeds


def test_colour_alone_does_not_find_the_parts(faces):
    """A colour histogram fitted on 60 faces (most likely label of each colour) parses other faces badly."""
    colours = [(photo.astype(np.int64) // 16) @ (256, 16, 1) for photo, _ in faces]
    votes = np.zeros((16**3, 11), np.int64)
    for colours_HW, (_, labels) in zip(colours[:60], faces[:60], strict=True):
        np.add.at(votes, (colours_HW, labels), 1)
    truth = np.stack([labels for _, labels in faces[60:]])
    for score in (votes, votes / votes.sum(0)):  # as frequent as they are, and all labels alike
        guess = score.argmax(1)[np.stack(colours[60:])]
        parts = [(ids >= 2) & (ids <= 9) for ids in (guess, truth)]
        assert 2 * (parts[1] & (guess == truth)).sum() / np.sum(parts) < 0.3
