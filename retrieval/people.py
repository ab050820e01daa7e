"""Folders of people: one folder a person, whose name it bears, with their photos."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import READ_SUFFIXES, list_files, read_photo, shorten
from utils.errors import InputError
from utils.files import sha256

CROP = 160  # side of an aligned face, pixels
INSIDE = "whose folders are people"  # why nothing may be written into a folder of people


@dataclass(frozen=True)
class People:
    """Photos of people. names: of the folders, in string order, each once. files: person by person. labels_N: int64,
    whose photo each file is, an index into ``names``."""

    names: tuple[str, ...]
    files: tuple[Path, ...]
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names_N(self) -> np.ndarray:
        """Whose photo each file is, by name."""
        return np.array(self.names)[self.labels_N]

    def keep(self, chosen_N: np.ndarray) -> "People":
        """The chosen photos (bool, or indices) of the same people."""
        index = np.arange(len(self))[chosen_N]
        return People(self.names, tuple(self.files[i] for i in index), self.labels_N[index])

    def names_digest(self) -> str:
        """SHA-256 of the people's names."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 of the names of people and photos and of the photos' bytes. Raises InputError for unreadable ones."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(os.fsencode(f"{file.parent.name}/{file.name} {sha256(file)}\n"))
        return digest.hexdigest()


def list_people(folder: Path) -> People:
    """The people of a folder; files outside their folders are ignored.

    Raises InputError for a folder that is missing or holds no people, for people without photos, and for names that
    do not fit into a line of UTF-8.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if os.path.isdir(entry) and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot list folder {folder}: {error.strerror}") from error
    if not names:
        raise InputError(f"{folder} holds no people: it needs one folder of photos per person")
    photos = {name: list(list_files(folder / name, READ_SUFFIXES).values()) for name in names}
    if empty := [name for name, files in photos.items() if not files]:
        raise InputError(f"{folder}: people without photos: {shorten(empty)}; add photos or remove their folders")
    known = [f"{name}/{file.name}" for name, files in photos.items() for file in files]
    if odd := [name for name in known if not _is_line(name)]:
        raise InputError(f"{folder}: names that are no line of UTF-8: {shorten(odd)}; rename them")
    counts = [len(files) for files in photos.values()]
    files = tuple(file for files in photos.values() for file in files)
    return People(tuple(names), files, np.repeat(np.arange(len(names)), counts))


def _is_line(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return False
    return name.splitlines() == [name]


def read_crops(files: Sequence[Path]) -> np.ndarray:
    """Aligned faces as uint8 (N, 160, 160, 3); pictures of other sizes are cut or padded with black, about their
    middle. Raises InputError for files that cannot be read."""
    crops_NSS3 = np.zeros((len(files), CROP, CROP, 3), np.uint8)
    for crop_SS3, file in zip(crops_NSS3, files, strict=True):
        crop_SS3[:] = middle(read_photo(file))
    return crops_NSS3


def middle(photo_HW3: np.ndarray) -> np.ndarray:
    """The middle 160 x 160 pixels of a picture, black where there are none."""
    photo = Image.fromarray(photo_HW3)
    left, top = (int((side - CROP) / 2) for side in photo.size)
    return np.array(photo.crop((left, top, left + CROP, top + CROP)))
