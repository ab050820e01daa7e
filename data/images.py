"""Photos, label maps and folder listings: the files as they come, read right or refused in one line."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image

from utils.errors import InputError
from utils.files import open_regular

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")  # of data sets
READ_SUFFIXES: tuple[str, ...] = (
    *PHOTO_SUFFIXES,
    ".jfif",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".avif",
)  # of anyone's photos
MASK_SUFFIXES = (".png",)
PHOTO_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")  # whatever the file is called
if find_spec("PIL.AvifImagePlugin"):  # from Pillow 11.3 on
    PHOTO_FORMATS += ("AVIF",)
if find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
    PHOTO_FORMATS += ("HEIF",)
    READ_SUFFIXES += (".heic", ".heif")
MASK_FORMATS = ("PNG",)
LONGEST = 32_766  # side of a photo that OpenCV warps, pixels
IMAGE_SIDE = 256  # side of the stretched photo that is cached; the coarse network sees it shrunk further
_UPRIGHT = {  # EXIF orientation -> what makes a photo upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_photo(path: Path) -> np.ndarray:
    """Reads a photo as uint8 (H, W, 3) RGB with its EXIF orientation applied; a damaged EXIF block counts as none.

    Grey, 1-bit, palette, CMYK and 16-bit photos are converted, floats in 0-1 or 0-255 too; an alpha channel is dropped.
    Of an animation, the first frame is read.
    Raises InputError for a file that is missing, not a regular one, truncated, none of ``PHOTO_FORMATS``, of more
    pixels than Pillow allows (179 million) or a side of more than 32,766, or too large for the memory.
    """
    with _open_picture(path, PHOTO_FORMATS) as image:
        if max(image.size) > LONGEST:
            size = f"{image.height} x {image.width} pixels"
            raise InputError(f"{path} has {size}: each side must have 1 to {LONGEST}; resize it")
        return _rgb(image, str(path))


def as_photo(photo: Any, name: str = "photo") -> np.ndarray:
    """What people call a photo as contiguous uint8 (H, W, 3), RGB: a file or a PIL image, as ``read_photo`` reads them,
    or an array (H, W, 3) of uint8, or of floats in 0-1, laid out in memory in any way.

    Raises InputError, which begins with the argument's ``name``, for anything else and for photos without a pixel or
    with a side of more than 32,766.
    """
    if isinstance(photo, str | PathLike):
        name, pixels = str(photo), read_photo(Path(photo))
    elif isinstance(photo, Image.Image):
        with _explained(f"{name} (a PIL image)", PHOTO_FORMATS):
            pixels = _rgb(photo, name)
    elif isinstance(photo, np.ndarray) and photo.ndim == 3 and photo.shape[2] == 3 and photo.dtype.kind in "uf":
        pixels = photo
    else:
        pixels = None
    if pixels is None or (pixels.dtype.kind == "u" and pixels.dtype != np.uint8):
        kind = f"{photo.dtype} {photo.shape}" if isinstance(photo, np.ndarray) else type(photo).__name__
        wanted = "a path, a PIL image, or an array (height, width, 3) of uint8 or of floats in 0-1"
        raise InputError(f"{name} must be {wanted}, not {kind}")
    if not pixels.size or max(pixels.shape) > LONGEST:
        height, width = pixels.shape[:2]
        raise InputError(f"{name} has {height} x {width} pixels: each side must have 1 to {LONGEST}; resize it")
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # nor NaN
            raise InputError(f"{name} holds floats outside 0-1: divide it by 255, or convert it to uint8")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image as uint8 (H, W, 3), upright. Raises InputError, and what Pillow's decoders raise."""
    image.load()
    how = _UPRIGHT.get(_orientation(image))
    upright = image if how is None else image.transpose(how)
    if upright.mode.startswith("I"):  # 16-bit grey; Pillow reduces 16-bit RGB itself
        grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255)
    elif upright.mode == "F":
        values = np.nan_to_num(np.asarray(upright))
        grey = np.rint(np.clip(values * (255 if values.max(initial=0) <= 1 else 1), 0, 255))
    else:
        try:
            return np.array(upright.convert("RGB"))
        except ValueError as error:
            raise InputError(
                f"cannot turn {name} into RGB (mode {upright.mode}): save it as an RGB JPEG or PNG"
            ) from error
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def read_labels(path: Path) -> np.ndarray:
    """Reads a label map as uint8 (H, W) of class ids.

    Palette and grey pictures keep their stored numbers, 16-bit ones too while below 256; colour pictures count as
    grey while their channels are equal. Raises InputError for real colours, larger ids and, as ``read_photo``, for
    files that cannot be read; only PNG keeps ids as they are.
    """
    with _open_picture(path, MASK_FORMATS) as image:
        image.load()
        if image.mode in ("L", "P"):
            return np.array(image)
        if image.mode == "1":
            return np.array(image).astype(np.uint8)
        if image.mode in ("LA", "PA"):
            return np.array(image.getchannel(0))
        if image.mode.startswith("I"):
            ids = np.asarray(image).astype(np.int64)
            if ids.size and (ids.min() < 0 or ids.max() > 255):
                raise InputError(f"mask {path} holds ids up to {ids.max()}: save class ids, not 16-bit brightness")
            return ids.astype(np.uint8)
        if image.mode in ("RGB", "RGBA"):
            colours = np.asarray(image)[:, :, :3]
            if (colours == colours[:, :, :1]).all():
                return colours[:, :, 0].copy()
        raise InputError(f"mask saved as colours: {path} (mode {image.mode}); save one channel of class ids")


