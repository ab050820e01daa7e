"""Which photos and videos the words of a command line name."""

import glob
import os
from pathlib import Path

from data.images import READ_SUFFIXES, natural_key
from faces import video

SUFFIXES = (*READ_SUFFIXES, *video.SUFFIXES)  # looked for in folders and globs


def find_photos(inputs: list[str]) -> tuple[list[Path], list[str]]:
    """Every photo that the inputs name, once, and one line for each input that names none."""
    photos: dict[str, Path] = {}
    failed = []
    for text in inputs:
        found: list[Path] = []
        reason = "no such file or folder"
        if os.path.isdir(text):
            found, reason = list_folder(Path(text))
        elif os.path.lexists(text):
            found = [Path(text)]
        elif glob.has_magic(text):
            found = sorted((file for file in map(Path, glob.glob(text, recursive=True)) if is_photo(file)), key=str)
            reason = "no photos match"
        if not found:
            failed.append(f"{text}: {reason}")
        for file in found:
            photos.setdefault(os.path.realpath(file), file)
    return list(photos.values()), failed


def list_folder(folder: Path) -> tuple[list[Path], str]:
    """The photos of a folder, numbers in numeric order, and why there are none."""
    try:
        files = sorted(folder.iterdir(), key=lambda file: natural_key(file.name))
    except OSError as error:
        return [], f"this folder cannot be listed ({error.strerror})"
    return [file for file in files if is_photo(file)], f"no photos ({', '.join(SUFFIXES)}) in this folder"


def is_photo(path: Path) -> bool:
    """Whether a file in a folder is named like a photo; what cannot be read after all is told of when it is read."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not os.path.isdir(path)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in video.SUFFIXES
