"""Readers of photos, masks and the three folder layouts: right where they can be, one clear line where not."""

import os
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data import source as data_source
from data.images import list_files, read_labels, read_photo, resize_photo
from data.labels import CELEBAMASK, HELEN, NINE
from data.listing import SPLITS, Source
from data.source import FaceData
from tests import fixtures
from tests.damage import BAD_PICTURES, SPECIAL
from utils.errors import InputError

REAL = Path(__file__).parents[2] / "shared" / "data" / "celebamask"

RNG = np.random.default_rng(0)


def open_source(dataset: str, root: Path | None, split: str, partition: str | None = None) -> Source:
    return data_source.open_source(FaceData(dataset, root, partition), split)


GREY = RNG.integers(0, 256, (6, 9), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 3), np.uint8)


def refuses(*words: str):
    """pytest.raises for one line of InputError that holds all words, in this order."""
    return pytest.raises(InputError, match="^.*" + ".*".join(re.escape(str(word)) for word in words) + ".*$")


def saved(folder: Path, picture: Image.Image, name: str = "photo.png", **options: object) -> Path:
    path = folder / name
    picture.save(path, **options)
    return path


# Photos


def test_a_plain_rgb_photo_is_read_as_it_is(tmp_path: Path) -> None:
    photo = read_photo(saved(tmp_path, Image.fromarray(COLOUR)))
    assert photo.dtype == np.uint8
    np.testing.assert_array_equal(photo, COLOUR)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "PA"])
def test_photos_of_other_modes_become_rgb_without_their_alpha(tmp_path: Path, mode: str) -> None:
    alpha = Image.fromarray(RNG.integers(0, 256, (6, 9), np.uint8))
    grey = np.stack([GREY] * 3, axis=2)
    palette = RNG.integers(0, 256, (256, 3), np.uint8)
    if mode == "RGBA":
        picture, expected = Image.fromarray(COLOUR), COLOUR
        picture.putalpha(alpha)
    elif mode == "LA":
        picture, expected = Image.fromarray(GREY), grey
        picture.putalpha(alpha)
    elif mode == "L":
        picture, expected = Image.fromarray(GREY), grey
    elif mode == "1":
        picture, expected = Image.fromarray(GREY > 99), (grey > 99) * np.uint8(255)
    else:
        picture, expected = Image.fromarray(GREY), palette[GREY]
        picture.putpalette(palette.tobytes())
        if mode == "PA":  # a palette with a transparent colour
            picture.info["transparency"] = int(GREY[0, 0])
    np.testing.assert_array_equal(read_photo(saved(tmp_path, picture)), expected)


def test_16_bit_grey_photos_keep_their_upper_byte(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 256 + 77
    for name in ("photo.png", "photo.tiff"):
        photo = read_photo(saved(tmp_path, Image.fromarray(deep), name))
        np.testing.assert_array_equal(photo, np.stack([GREY] * 3, axis=2))


def test_16_bit_rgb_photos_keep_their_upper_bytes(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), COLOUR[:, :, ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_photo(tmp_path / "deep.png"), COLOUR)


def test_cmyk_photos_are_converted(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    path = saved(tmp_path, Image.fromarray(flat).convert("CMYK"), "photo.jpg", quality=100, subsampling=0)
    with Image.open(path) as stored:
        assert stored.mode == "CMYK"
    assert np.abs(read_photo(path).astype(int) - flat).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20), (20, 20_000)])