def read_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of a picture as stored, from its header alone. Raises InputError if unreadable."""
    with _open_picture(path, PHOTO_FORMATS) as image:
        return image.height, image.width


def resize_photo(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 (H, W, 3) to (height, width, 3), averaging over areas when it shrinks."""
    if photo.shape[:2] == (height, width):
        return photo
    shrinks = height <= photo.shape[0] and width <= photo.shape[1]
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(photo).resize((width, height), how))


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 (H, W) to (height, width): the label nearest to each new pixel's centre."""
    return np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Maps the stem of each file in a folder to its path, numbers in numeric order; no file is opened.

    Hidden files are left out. Raises InputError for a missing folder and for two files of one stem or one number.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"cannot list folder {folder}: {error.strerror}") from error
    found: dict[str, Path] = {}
    faces: dict[str | int, str] = {}  # 3.jpg and 0003.jpg are one face
    for name in sorted(names, key=natural_key):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            continue
        face = int(stem) if stem.isdecimal() else stem
        if face in faces:
            raise InputError(f"two files for one name in {folder}: {faces[face]} and {name}; keep one")
        faces[face] = name
        found[stem] = folder / name
    return found


def natural_key(name: str) -> tuple[int, int, str]:
    """Sort key: names that start with a number first, by that number; the others by text."""
    stem = name.split(".", 1)[0]
    return (0, int(stem), name) if stem.isdecimal() else (1, 0, name)


def shorten(names: Iterable[str], most: int = 5) -> str:
    """The count of names and the first few of them, for one-line messages: ``7 (a, b, c, d, e, …)``."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:most])}{', …' if len(names) > most else ''})"


def make_image_256(photo: np.ndarray) -> np.ndarray:
    """The photo stretched to 256 x 256, antialiased: uint8 (256, 256, 3)."""
    shrinks = photo.shape[0] >= IMAGE_SIDE and photo.shape[1] >= IMAGE_SIDE
    return cv2.resize(photo, (IMAGE_SIDE, IMAGE_SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def frame_pixels(matrix_23: np.ndarray, width: int, height: int) -> np.ndarray:
    """From pixels (x, y) of a picture that shows a frame, and nothing else, to those of the photo: (2, 3). matrix_23:
    see ``warp_frame``."""
    size_2 = np.array([width, height])
    return np.column_stack([matrix_23[:, :2] * 2 / size_2, matrix_23[:, :2] @ (1 / size_2 - 1) + matrix_23[:, 2]])


def warp_frame(photo: np.ndarray, matrix_23: np.ndarray, side: int = IMAGE_SIDE) -> np.ndarray:
    """A square of the photo, turned or not, as side x side pixels, antialiased, black outside: uint8.

    matrix_23: the square's coordinates, -1 to 1 from edge to edge (x, y), to pixels of the photo.
    """
    height, width = photo.shape[:2]
    corners_24 = matrix_23[:, :2] @ np.array([(-1, 1, 1, -1), (-1, -1, 1, 1)]) + matrix_23[:, 2:]
    low_2 = np.clip(np.floor(corners_24.min(1)) - 1, 0, (width - 1, height - 1)).astype(int)
    high_2 = np.clip(np.ceil(corners_24.max(1)) + 2, low_2 + 1, (width, height)).astype(int)
    part = photo[low_2[1] : high_2[1], low_2[0] : high_2[0]]
    step = 2 * np.sqrt(abs(np.linalg.det(matrix_23[:, :2]))) / side  # photo pixels in a pixel of the result
    ratio_2 = np.ones(2)
    if step > 1:  # shrink first, over areas; one pixel is then one of the result's
        size_2 = np.maximum(1, np.rint((high_2 - low_2) / step)).astype(int)
        ratio_2 = (high_2 - low_2) / size_2
        part = cv2.resize(part, size_2.tolist(), interpolation=cv2.INTER_AREA)
    # pixel i of the result lies at (2 i + 1) / side - 1; of the part, at (i + 0.5) ratio - 0.5 + low
    to_part_23 = frame_pixels(matrix_23, side, side)
    to_part_23[:, 2] = to_part_23[:, 2] - low_2 + 0.5
    to_part_23 /= ratio_2[:, None]
    to_part_23[:, 2] -= 0.5
    return cv2.warpAffine(part, to_part_23, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


@contextmanager
def _open_picture(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """A picture of one of these formats, its header read. Raises InputError for whatever fails, in the block too."""
    with (
        open_regular(path, "picture") as file,
        _explained(f"image {path}", formats),
        Image.open(file, formats=formats) as image,
    ):
        yield image


@contextmanager
def _explained(name: str, formats: tuple[str, ...]) -> Iterator[None]:
    """Raises InputError for whatever Pillow raises in the block."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"too little memory to read {name}: save it smaller") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than 179 million pixels, which are not read: save it smaller") from error
    except Image.UnidentifiedImageError as error:
        known = f"{', '.join(formats[:-1])} or {formats[-1]}" if len(formats) > 1 else formats[0]
        heic = name.lower().endswith((".heic", ".heif")) and "HEIF" not in formats
        mend = "pip install pillow-heif, which reads HEIC" if heic else "fetch or save it again"
        raise InputError(f"cannot read {name}: no {known} picture, or a damaged one; {mend}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise InputError(f"cannot read {name}: {reason or type(error).__name__}; fetch or save it again") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1 for a damaged or missing EXIF block."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # as of Pillow's decoders
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
