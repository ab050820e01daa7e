"""Files that are written whole or not at all, and their digests."""

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 20  # bytes read at a time


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name in its folder, then rename it: nobody ever sees half a file.

    write: fills the open file. The bytes are on the disk before the file gets its name. Where anything fails, an
    older file at ``path`` stays as it was and the temporary file is removed. Raises OSError, and what ``write`` raises.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")  # short: path.name may have the greatest length already
    try:
        with open(temporary, "xb") as file:  # x: never through a link, never into another process's file
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``write_whole`` for a text, in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode()))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in lower-case hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
