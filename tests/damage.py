"""Damaged and foreign files: checkpoints, pictures, JSON, and what is no regular file. Each table: name -> a maker."""

import gzip
import io
import json
import os
import pickle
import random
import resource
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from tests.fixtures import draw_face

State = dict[str, Any]


class Runs:
    """Would make a file if it were ever unpickled."""

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


# checkpoints: from the bytes of a good one


def zipped(entries: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return made.getvalue()


def archive_with(good: bytes, name: str, content: bytes, how: int = zipfile.ZIP_STORED) -> bytes:
    """The checkpoint with another content of one entry; name: how it ends."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    (changed,) = [entry for entry in entries if entry.endswith(name)]
    return zipped({**entries, changed: content}, how)


def flipped(good: bytes, at: float) -> bytes:
    """The bytes with a few bits turned over; at: where, as a share of the file."""
    spot, changed = int(at * (len(good) - 64)), bytearray(good)
    for offset in random.Random(spot).sample(range(64), 8):
        changed[spot + offset] ^= 0x5A
    return bytes(changed)


def tarred(good: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        info = tarfile.TarInfo("weights.pt")
        info.size = len(good)
        archive.addfile(info, io.BytesIO(good))
    return made.getvalue()


def safetensors(_: bytes) -> bytes:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def picture_bytes(kind: str) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (8, 8)).save(made, kind)
    return made.getvalue()


def legacy(value: Any) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, _use_new_zipfile_serialization=False)
    return made.getvalue()


CHECKPOINT_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "one byte": lambda good: b"P",
    "text": lambda good: b"These are no weights.\n" * 9,
    "web page": lambda good: b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    "pointer of git lfs": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "JSON": lambda good: b'{"format": 2}',
    "text in UTF-16": lambda good: "no weights".encode("utf-16"),
    "zip of nothing": lambda good: zipped({}),
    "zip of text": lambda good: zipped({"readme.txt": b"hello"}),
    "zip of a checkpoint": lambda good: zipped({"weights.pt": good[:1000]}),
    "TorchScript": lambda good: zipped(
        {"m/data.pkl": b"\x80\x02}.", "m/code/m.py": b"pass", "m/constants.pkl": b"\x80\x02).", "m/version": b"3\n"}
    ),
    "safetensors": safetensors,
    "picture": lambda good: picture_bytes("PNG"),
    "gzip": lambda good: gzip.compress(good[:5000]),
    "tar": lambda good: tarred(good[:5000]),
    "array of NumPy": lambda good: b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}\n",
    "zeros": lambda good: bytes(4096),
    "noise": lambda good: random.Random(0).randbytes(4096),
    "plain pickle": lambda good: pickle.dumps({"format": 2}),
    "pickle with code": lambda good: pickle.dumps(Runs()),
    "pickle with code in a dict": lambda good: pickle.dumps({"format": 2, "stage": Runs()}, protocol=2),
    "pickle without end": lambda good: b"\x80\x02}q\x00(X\x06\x00\x00\x00format",
    "pickle nested deeply": lambda good: b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "old format, a list": lambda good: legacy([1, 2]),
    "old format, code": lambda good: legacy({"format": 2, "stage": Runs()}),
    "old format, truncated": lambda good: legacy({"format": 2, "modules": {"coarse": torch.ones(99)}})[:-200],
    "archive with code": lambda good: archive_with(good, "/data.pkl", pickle.dumps({"format": 2, "a": Runs()}, 2)),
    "archive without values": lambda good: archive_with(good, "/data.pkl", b""),
    "archive of an unknown version": lambda good: archive_with(good, "/version", b"999\n"),
    "archive with a storage too short": lambda good: archive_with(good, "/data/0", b"1234"),
    "archive that unpacks to far more": lambda good: archive_with(
        good, "/data/0", bytes(100 << 20), zipfile.ZIP_DEFLATED
    ),
    **{
        f"truncated at {share:.0%}": lambda good, share=share: good[: int(len(good) * share)]
        for share in (0.01, 0.1, 0.5, 0.9, 0.99)
    },
    "last byte lost": lambda good: good[:-1],
    "first byte lost": lambda good: good[1:],
    "bytes before it": lambda good: b"junk" * 100 + good,
    "bits flipped in its table": lambda good: flipped(good, 1.0),
    "bits flipped at its start": lambda good: flipped(good, 0.0),
}


def with_value(*keys: str, value: Any) -> Callable[[State], Any]:
    """Sets one value, however deep."""

    def change(state: State) -> State:
        inner = state
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return state

    return change


def without(*keys: str) -> Callable[[State], Any]:
    def change(state: State) -> State:
        inner = state
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return state

    return change


def every_network(change: Callable[[Tensor], Any], count: int = 1) -> Callable[[State], Any]:
    """Changes the first tensors of each network."""

    def apply(state: State) -> State:
        for weights in state["modules"].values():
            for key in list(weights)[:count]:
                weights[key] = change(weights[key])
        return state

    return apply


def filled(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        tensor.view(-1)[0] = value
        return tensor

    return change


def renamed(state: State, by: Callable[[str], Any]) -> State:
    for weights in state["modules"].values():
        first = next(iter(weights))
        weights[by(first)] = weights.pop(first)
    return state


NAN, INF = float("nan"), float("inf")
CONFIG_VALUES: dict[str, tuple[Any, ...]] = {
    "crop_size": (81.0, "81", -5, 0, 10**9, NAN, None, torch.tensor(17), [17]),
    "coarse_size": (32.5, 7, 10**12, True),
    "window_margin": ("x", NAN, -1.0, INF, None),
    "window_aspect": (0, NAN, torch.ones(3)),
    "localizer": (5, ["paper"], "other"),
    "frame": (None, torch.ones(2)),
    "paste": ([], "x" * 5000),
    "canvas": (1e308, NAN, "1024"),
}
TOP_VALUES: dict[str, tuple[Any, ...]] = {
    "format": ("2", 2.0, -1, 99, 10**30, torch.tensor(2), torch.ones(3), NAN, None, [2], {"a": 2}),
    "parser": (None, 5, "other", ["stn_icnn"], torch.ones(2), "x\ny"),
    "labels": (7, "other", None, torch.ones(2), ["nine"]),
    "config": (None, [], "x", {"other": 1}, {1: 2}, torch.ones(2)),
    "modules": (None, [], "x", {}, torch.ones(2), {"coarse": None}, {1: {}}),
}
CHECKPOINT_STATES: dict[str, Callable[[State], Any]] = {
    **{f"without {key}": without(key) for key in TOP_VALUES},
    **{
        f"{key} {n}, a {type(value).__name__}": with_value(key, value=value)
        for key, values in TOP_VALUES.items()
        for n, value in enumerate(values)
    },
    **{
        f"config's {key} {n}, a {type(value).__name__}": with_value("config", key, value=value)
        for key, values in CONFIG_VALUES.items()
        for n, value in enumerate(values)
    },
    "a list": lambda state: [state],
    "a tensor": lambda state: torch.ones(3),
    "a number": lambda state: 5,
    "a text": lambda state: "weights",
    "None": lambda state: None,
    "an empty dict": lambda state: {},
    "keys that are numbers": lambda state: {1: state},
    "keys that are tuples": lambda state: {("model1", 1): state},
    "one level too deep": lambda state: {"state": state},
    "networks one level too deep": lambda state: with_value("modules", value={"coarse": state["modules"]})(state),
    "weights that are lists": every_network(lambda tensor: tensor.tolist()),
    "weights that are texts": every_network(str),
    "weights that are None": every_network(lambda tensor: None),
    "weights in a dict": every_network(lambda tensor: {"value": tensor}),
    "a network without weights": lambda state: with_value("modules", value={n: {} for n in state["modules"]})(state),
    "NaN": every_network(filled(NAN)),
    "infinity": every_network(filled(INF)),
    "minus infinity": every_network(filled(-INF)),
    "float64 beyond float32": every_network(lambda tensor: filled(1e300)(tensor.double())),
    "NaN in half precision": every_network(lambda tensor: filled(NAN)(tensor.half())),
    "sparse": every_network(lambda tensor: tensor.to_sparse()),
    "sparse rows": every_network(lambda tensor: tensor.flatten(1).to_sparse_csr()),
    "quantised": every_network(lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
    "complex": every_network(lambda tensor: tensor.to(torch.complex64)),
    "whole numbers": every_network(lambda tensor: tensor.to(torch.int64)),
    "booleans": every_network(lambda tensor: tensor > 0),
    "without data": every_network(lambda tensor: tensor.to("meta")),
    "nested tensors": every_network(lambda tensor: torch.nested.nested_tensor([tensor.flatten(), tensor.flatten()])),
    "one axis more": every_network(lambda tensor: tensor[None]),
    "half of the channels": every_network(lambda tensor: tensor[: len(tensor) // 2].clone()),
    "single numbers": every_network(lambda tensor: tensor.flatten()[0]),
    "tensors of no size": every_network(lambda tensor: tensor[:0]),
    "one number shown as 4 TB": every_network(lambda tensor: torch.zeros(1).expand(10**6, 10**6)),
    "a lost weight": lambda state: renamed(state, lambda key: f"{key}.other"),
    "names that are numbers": lambda state: renamed(state, lambda key: 7),
    "names of 10,000 letters": lambda state: renamed(state, lambda key: "k" * 10_000),
    "names with line breaks": lambda state: renamed(state, lambda key: f"{key}\nerror: x"),
    "authors' layout, a number": lambda state: {"model1": 5},
    "authors' layout, empty": lambda state: {"model1": {}},
    "authors' layout, other names": lambda state: {"model1": {"weight": torch.ones(3)}},
    "authors' layout, texts": lambda state: {"model2": {"weight": "x"}},
    "authors' layout, whole and empty": lambda state: {"model": {}},
    "authors' layout, nothing known": lambda state: {"net": {"weight": torch.ones(3)}},
}


def copied(value: Any) -> Any:
    """The value with dicts of its own; tensors are shared."""
    return {key: copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


# pictures: makes one at a path


def png(*chunks: tuple[bytes, bytes], good_sums: bool = True) -> bytes:
    made = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        check = zlib.crc32(kind + content) if good_sums else 0
        made += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
    return made


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels, with the data of a few."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", zlib.compress(bytes(300))), (b"IEND", b""))


def jpeg(photo: np.ndarray | None = None, **options: Any) -> bytes:
    made = io.BytesIO()
    Image.fromarray(draw_face(64)[0] if photo is None else photo).save(made, "JPEG", **options)
    return made.getvalue()


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header promises so many pixels."""
    good = jpeg()
    at = good.index(b"\xff\xc0") + 5
    return good[:at] + struct.pack(">HH", height, width) + good[at + 4 :]


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    made = io.BytesIO()
    Image.fromarray(draw_face(64)[0]).convert(mode).save(made, kind, **options)
    return made.getvalue()


def one_bit(side: int) -> bytes:
    made = io.BytesIO()
    Image.new("1", (side, side)).save(made, "PNG")
    return made.getvalue()


def with_exif(content: bytes) -> bytes:
    """A JPEG with this EXIF block, whatever it holds."""
    good, block = jpeg(), b"Exif\0\0" + content
    return good[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + good[2:]


def with_text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (80 << 20), zip=True)
    made = io.BytesIO()
    Image.fromarray(draw_face(64)[0]).save(made, "PNG", pnginfo=info)
    return made.getvalue()


def truncated(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def bmp_of_size(width: int, height: int) -> bytes:
    good = bytearray(saved("BMP"))
    good[18:26] = struct.pack("<ii", width, height)
    return bytes(good)


BAD_PICTURES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\xff",
    "text": lambda: b"no picture\n",
    "zeros": lambda: bytes(1000),
    "noise": lambda: random.Random(1).randbytes(1000),
    "web page": lambda: b"<!DOCTYPE html><html></html>",
    "drawing in SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "JPEG, start alone": lambda: b"\xff\xd8\xff",
    "JPEG, noise after its start": lambda: b"\xff\xd8\xff\xe0" + random.Random(2).randbytes(2000),
    **{f"JPEG, {share:.0%} of it": lambda share=share: truncated(jpeg(), share) for share in (0.1, 0.3, 0.6, 0.9)},
    **{f"PNG, {share:.0%} of it": lambda share=share: truncated(saved("PNG"), share) for share in (0.05, 0.3, 0.7)},
    "WebP, half of it": lambda: truncated(saved("WEBP"), 0.5),
    "BMP, half of it": lambda: truncated(saved("BMP"), 0.5),
    "TIFF, half of it": lambda: truncated(saved("TIFF"), 0.5),
    "TIFF, header alone": lambda: saved("TIFF")[:8],
    "TIFF of noise": lambda: b"II*\0\x08\0\0\0" + random.Random(3).randbytes(500),
    "PNG, header alone": lambda: saved("PNG")[:33],
    "PNG with wrong checksums": lambda: png(
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(52))), good_sums=False
    ),
    "PNG with data that is no data": lambda: png(
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)), (b"IDAT", b"nothing"), (b"IEND", b"")
    ),
    "PNG without pixels": lambda: png_of_size(0, 0),
    "PNG of an unknown depth": lambda: png(
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 77, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(52))), (b"IEND", b"")
    ),
    "PNG that promises 60000 x 60000": lambda: png_of_size(60_000, 60_000),
    "PNG that promises 2 billion x 2 billion": lambda: png_of_size(2**31 - 1, 2**31 - 1),
    "PNG of 1 bit that unpacks to 20000 x 20000": lambda: one_bit(20_000),
    "JPEG that promises 65000 x 65000": lambda: jpeg_of_size(65_000, 65_000),
    "JPEG without pixels": lambda: jpeg_of_size(0, 0),
    "BMP that promises much": lambda: bmp_of_size(2**30, 2**30),
    "BMP of negative width": lambda: bmp_of_size(-64, 64),
    "GIF, a format that is not read": lambda: saved("GIF", "P"),
    "PostScript, a format that is not read": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    ),
    "TGA, a format that is not read": lambda: saved("TGA"),
    "PCX, a format that is not read": lambda: saved("PCX"),
    "zip": lambda: zipped({"photo.jpg": jpeg()}),
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
    "text": lambda: b"no video\n",
    "zeros": lambda: bytes(1000),
    "noise": lambda: random.Random(1).randbytes(5000),
    "web page": lambda: b"<!DOCTYPE html><html></html>",
    "playlist": lambda: b"#EXTM3U\n#EXTINF:1,\ngood.jpg\n#EXT-X-ENDLIST\n",
    "list of files": lambda: b"ffconcat version 1.0\nfile good.jpg\n",
    "start alone": lambda: mp4()[:40],
    "half of it": lambda: truncated(mp4(), 0.5),
    "noise after its start": lambda: mp4()[:40] + random.Random(2).randbytes(3000),
}

