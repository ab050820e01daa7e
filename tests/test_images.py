"""Photos and label maps: read right whatever the mode and format, one clear line where they cannot be."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from data.images import LONGEST, as_photo, list_files, read_labels, read_photo, read_size, shorten
from tests.damage import BAD_PICTURES, SPECIAL, png_of_size, refuses, saved, with_exif
from tests.fixtures import save_palette
from utils.errors import InputError

RNG = np.random.default_rng(0)
GREY, PALETTE = RNG.integers(0, 256, (6, 9), np.uint8), RNG.integers(0, 256, (256, 3), np.uint8)
COLOUR, GREY3 = RNG.integers(0, 256, (6, 9, 3), np.uint8), np.repeat(GREY[:, :, None], 3, 2)
READ = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "AVIF")
READERS = pytest.mark.parametrize("reader", [read_photo, read_labels, read_size])


def see_through(pixels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.putalpha(Image.fromarray(GREY))
    return picture


def in_palette(**info: int) -> Image.Image:
    picture = Image.fromarray(GREY)
    picture.putpalette(PALETTE.tobytes())
    picture.info.update(info)
    return picture


PHOTOS: dict[str, tuple[Image.Image, np.ndarray]] = {
    "RGB": (Image.fromarray(COLOUR), COLOUR),
    "RGBA": (see_through(COLOUR), COLOUR),
    "grey": (Image.fromarray(GREY), GREY3),
    "grey with alpha": (see_through(GREY), GREY3),
    "1 bit": (Image.fromarray(GREY > 99), (GREY3 > 99) * np.uint8(255)),
    "palette": (in_palette(), PALETTE[GREY]),
    "palette with a transparent colour": (in_palette(transparency=int(GREY[0, 0])), PALETTE[GREY]),
    "16 bits keep their upper byte": (Image.fromarray(GREY.astype(np.uint16) * 256 + 77), GREY3),
    "floats in 0-1": (Image.fromarray(GREY.astype(np.float32) / 255), GREY3),
    "floats in 0-255": (Image.fromarray(GREY.astype(np.float32)), GREY3),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_photos_of_every_mode_become_rgb_without_their_alpha(tmp_path, kind):
    picture, expected = PHOTOS[kind]
    for suffix in ("tif",) if picture.mode == "F" else ("png", "tif"):
        path = tmp_path / f"a.{suffix}"
        picture.save(path)
        with Image.open(path) as opened:
            for photo in (read_photo(path), as_photo(str(path)), as_photo(opened)):
                assert photo.dtype == np.uint8
                np.testing.assert_array_equal(photo, expected)


def test_16_bit_rgb_and_cmyk_photos_are_converted(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), COLOUR[:, :, ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_photo(tmp_path / "deep.png"), COLOUR)
    flat = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(read_photo(tmp_path / "a.jpg").astype(int) - flat).max() <= 4


@pytest.mark.parametrize("kind", [*READ, "TGA", "PCX", "PPM", "ICO", "EPS"])
def test_photos_of_these_formats_are_read_whatever_the_file_is_called_and_masks_as_png_alone(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(saved(kind))
    if kind in READ:
        assert read_photo(path).shape == (64, 64, 3)
    else:
        with refuses("cannot read image", path, "no JPEG, PNG, BMP, TIFF, WEBP"):
            read_photo(path)
    if kind != "PNG":
        with refuses("cannot read image", path, "no PNG picture"):
            read_labels(path)


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_files_that_are_no_whole_picture_are_refused_by_path(tmp_path, kind):
    (tmp_path / "photo.jpg").write_bytes(BAD_PICTURES[kind]())
    for reader in (read_photo, read_labels):
        with refuses(tmp_path / "photo.jpg"):
            reader(tmp_path / "photo.jpg")


@READERS
@pytest.mark.parametrize("kind", ["missing", "pipe", "endless device"])  # the others: test_files
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, reader, kind):
    SPECIAL[kind](tmp_path / "a.png")
    with refuses(tmp_path / "a.png"):
        reader(tmp_path / "a.png")


@READERS
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path, reader):
    (tmp_path / "a.png").write_bytes(png_of_size(13_400, 13_400))
    with refuses(tmp_path / "a.png", "more than 179 million pixels", "save it smaller"):
        reader(tmp_path / "a.png")


def test_too_little_memory_is_not_a_damaged_file(tmp_path, monkeypatch):
    def load(self):
        raise MemoryError

    (tmp_path / "a.png").write_bytes(saved("PNG"))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert read_size(tmp_path / "a.png") == (64, 64)
    for reader in (read_photo, read_labels):
        with refuses("too little memory to read image", tmp_path / "a.png") as caught:
            reader(tmp_path / "a.png")
        assert "again" not in str(caught.value)


BLOCKS = {
    "garbage": b"garbage",
    "truncated": b"II*\0\x08\0\0\0\x05\0\x12\x01",
    "points to itself": b"II*\0\x08\0\0\0\xff\xff" + b"\x69\x87\x04\0\x01\0\0\0\x08\0\0\0" * 20,
    "orientation 99": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    "orientation of letters": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
    "no content": b"",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("block", BLOCKS)
def test_a_damaged_exif_block_is_no_reason_to_refuse_a_picture(tmp_path, block):
    (tmp_path / "a.jpg").write_bytes(with_exif(BLOCKS[block]))
    png, chunk = saved("PNG"), b"eXIf" + BLOCKS[block]
    length, check = struct.pack(">I", len(BLOCKS[block])), struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "b.png").write_bytes(png[:33] + length + chunk + check + png[33:])
    assert read_photo(tmp_path / "a.jpg").shape == read_photo(tmp_path / "b.png").shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does_in_every_format(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a", kind, exif=exif)
    with Image.open(tmp_path / "a") as image:
        np.testing.assert_array_equal(read_photo(tmp_path / "a"), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "16 bit", "1"])
def test_label_ids_are_read_as_stored(tmp_path, mode):
    ids = GREY % 19
    if mode == "P":
        save_palette(tmp_path / "a.png", ids)
    elif mode == "16 bit":
        Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "a.png")
    else:
        ids = ids > 9 if mode == "1" else ids  # of two classes
        Image.fromarray(ids).convert(mode).save(tmp_path / "a.png")
    labels = read_labels(tmp_path / "a.png")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, ids)


def test_masks_saved_as_colours_or_16_bit_brightness_are_refused(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    Image.fromarray(GREY.astype(np.uint16) * 256).save(tmp_path / "b.png")
    for name, words in (("a.png", ("mask saved as colours", "a.png")), ("b.png", ("mask", "b.png", "ids up to"))):
        with refuses(*words):
            read_labels(tmp_path / name)


def test_files_are_listed_in_the_order_of_their_numbers_without_hidden_ones_and_many_are_counted(tmp_path):
    for name in ("10.jpg", "9.JPG", "b.png", "a.jpeg", "._9.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert list(list_files(tmp_path, (".jpg", ".jpeg", ".png"))) == ["9", "10", "a", "b"]
    assert [shorten("abcde"), shorten("abcdefg")] == ["5 (a, b, c, d, e)", "7 (a, b, c, d, e, …)"]


@pytest.mark.parametrize("names", [("1.jpg", "1.png"), ("3.jpg", "0003.jpg"), ("0.jpg", "00.jpg")])
def test_two_files_of_one_name_or_number_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with refuses("two files for one name in", tmp_path, *sorted(names), "keep one"):
        list_files(tmp_path, (".jpg", ".png"))


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        (COLOUR, COLOUR),
        (np.asfortranarray(COLOUR), COLOUR),
        (COLOUR[..., ::-1], COLOUR[..., ::-1].copy()),
        (np.rot90(COLOUR), np.rot90(COLOUR).copy()),
        (COLOUR / 255, COLOUR),
        ((COLOUR / 255).astype(np.float32)[:, ::-1], COLOUR[:, ::-1].copy()),
    ],
)
def test_an_array_is_taken_however_it_lies_in_memory(photo, expected):
    found = as_photo(photo)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected)


def opened(cut: int = 0, close: bool = False) -> Image.Image:
    """A PIL image whose pixels cannot be read any more."""
    picture = Image.open(io.BytesIO(saved("PNG")[: -cut or None]))
    if close:
        picture.close()
    return picture


@pytest.mark.parametrize(
    ("photo", "words"),
    [
        (np.dstack([COLOUR, COLOUR[..., :1]]), "must be a path.*uint8 \\(6, 9, 4\\)"),
        (COLOUR.astype(np.uint16), "must be .*uint16"),
        (COLOUR.astype(float), "floats outside 0-1"),
        (np.full((4, 4, 3), np.nan), "floats outside 0-1"),
        (np.zeros((0, 5, 3), np.uint8), "0 x 5 pixels"),
        (np.zeros((LONGEST + 1, 1, 3), np.uint8), "32767 x 1 pixels"),
        (Image.new("RGB", (LONGEST + 1, 1)), "1 x 32767 pixels"),
        (opened(close=True), "cannot read face \\(a PIL image\\)"),
        (opened(cut=40), "cannot read face \\(a PIL image\\)"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_photo_is_one_line_that_names_the_argument(photo, words):
    with pytest.raises(InputError, match=f"face.*{words}" if "cannot" not in words else words) as caught:
        as_photo(photo, "face")
    assert "\n" not in str(caught.value)
