"""Which photos and videos the words of a command line name."""

import glob
import mimetypes
import os
import sys
from pathlib import Path

from data.images import READ_SUFFIXES, natural_key, shorten
from utils.runtime import printable

VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
SUFFIXES = (*READ_SUFFIXES, *VIDEOS)  # looked for in folders and globs


def find_photos(inputs: list[str], recursive: bool = False) -> tuple[list[Path], list[str]]:
    """Every photo that the inputs name, once, and one line for each input that names none. recursive: those of the
    folders in folders too. Pictures of kinds that are not read are listed on stderr."""
    photos: dict[str, Path] = {}
    failed = []
    for text in inputs:
        found: list[Path] = []
        reason = "no such file or folder"
        if os.path.isdir(text):
            found, reason = list_folder(Path(text), recursive)
        elif os.path.lexists(text):
            found = [Path(text)]
        elif glob.has_magic(text):
            found = readable(sorted(map(Path, glob.glob(text, recursive=True)), key=str), text)
            reason = "no photos match"
        if not found:
            failed.append(f"{text}: {reason}")
        for file in found:
            photos.setdefault(os.path.realpath(file), file)
    return list(photos.values()), failed


def list_folder(folder: Path, recursive: bool = False) -> tuple[list[Path], str]:
    """The photos of a folder, numbers in numeric order, and why there are none."""
    try:
        files = sorted(folder.iterdir(), key=lambda file: natural_key(file.name))
    except OSError as error:
        return [], f"this folder cannot be listed ({error.strerror})"
    found = readable(files, str(folder))
    inner = [file for file in files if os.path.isdir(file) and not (file.name.startswith(".") or file.is_symlink())]
    if recursive:
        found += [file for other in inner for file in list_folder(other, recursive)[0]]
    reason = f"no photos ({', '.join(SUFFIXES)}) in this folder"
    return found, f"{reason}, but {shorten([f.name for f in inner])} in it: add --recursive" if inner else reason


def readable(files: list[Path], where: str) -> list[Path]:
    """The photos and videos among some files; one line on stderr for the other pictures, if any."""
    photos = [file for file in files if is_photo(file)]
    kinds = ("image/", "video/")
    rest = [file for file in files if (mimetypes.guess_type(file.name)[0] or "").startswith(kinds)]
    rest = [file for file in rest if file.suffix.lower() not in SUFFIXES and not file.name.startswith(".")]
    if rest:
        heic = any(file.suffix.lower() in (".heic", ".heif") for file in rest)
        more = "; for HEIC: pip install pillow-heif" if heic else ""
        names = printable(f"{where}: {shorten([file.name for file in rest])}")
        print(f"left out, of kinds that are not read: {names}{more}", file=sys.stderr)
    return photos


def is_photo(path: Path) -> bool:
    """Whether a file in a folder is named like a photo; what cannot be read after all is reported when it is read."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not os.path.isdir(path)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS
