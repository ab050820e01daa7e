"""Pictures that are no regular files, too large, of formats that are not read, or damaged where it does not matter."""

import io
import os
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.images import LONGEST, as_photo, list_files, read_labels, read_photo, read_size
from tests.damage import SPECIAL, png_of_size, saved, with_exif
from tests.test_readers import refuses
from utils.errors import InputError

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
READERS = pytest.mark.parametrize("reader", [read_photo, read_labels, read_size])


@READERS
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, reader, kind: str) -> None:
    SPECIAL[kind](tmp_path / "a.png")
    started = time.monotonic()
    with refuses(tmp_path / "a.png"):
        reader(tmp_path / "a.png")
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("kind", ["TGA", "PCX", "PPM", "ICO", "EPS"])
def test_formats_that_are_not_meant_are_not_read_whatever_the_file_is_called(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(kind))
    with refuses("cannot read image", path, "no JPEG, PNG, BMP, TIFF, WEBP"):
        read_photo(path)
    with refuses("cannot read image", path, "no PNG picture"):
        read_labels(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "AVIF"])
def test_photos_of_these_formats_are_read_whatever_the_file_is_called_and_masks_as_png_alone(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(kind))
    assert read_photo(path).shape == (64, 64, 3)
    if kind != "PNG":
        with refuses("cannot read image", path, "no PNG picture"):
            read_labels(path)


@READERS
@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (13_400, 13_400)])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path, reader, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of_size(*size))
    with refuses(path, "more than 179 million pixels", "save it smaller"):
        reader(path)


@READERS
def test_too_little_memory_is_not_a_damaged_file(tmp_path: Path, reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise MemoryError

    path = tmp_path / "a.png"
    path.write_bytes(saved("PNG"))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    if reader is read_size:
        assert reader(path) == (64, 64)
        return
    with refuses("too little memory to read image", path) as caught:
        reader(path)
    assert "again" not in str(caught.value)


BLOCKS = {
    "garbage": b"garbage",
    "truncated": b"II*\0\x08\0\0\0\x05\0\x12\x01",
    "points outside": b"II*\0\xff\xff\xff\x7f",
    "points to itself": b"II*\0\x08\0\0\0\xff\xff" + b"\x69\x87\x04\0\x01\0\0\0\x08\0\0\0" * 20,
    "orientation 99": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    "orientation of letters": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
    "orientation of none": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\0\0\0\0\x06\0\0\0\0\0\0\0",
    "no content": b"",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("block", BLOCKS)
def test_a_damaged_exif_block_is_no_reason_to_refuse_a_picture(tmp_path: Path, block: str) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(BLOCKS[block]))
    assert read_photo(tmp_path / "a.jpg").shape == (64, 64, 3)
    png = saved("PNG")
    chunk = b"eXIf" + BLOCKS[block]
    length, check = struct.pack(">I", len(BLOCKS[block])), struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "b.png").write_bytes(png[:33] + length + chunk + check + png[33:])
    assert read_photo(tmp_path / "b.png").shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does_in_every_format(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(tmp_path / "a", kind, exif=exif)
    with Image.open(tmp_path / "a") as image:
        np.testing.assert_array_equal(read_photo(tmp_path / "a"), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("names", [("3.jpg", "0003.jpg"), ("03.png", "3.jpg"), ("0.jpg", "00.jpg")])
def test_two_files_of_one_number_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with refuses("two files for one name in", tmp_path, *sorted(names), "keep one"):
        list_files(tmp_path, (".jpg", ".png"))


def test_names_that_are_not_utf_8_are_listed_and_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(saved("PNG"))
    assert list(list_files(tmp_path, (".png",)).values()) == [path]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(path).shape == (64, 64, 3)


def stored(array: np.ndarray, kind: str) -> Image.Image:
    """A picture as Pillow opens it from a file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return Image.open(file)


def opened(cut: int = 0, close: bool = False) -> Image.Image:
    """A PIL image whose pixels cannot be read any more."""
    picture = Image.open(io.BytesIO(saved("PNG")[: -cut or None]))
    if close:
        picture.close()
    return picture


GREY = np.repeat(PICTURE[:, :, :1], 3, 2)


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        (PICTURE, PICTURE),
        (np.asfortranarray(PICTURE), PICTURE),
        (PICTURE[..., ::-1], PICTURE[..., ::-1].copy()),
        (PICTURE[::-1, ::2], PICTURE[::-1, ::2].copy()),
        (np.rot90(PICTURE), np.rot90(PICTURE).copy()),
        (PICTURE / 255, PICTURE),
        ((PICTURE / 255).astype(np.float32)[:, ::-1], PICTURE[:, ::-1].copy()),
        (Image.fromarray(PICTURE), PICTURE),
        (Image.fromarray(PICTURE).convert("RGBA"), PICTURE),
        (Image.fromarray(PICTURE[..., 0]), GREY),
        (stored(PICTURE[..., 0].astype(np.uint16) << 8, "PNG"), GREY),
        (stored(PICTURE[..., 0].astype(np.float32) / 255, "TIFF"), GREY),
        (stored(PICTURE[..., 0].astype(np.float32), "TIFF"), GREY),
    ],
)
def test_a_photo_is_taken_as_people_have_it(photo, expected: np.ndarray, tmp_path: Path) -> None:
    found = as_photo(photo)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected)
    if isinstance(photo, Image.Image) and photo.mode != "RGBA":
        photo.save(tmp_path / "a.tif")
        assert np.array_equal(as_photo(str(tmp_path / "a.tif")), expected)


@pytest.mark.parametrize(
    ("photo", "words"),
    [
        (PICTURE[..., 0], "must be a path.*uint8 \\(6, 9\\)"),
        (np.dstack([PICTURE, PICTURE[..., :1]]), "must be .*uint8 \\(6, 9, 4\\)"),
        (PICTURE.transpose(2, 0, 1), "must be .*uint8 \\(3, 6, 9\\)"),
        (PICTURE.astype(np.uint16), "must be .*uint16"),
        (PICTURE.astype(int), "must be .*int64"),
        (PICTURE.astype(float), "floats outside 0-1"),
        (np.full((4, 4, 3), np.nan), "floats outside 0-1"),
        (np.zeros((0, 5, 3), np.uint8), "0 x 5 pixels"),
        (np.zeros((LONGEST + 1, 1, 3), np.uint8), "32768 x 1 pixels"),
        (Image.new("RGB", (LONGEST + 1, 1)), "1 x 32768 pixels"),
        (opened(close=True), "cannot read face \\(a PIL image\\)"),
        (opened(cut=40), "cannot read face \\(a PIL image\\)"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_photo_is_one_line_that_names_the_argument(photo, words: str) -> None:
    with pytest.raises(InputError, match=f"face.*{words}" if "cannot" not in words else words) as caught:
        as_photo(photo, "face")
    assert "\n" not in str(caught.value)