def test_photos_of_odd_shapes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    assert read_photo(saved(tmp_path, Image.new("RGB", size))).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_files_that_are_no_whole_picture_are_refused_by_path(tmp_path: Path, kind: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(BAD_PICTURES[kind]())
    for reader in (read_photo, read_labels):
        with refuses(tmp_path / "photo.jpg"):
            reader(tmp_path / "photo.jpg")


def test_shrinking_a_photo_to_half_averages_blocks_of_four() -> None:
    photo = RNG.integers(0, 256, (8, 6, 3), np.uint8)
    means = photo.reshape(4, 2, 3, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize_photo(photo, 4, 3) - means).max() <= 1  # rows and columns are rounded in turn


# Label maps


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "16 bit"])
def test_label_ids_are_read_as_stored(tmp_path: Path, mode: str) -> None:
    ids = RNG.integers(0, 19, (6, 9), np.uint8)
    picture = Image.fromarray(ids)
    if mode == "P":
        fixtures.save_palette(tmp_path / "mask.png", ids)
        picture = Image.open(tmp_path / "mask.png")
    elif mode == "16 bit":
        picture = Image.fromarray(ids.astype(np.uint16))
    elif mode != "L":
        picture = picture.convert(mode)
    labels = read_labels(saved(tmp_path, picture, "again.png"))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, ids)


def test_a_two_class_mask_of_one_bit_gives_ids_0_and_1(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_labels(saved(tmp_path, Image.fromarray(GREY > 99))), GREY > 99)


def test_masks_saved_as_colours_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(COLOUR))
    with refuses("mask saved as colours", path):
        read_labels(path)


def test_16_bit_masks_with_large_values_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 256))
    with refuses("mask", path, "ids up to"):
        read_labels(path)


# Listings


def test_files_are_listed_in_the_order_of_their_numbers_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("10.jpg", "9.JPG", "b.png", "a.jpeg", "._9.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert list(list_files(tmp_path, (".jpg", ".jpeg", ".png"))) == ["9", "10", "a", "b"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png"):
        (tmp_path / name).touch()
    with refuses("two files for one name", tmp_path, "1.jpg", "1.png"):
        list_files(tmp_path, (".jpg", ".png"))


# The layouts, read right


@pytest.fixture
def faces() -> fixtures.Faces:
    return fixtures.draw_faces()


def expect(source: Source, group: list, to_ids: np.ndarray | None = None, jpeg_error: int = 25) -> None:
    assert len(source.samples) == len(group)
    for sample, (_, photo, labels) in zip(source.samples, group, strict=True):
        read_photo_, read_ids = source.read(sample)
        assert read_photo_.dtype == read_ids.dtype == np.uint8
        np.testing.assert_array_equal(read_ids, labels if to_ids is None else to_ids[labels])
        assert read_photo_.shape == photo.shape
        assert np.abs(read_photo_.astype(int) - photo).mean() < jpeg_error


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("first_is_left", [True, False])
def test_helen_gives_one_side_convention_whichever_its_files_follow(
    tmp_path: Path, faces: fixtures.Faces, split: str, first_is_left: bool
) -> None:
    fixtures.write_helen(tmp_path / "helen", faces, first_is_left)
    source = open_source("helen", tmp_path / "helen", split)
    assert [sample.name for sample in source.samples] == [name for name, _, _ in faces[split]]
    expect(source, faces[split])
    labels = source.read(source.samples[0])[1]
    for one, two in (("brow1", "brow2"), ("eye1", "eye2")):
        x = [np.nonzero(labels == HELEN.names.index(name))[1].mean() for name in (one, two)]
        assert x[0] < x[1]


def test_helen_sides_are_decided_by_the_training_faces_even_if_a_test_face_differs(
    tmp_path: Path, faces: fixtures.Faces
) -> None:
    name, photo, labels = faces["test"][0]
    faces["test"] = [(name, photo, np.array(HELEN.mirror, np.uint8)[labels])]
    fixtures.write_helen(tmp_path / "helen", faces)
    expect(open_source("helen", tmp_path / "helen", "test"), faces["test"])


def test_helen_sides_fall_back_to_the_split_itself_without_a_training_list(
    tmp_path: Path, faces: fixtures.Faces
) -> None:
    fixtures.write_helen(tmp_path / "helen", faces, first_is_left=False)
    (tmp_path / "helen" / "exemplars.txt").unlink()
    expect(open_source("helen", tmp_path / "helen", "val"), faces["val"])


def test_the_strongest_soft_mask_wins_and_the_first_in_a_tie(tmp_path: Path) -> None:
    fixtures.write_helen(tmp_path / "helen", fixtures.draw_faces(train=1))
    source = open_source("helen", tmp_path / "helen", "train")
    expected = np.zeros((64, 64), np.uint8)
    soft = np.zeros((11, 64, 64), np.uint8)
    soft[1, 0], soft[6, 0], expected[0] = 127, 128, 6
    soft[7, 1], soft[8, 1], expected[1] = 99, 99, 7
    for mask, path in zip(soft, source.samples[0].masks, strict=True):
        Image.fromarray(mask).save(path)
    np.testing.assert_array_equal(source.read(source.samples[0])[1], expected)


def test_the_version_of_a_source_tells_the_two_side_conventions_apart(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_helen(tmp_path / "a", faces, True)
    fixtures.write_helen(tmp_path / "b", faces, False)
    assert open_source("helen", tmp_path / "a", "val").version != open_source("helen", tmp_path / "b", "val").version


@pytest.mark.parametrize("split", SPLITS)
def test_the_challenge_layout_is_recognised(tmp_path: Path, faces: fixtures.Faces, split: str) -> None:
    fixtures.write_challenge(tmp_path, faces)
    expect(open_source("celebamask", tmp_path, split), faces[split], fixtures.TO_CELEBAMASK)


@pytest.mark.parametrize("split", SPLITS)
def test_the_official_layout_is_split_by_its_mapping_file(tmp_path: Path, faces: fixtures.Faces, split: str) -> None:
    names = fixtures.write_celebamask_official(tmp_path, faces)
    source = open_source("celebamask", tmp_path, split)
    assert [sample.name for sample in source.samples] == names[split]
    expect(source, faces[split], fixtures.TO_CELEBAMASK)


def test_the_papers_partition_goes_by_number_and_is_taken_without_a_mapping_file(tmp_path: Path) -> None:
    photo, labels = fixtures.draw_face(32)
    photos = tmp_path / "CelebA-HQ-img"
    photos.mkdir()
    ends = {"train": (0, 17999), "val": (18000, 23999), "test": (24000, 29999)}
    for number in sum(ends.values(), ()):
        fixtures.save_photo(photos / f"{number}.jpg", photo)
        folder = tmp_path / "CelebAMask-HQ-mask-anno" / str(number // 2000)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((labels == 6) * np.uint8(255)).save(folder / f"{number:05d}_nose.png")
    for split, numbers in ends.items():
        assert [sample.name for sample in open_source("celebamask", tmp_path, split).samples] == [*map(str, numbers)]
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx orig_idx orig_file\n" + "".join(f"{n} 5 000006.jpg\n" for n in sum(ends.values(), ()))
    )
    assert len(open_source("celebamask", tmp_path, "train").samples) == 6
    assert len(open_source("celebamask", tmp_path, "train", "paper").samples) == 2


def test_the_standard_partition_ends_where_the_data_sets_own_does(tmp_path: Path) -> None:
    fixtures.write_celebamask_official(tmp_path, fixtures.draw_faces(train=4, val=0, test=0))
    originals = (162770, 162771, 182637, 182638)
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx orig_idx orig_file\n" + "".join(f"{i} {n} {n + 1}.jpg\n" for i, n in enumerate(originals))
    )
    names = [[sample.name for sample in open_source("celebamask", tmp_path, split).samples] for split in SPLITS]
    assert names == [["0"], ["1", "2"], ["3"]]


