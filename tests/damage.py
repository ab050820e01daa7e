"""Damaged pictures and videos, and what is no regular file. Each table: name -> a function that makes it."""

import io
import os
import pickle
import random
import re
import resource
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.fixtures import draw_face
from utils.errors import InputError


class Runs:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code_ran",)


# what is no regular file: makes it at a path


def bind(path: Path) -> None:
    """A socket; its address is shorter than a path may be."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "socket": bind,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "empty device": lambda path: path.symlink_to("/dev/null"),
    "full device": lambda path: path.symlink_to("/dev/full"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a pipe": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")),
}


# pictures: makes one at a path


FEW = zlib.compress(bytes(300))


def png_of_size(width: int, height: int, depth: int = 8, packed: bytes = FEW, good_sums: bool = True) -> bytes:
    """A PNG whose header promises so many pixels, with the data of a few."""
    made, header = b"\x89PNG\r\n\x1a\n", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    for kind, content in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")):
        check = zlib.crc32(kind + content) if good_sums else 0
        made += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
    return made


def content_of(picture: Image.Image, kind: str, **options: Any) -> bytes:
    made = io.BytesIO()
    picture.save(made, kind, **options)
    return made.getvalue()


def jpeg(photo: np.ndarray | None = None, **options: Any) -> bytes:
    return content_of(Image.fromarray(draw_face(64)[0] if photo is None else photo), "JPEG", **options)


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    return content_of(Image.fromarray(draw_face(64)[0]).convert(mode), kind, **options)


def with_exif(content: bytes) -> bytes:
    """A JPEG with this EXIF block, whatever it holds."""
    good, block = jpeg(), b"Exif\0\0" + content
    return good[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + good[2:]


def truncated(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def flipped(content: bytes, at: int) -> bytes:
    """The bytes with one of them changed."""
    return content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :]


BAD_PICTURES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "noise": lambda: random.Random(1).randbytes(1000),
    **{f"JPEG, {share:.0%} of it": lambda share=share: truncated(jpeg(), share) for share in (0.1, 0.9)},
    **{f"PNG, {share:.0%} of it": lambda share=share: truncated(saved("PNG"), share) for share in (0.05, 0.7)},
    "WebP, half of it": lambda: truncated(saved("WEBP"), 0.5),
    "TIFF, header alone": lambda: saved("TIFF")[:8],
    "TIFF of 65,535 samples": lambda: b"II*\0\x08\0\0\0\x01\0\x15\x01\x03\0\x01\0\0\0\xff\xff" + bytes(6),
    "TIFF of noise": lambda: b"II*\0\x08\0\0\0" + random.Random(3).randbytes(500),
    "PNG with wrong checksums": lambda: png_of_size(4, 4, good_sums=False),
    "PNG with data that is no data": lambda: png_of_size(4, 4, packed=b"nothing"),
    "PNG without pixels": lambda: png_of_size(0, 0),
    "PNG of an unknown depth": lambda: png_of_size(4, 4, depth=77),
    "PNG that promises 10000 x 10000": lambda: png_of_size(10_000, 10_000),  # Pillow warns from 89 million pixels on
    "PNG that promises 2 billion x 2 billion": lambda: png_of_size(2**31 - 1, 2**31 - 1),
    "pickle": lambda: pickle.dumps(Runs()),
}


def mp4() -> bytes:
    """A video of three frames."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
        for level in (0, 100, 200):
            writer.write(np.full((48, 64, 3), level, np.uint8))
        writer.release()
        return path.read_bytes()


BAD_VIDEOS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "playlist": lambda: b"#EXTM3U\n#EXTINF:1,\ngood.jpg\n#EXT-X-ENDLIST\n",
    "list of files": lambda: b"ffconcat version 1.0\nfile good.jpg\n",
    "half of it": lambda: truncated(mp4(), 0.5),
    "noise after its start": lambda: mp4()[:40] + random.Random(2).randbytes(3000),
}


def refuses(*words: object) -> Any:
    """pytest.raises for one line of InputError that holds all words, in this order."""
    return pytest.raises(InputError, match="^.*" + ".*".join(re.escape(str(word)) for word in words) + ".*$")


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """Lets this process write files of so many bytes at most, as a disk that fills up does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
