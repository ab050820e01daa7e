"""Files: opened only where they are regular ones, read in one-line errors, and written whole or not at all."""

import errno
import hashlib
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import InputError

BLOCK = 1 << 20  # bytes read at a time


def open_regular(path: Path, what: str = "file") -> BinaryIO:
    """Open a file for reading. Raises InputError at once for pipes, devices, sockets, folders, and for files that are
    missing or unreadable: nothing here waits for somebody to write into a pipe.

    what: the kind of file that is missing, for the message.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what}") from None
    except OSError as error:
        reason = "it is a socket, not a file" if error.errno == errno.ENXIO else error.strerror
        raise InputError(f"{path} cannot be read: {reason}") from None
    except ValueError as error:  # a zero byte in the name
        raise InputError(f"{str(path)!r} is not a file name ({error})") from None
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{path} is {kind}, not a file: give a {what}")
    return os.fdopen(number, "rb")


def check_zip(file: BinaryIO, path: Path, most: int) -> None:
    """Raises InputError for a zip archive of more than ``most`` bytes unpacked, and BadZipFile for a damaged one."""
    with zipfile.ZipFile(file) as archive:
        if (size := sum(entry.file_size for entry in archive.infolist())) > most:
            raise InputError(f"{path} would unpack to {size:,} bytes, far more than its size promises: not read")
        if archive.testzip():
            raise zipfile.BadZipFile
    file.seek(0)


def read_bytes(path: Path, what: str = "file") -> bytes:
    """A regular file's bytes. Raises InputError as ``open_regular`` does, and where the disk fails."""
    with open_regular(path, what) as file:
        try:
            return file.read()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_text(path: Path, what: str = "file") -> str:
    """A text in UTF-8. Raises InputError for anything else."""
    try:
        return read_bytes(path, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): write it again, or remove it") from None


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object. what: what the file is, for the message, as in "scores". Raises InputError for anything else."""
    return _object(parse_json(read_text(path, f"{what} file"), path, what), path, what)


def read_json_lines(path: Path, what: str, unfinished: bool = False) -> list[dict[str, Any]]:
    """JSON objects, one a line. what: as in ``read_json``. unfinished: leave out a last line without an end, as a
    killed run has written it. Raises InputError for anything else."""
    lines = read_text(path, f"{what} file").split("\n")
    if unfinished:
        lines.pop()
    numbered = [(line, f"{path}, line {k},") for k, line in enumerate(lines, 1) if line.strip()]
    return [_object(parse_json(line, where, what), where, what) for line, where in numbered]


def parse_json(text: str, where: Path | str, what: str) -> Any:
    """A JSON text's value. where, what: for the message. Raises InputError for damaged texts."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # fails for halves of characters, which nothing can write
    except (ValueError, RecursionError) as error:
        reason = str(error) if text.strip() else "it is empty"
        raise InputError(f"{where} is damaged ({reason}): write the {what} again, or remove it") from None
    return value


def _object(value: Any, where: Path | str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is damaged (it holds no object): write the {what} again, or remove it")
    return value


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name in its folder, then rename it: nobody ever sees half a file.

    write: fills the open file. The bytes are on the disk before the file gets its name. Where anything fails, an
    older file at ``path`` stays as it was and the temporary file is removed. Raises OSError of ``path``, and what
    ``write`` raises.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")  # short: path.name may have the greatest length already
    try:
        with open(temporary, "xb") as file:  # x: never through a link, never into another process's file
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # not the temporary name, and where there was none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """``write_whole`` for bytes."""
    write_whole(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """``write_whole`` for a text, in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode()))


def sha256(path: Path) -> str:
    """SHA-256 of a regular file's bytes, in lower-case hexadecimal. Raises OSError, and InputError as ``open_regular``
    does."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def packaged(package: str, file: str, digest: str, what: str, install: str) -> Path:
    """A file that an installed package brings. The package is not imported.

    digest: the file's SHA-256. what, install: its contents, and the words behind ``pip install``, for messages. Raises
    InputError where the file is missing or another one.
    """
    spec = find_spec(package)
    path = Path(spec.submodule_search_locations[0], file) if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():
        raise InputError(f"{what} are missing: pip install {install}")
    if sha256(path) != digest:
        raise InputError(f"{path} is not the expected file: pip install {install}")
    return path


def make_folder(folder: Path, flag: str) -> None:
    """Make an output folder and those above it; flag: the option that named it. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {folder} cannot be made ({error.strerror}): choose another folder") from error


def require_outside(flag: str, folder: Path, root: Path | None, what: str) -> None:
    """Raises InputError for a folder to write into that lies inside ``root``. flag: the option that names it. what:
    why nothing may be written there."""
    if root is not None and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root)):
        raise InputError(f"{flag} {folder} is inside {root}, {what}: choose a folder outside")