def test_official_parts_are_painted_in_the_order_of_their_ids(tmp_path: Path) -> None:
    face = fixtures.draw_face(32)
    fixtures.write_celebamask_official(tmp_path, {"train": [("0", *face)]})
    full = Image.fromarray(np.full((32, 32), 255, np.uint8))
    full.save(tmp_path / "CelebAMask-HQ-mask-anno" / "0" / "00000_neck.png")  # a later part hides all but later ones
    source = open_source("celebamask", tmp_path, "train")
    assert set(np.unique(source.read(source.samples[0])[1])) == {CELEBAMASK.names.index("neck")}


@pytest.mark.parametrize("split", SPLITS)
def test_synthetic_faces_open_without_a_folder(split: str) -> None:
    source = open_source("synthetic", None, split)
    photo, labels = source.read(source.samples[0])
    assert photo.shape == (*labels.shape, 3)
    assert (HELEN.map_to(NINE)[labels] < len(NINE)).all()


def test_sources_can_be_sent_to_other_processes(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_helen(tmp_path / "helen", faces, first_is_left=False)
    source = pickle.loads(pickle.dumps(open_source("helen", tmp_path / "helen", "train")))
    expect(source, faces["train"])


def test_opening_a_source_reads_no_photo_and_no_mask(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_challenge(tmp_path, faces)
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        path.write_bytes(b"")
    assert len(open_source("celebamask", tmp_path, "train").samples) == 3


# The layouts, refused


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with refuses("unknown data set mine", "helen"):
        open_source("mine", tmp_path, "train")
    with refuses("unknown split valid", "train, val, test"):
        open_source("helen", tmp_path, "valid")
    with refuses("unknown split valid"):
        open_source("synthetic", None, "valid")


def test_options_that_do_not_fit_the_data_set_are_refused(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_challenge(tmp_path / "c", faces)
    fixtures.write_celebamask_official(tmp_path / "o", faces, mapping=False)
    with refuses("partition paper", "challenge layout"):
        open_source("celebamask", tmp_path / "c", "train", "paper")
    with refuses("partition paper"):
        open_source("helen", tmp_path, "train", "paper")
    with refuses("unknown partition mine", "standard, paper"):
        open_source("celebamask", tmp_path / "o", "train", "mine")
    with refuses("CelebA-HQ-to-CelebA-mapping.txt", "partition paper"):
        open_source("celebamask", tmp_path / "o", "train", "standard")
    with refuses("synthetic", tmp_path):
        open_source("synthetic", tmp_path, "train")


@pytest.mark.parametrize("dataset", ["helen", "celebamask"])
def test_missing_and_empty_folders_and_other_layouts_are_refused(tmp_path: Path, dataset: str) -> None:
    with refuses("needs its folder"):
        open_source(dataset, None, "train")
    with refuses(tmp_path / "absent", "does not exist"):
        open_source(dataset, tmp_path / "absent", "train")
    with refuses(tmp_path, "is empty", "expected"):
        open_source(dataset, tmp_path, "train")
    (tmp_path / "pictures").mkdir()
    with refuses(tmp_path, "expected"):
        open_source(dataset, tmp_path, "train")
    (tmp_path / "file").touch()
    with refuses(tmp_path / "file", "not a folder"):
        open_source(dataset, tmp_path / "file", "train")


def test_a_challenge_folder_without_test_masks_cannot_be_evaluated_on(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_challenge(tmp_path, faces)
    shutil.rmtree(tmp_path / "test" / "test_mask")
    with refuses("no masks for split test", tmp_path / "test" / "test_mask", "take another split"):
        open_source("celebamask", tmp_path, "test")


def test_a_missing_or_empty_challenge_split_is_refused(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_challenge(tmp_path, faces)
    shutil.rmtree(tmp_path / "val")
    with refuses(tmp_path / "val" / "val_image"):
        open_source("celebamask", tmp_path, "val")
    for folder in ("val_image", "val_mask"):
        (tmp_path / "val" / folder).mkdir(parents=True)
    with refuses("no faces for split val", tmp_path):
        open_source("celebamask", tmp_path, "val")


def test_photos_without_mask_and_masks_without_photo_are_counted_and_named(tmp_path: Path) -> None:
    faces = fixtures.draw_faces(train=9)
    fixtures.write_challenge(tmp_path, faces)
    for number in range(7):
        (tmp_path / "train" / "train_mask" / f"{number}.png").unlink()
    with refuses("photos without mask", "7 (0, 1, 2, 3, 4, …)", tmp_path / "train" / "train_image"):
        open_source("celebamask", tmp_path, "train")
    (tmp_path / "val" / "val_image" / "9.jpg").unlink()
    with refuses("masks without photo", "1 (9)", tmp_path / "val" / "val_mask"):
        open_source("celebamask", tmp_path, "val")


def test_official_folders_with_missing_or_strange_files_are_refused(tmp_path: Path, faces: fixtures.Faces) -> None:
    whole = tmp_path / "whole"
    fixtures.write_celebamask_official(whole, faces)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    root = copy("no photo")
    (root / "CelebA-HQ-img" / "1.jpg").unlink()
    with refuses("masks without photo", "1 (1)", root):
        open_source("celebamask", root, "train")
    assert len(open_source("celebamask", root, "val").samples) == 2  # the other splits are whole

    root = copy("no mask")
    for path in root.rglob("00003_*.png"):
        path.unlink()
    with refuses("photos without mask", "1 (3)", root):
        open_source("celebamask", root, "val")

    root = copy("strange part")
    parts = root / "CelebAMask-HQ-mask-anno" / "0"
    os.rename(parts / "00000_nose.png", parts / "00000_snout.png")
    with refuses("no known part", "0/00000_snout.png", root):
        open_source("celebamask", root, "train")

    root = copy("no parts")
    shutil.rmtree(root / "CelebAMask-HQ-mask-anno")
    with refuses(root / "CelebAMask-HQ-mask-anno", "official layout"):
        open_source("celebamask", root, "train")


def test_helen_folders_with_missing_files_are_refused(tmp_path: Path, faces: fixtures.Faces) -> None:
    whole = tmp_path / "whole"
    fixtures.write_helen(whole, faces)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    root = copy("no photo")
    (root / "images" / "1.jpg").unlink()
    with refuses("masks without photo", "1 (1)", root):
        open_source("helen", root, "train")

    root = copy("no masks")
    shutil.rmtree(root / "labels" / "3")
    with refuses("photos without mask", "1 (3)", root):
        open_source("helen", root, "val")

    root = copy("one mask less")
    (root / "labels" / "0" / "0_lbl07.png").unlink()
    with refuses("without all of their 11 masks", "0_lbl07.png", root):
        open_source("helen", root, "train")

    root = copy("no list")
    (root / "testing.txt").unlink()
    with refuses(root / "testing.txt", "expected"):
        open_source("helen", root, "test")


HEAD = b"idx orig_idx orig_file\n"
LISTS: dict[str, tuple[str, bytes, str]] = {
    f"{file}, {name}": (file, content, said)
    for file, rows in {
        "testing.txt": (
            ("empty", b"", "is empty"),
            ("blank lines", b"\n \n\t\n", "is empty"),
            ("no comma", b"1 5\n", "line 1: expected"),
            ("no number", b"x , 5\n", "line 1: expected"),
            ("no name", b"1 , \n", "line 1: expected"),
            ("a bad second line", b"1 , 5\nfour\n", "line 2: expected"),
            ("not UTF-8", b"1 , caf\xe9\n", "no text in UTF-8"),
            ("UTF-16", "1 , 5\n".encode("utf-16"), "no text in UTF-8"),
            ("zeros", bytes(300), "line 1"),
            ("a name outside", b"1 , ../../1\n", "line 1: expected"),
            ("a name from the root", b"1 , /etc/passwd\n", "line 1: expected"),
            ("the folder above", b"1 , ..\n", "line 1: expected"),
            ("a zero byte", b"1 , a\0b\n", "line 1: expected"),
            ("5,000 letters", b"1 , " + b"n" * 5000 + b"\n", "line 1: expected"),
            ("unknown names", b"1 , nobody\n2 , nothing\n", "2 (nobody, nothing)"),
            ("a name twice", b"1 , 5\n2 , 5\n", "listed twice"),
            ("a name of another split", b"1 , 0\n", "names both in"),
        ),
        "CelebA-HQ-to-CelebA-mapping.txt": (
            ("empty", b"", "line 1"),
            ("header alone", HEAD, "faces not in"),
            ("no header", b"0 1 000001.jpg\n", "line 1"),
            ("other columns", b"a b c\n1 2 3\n", "line 1"),
            ("letters", HEAD + b"0 zero 000001.jpg\n", "line 2"),
            ("too few columns", HEAD + b"1\n", "line 2"),
            ("5,000 digits", HEAD + b"1" * 5000 + b" 1 x\n", "line 2"),
            ("one face alone", HEAD + b"0 0 000001.jpg\n", "5 (1, 2, 3, 4, 5)"),
            ("a face twice", HEAD + b"1 5 000006.jpg\n" * 2, "face 1 is there for the second time"),
            ("zeros", bytes(300), "line 1"),
            ("UTF-16", HEAD.decode().encode("utf-16"), "no text in UTF-8"),
        ),
    }.items()
    for name, content, said in rows
}


@pytest.mark.parametrize("kind", LISTS)
def test_damaged_lists_are_one_line(tmp_path: Path, faces: fixtures.Faces, kind: str) -> None:
    file, content, said = LISTS[kind]
    dataset, write = (
        ("helen", fixtures.write_helen) if file == "testing.txt" else ("celebamask", fixtures.write_celebamask_official)
    )
    write(tmp_path, faces)
    (tmp_path / file).write_bytes(content)
    with refuses(said):
        open_source(dataset, tmp_path, "test")


@pytest.mark.parametrize("kind", ["missing", "pipe", "link to itself", "empty device"])
@pytest.mark.parametrize("at", ["", "train", "train/train_image", "train/train_mask"])
def test_what_is_no_folder_in_the_place_of_one_is_refused(
    tmp_path: Path, faces: fixtures.Faces, at: str, kind: str
) -> None:
    root = tmp_path / "faces"
    fixtures.write_challenge(root, faces)
    shutil.rmtree(root / at)
    SPECIAL[kind](root / at)
    with refuses(root):
        open_source("celebamask", root, "train")


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "endless device", "link to nothing", "link to itself"])
@pytest.mark.parametrize("name", ["testing.txt", "exemplars.txt", "CelebA-HQ-to-CelebA-mapping.txt"])
def test_lists_that_are_no_regular_files_are_refused_and_never_taken_for_missing(
    tmp_path: Path, faces: fixtures.Faces, name: str, kind: str
) -> None:
    dataset = "celebamask" if "Celeb" in name else "helen"
    (fixtures.write_helen if dataset == "helen" else fixtures.write_celebamask_official)(tmp_path, faces)
    (tmp_path / name).unlink()
    SPECIAL[kind](tmp_path / name)
    with refuses(tmp_path / name):
        open_source(dataset, tmp_path, "test")


def test_what_is_there_twice_under_one_number_is_refused(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_challenge(tmp_path / "challenge", faces)
    photos = tmp_path / "challenge" / "train" / "train_image"
    shutil.copy(photos / "1.jpg", photos / "0001.jpg")
    with refuses("two files for one name in", photos, "0001.jpg", "1.jpg"):
        open_source("celebamask", tmp_path / "challenge", "train")
    root = tmp_path / "official"
    fixtures.write_celebamask_official(root, faces)
    parts = root / "CelebAMask-HQ-mask-anno" / "0"
    shutil.copy(parts / "00001_nose.png", parts / "1_nose.png")
    with refuses("two files for one part in", parts, "00001_nose.png", "1_nose.png"):
        open_source("celebamask", root, "train")


def test_a_photo_smaller_than_its_mask_is_refused(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_celebamask_official(tmp_path, faces)
    source = open_source("celebamask", tmp_path, "train")
    Image.new("RGB", (1, 1)).save(source.samples[0].photo)
    with refuses("sizes differ", source.samples[0].photo, "1×1", "64×64"):
        source.read(source.samples[0])


def test_helen_brows_and_eyes_must_agree_about_the_sides(tmp_path: Path, faces: fixtures.Faces) -> None:
    only_brows = np.arange(256, dtype=np.uint8)
    only_brows[[2, 3]] = 3, 2
    mixed = {split: [(n, p, only_brows[labels]) for n, p, labels in group] for split, group in faces.items()}
    fixtures.write_helen(tmp_path, mixed)
    with refuses("brows and eyes disagree", tmp_path / "labels"):
        open_source("helen", tmp_path, "val")


def test_helen_without_any_brow_and_eye_cannot_tell_its_sides(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_helen(tmp_path, faces)
    for path in [path for label in range(2, 6) for path in tmp_path.rglob(f"*_lbl0{label}.png")]:
        Image.new("L", (64, 64)).save(path)
    with refuses("cannot tell left from right", tmp_path / "labels"):
        open_source("helen", tmp_path, "train")


def test_photos_and_masks_of_different_sizes_are_refused(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_challenge(tmp_path / "challenge", faces)
    fixtures.write_celebamask_official(tmp_path / "official", faces)
    fixtures.write_helen(tmp_path / "helen", faces)
    for folder, dataset, photo in (
        ("challenge", "celebamask", "train/train_image/0.jpg"),
        ("official", "celebamask", "CelebA-HQ-img/0.jpg"),
        ("helen", "helen", "images/0.jpg"),
    ):
        root = tmp_path / folder
        source = open_source(dataset, root, "train")
        Image.new("RGB", (80, 64)).save(root / photo)
        with refuses("sizes differ", root / photo, "80×64", source.samples[0].masks[0], "64×64"):
            source.read(source.samples[0])
    Image.new("L", (50, 64)).save(tmp_path / "helen" / "labels" / "1" / "1_lbl05.png")
    source = open_source("helen", tmp_path / "helen", "train")
    with refuses("sizes differ", "1_lbl00.png", "1_lbl05.png"):
        source.read(source.samples[1])


def test_unknown_ids_and_coloured_masks_are_refused_when_read(tmp_path: Path, faces: fixtures.Faces) -> None:
    fixtures.write_challenge(tmp_path, faces)
    source = open_source("celebamask", tmp_path, "train")
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8) % 21).save(
        source.samples[0].masks[0]
    )
    with refuses("unknown ids", source.samples[0].masks[0], "2 (19, 20)", "0 to 18"):
        source.read(source.samples[0])
    Image.fromarray(faces["train"][1][1]).save(source.samples[1].masks[0])
    with refuses("mask saved as colours", source.samples[1].masks[0]):
        source.read(source.samples[1])


# Real data


@pytest.mark.skipif(not REAL.is_dir(), reason="no real faces beside this checkout")
def test_real_faces_are_read_with_brow1_and_eye1_on_the_images_left() -> None:
    source = open_source("celebamask", REAL, "val")
    assert len(source.samples) == 500
    for sample in source.samples[::25]:
        photo, ids = source.read(sample)
        assert photo.shape == (512, 512, 3)
        labels = CELEBAMASK.map_to(NINE)[ids]
        for one, two in ((1, 2), (3, 4)):
            x = [np.nonzero(labels == label)[1] for label in (one, two)]
            assert not len(x[0]) or not len(x[1]) or x[0].mean() < x[1].mean()
