"""Photos, label maps and folder listings: the files as they come, read right or refused in one line."""

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils.errors import InputError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".png",)
THUMB = 256  # side of the stretched photo that is cached; the coarse network sees it shrunk further


def read_photo(path: Path) -> np.ndarray:
    """Reads a photo as uint8 (H, W, 3) RGB with its EXIF orientation applied.

    Grey, 1-bit, palette, CMYK and 16-bit photos are converted; an alpha channel is dropped.
    Raises InputError for a file that is missing, truncated or no picture.
    """
    image = _decode(path, upright=True)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow reduces 16-bit RGB itself
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise InputError(f"cannot turn {path} into RGB (mode {image.mode}): save it as an RGB JPEG or PNG") from error


def read_labels(path: Path) -> np.ndarray:
    """Reads a label map as uint8 (H, W) of class ids.

    Palette and grey pictures keep their stored numbers, 16-bit ones too while below 256; colour pictures count as
    grey while their channels are equal. Raises InputError for real colours, larger ids and unreadable files.
    """
    image = _decode(path, upright=False)
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
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:
        raise _unreadable(path, error) from error


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

    Hidden files are left out. Raises InputError for a missing folder and for two files of one stem.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"cannot list folder {folder}: {error.strerror}") from error
    found: dict[str, Path] = {}
    for name in sorted(names, key=natural_key):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            continue
        if stem in found:
            raise InputError(f"two files for one name in {folder}: {found[stem].name} and {name}; keep one")
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


def _decode(path: Path, upright: bool) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image) if upright else image.copy()
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    elif isinstance(error, Image.UnidentifiedImageError):
        reason = "not a picture, or a damaged one"
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"cannot read image {path}: {reason}; fetch or save it again")


def make_thumb(photo: np.ndarray) -> np.ndarray:
    """The photo stretched to 256 x 256, antialiased: uint8 (256, 256, 3)."""
    shrinks = photo.shape[0] >= THUMB and photo.shape[1] >= THUMB
    return cv2.resize(photo, (THUMB, THUMB), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