GOOD_PICTURES: dict[str, Callable[[], bytes]] = {
    "grey": lambda: saved("PNG", "L"),
    "1 bit": lambda: saved("PNG", "1"),
    "grey with alpha": lambda: saved("PNG", "LA"),
    "palette with transparency": lambda: saved("PNG", "P", transparency=bytes(range(256))),
    "16-bit grey": lambda: saved("PNG", "I;16"),
    "CMYK": lambda: saved("JPEG", "CMYK"),
    "progressive": lambda: jpeg(progressive=True),
    "1 x 1": lambda: jpeg(np.zeros((1, 1, 3), np.uint8)),
    "1 x 300": lambda: jpeg(np.zeros((1, 300, 3), np.uint8)),
    "300 x 1": lambda: jpeg(np.zeros((300, 1, 3), np.uint8)),
    "PNG under the name of a JPEG": lambda: saved("PNG"),
    "EXIF of noise": lambda: with_exif(random.Random(4).randbytes(300)),
    "EXIF truncated": lambda: with_exif(b"II*\0\x08\0\0\0\x05\0\x12\x01"),
    "EXIF pointing outside": lambda: with_exif(b"II*\0\xff\xff\xff\x7f"),
    "EXIF with orientation 99": lambda: with_exif(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0"),
    "EXIF empty": lambda: with_exif(b""),
    "colour profile of noise": lambda: jpeg(icc_profile=random.Random(5).randbytes(200)),
    "bytes after its end": lambda: jpeg() + bytes(1000),
}


# JSON: contents that are no dict of ours

JSON_BYTES: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello",
    "truncated": b'{"a": [1, 2',
    "not UTF-8": b'{"a": "\xe9\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "a string": b'"x"',
    "nested deeply": b"[" * 100_000,
    "a number of 10,000 digits": b"1" * 10_000,
    "zeros": bytes(500),
    "an empty dict": b"{}",
    "a list of dicts": b"[{}]",
}


def save(value: Any, path: Path) -> None:
    torch.save(value, path)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """Lets this process write files of so many bytes at most, as a disk that fills up does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
