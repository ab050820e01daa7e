"""The cache: each photo and mask is decoded once, for every label set and any number of faces.

A cache folder holds, for one split, flat files that are read record by record at their offsets, so that memory does not
grow with the data set: ``photos.bin`` (uint8 H x W x 3), ``labels.bin`` (uint8 H x W, the data set's own ids),
``images_256.bin`` (uint8 256 x 256 x 3, the stretched photo) and ``records.bin``, written last, one record a face (see
``record_type``). Each record carries checksums of its face and of itself. Faces are appended in the split's order;
those that are there serve anyone who wants fewer. Whoever has the files open keeps reading what was there, as long as
no file of the source changes.
"""

import hashlib
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.images import IMAGE_SIDE, make_image_256
from data.listing import Sample, Source
from utils import locks
from utils.errors import InputError

CACHE_VERSION = 4
FILES = ("photos", "labels", "images_256")
IMAGE_256_BYTES = IMAGE_SIDE * IMAGE_SIDE * 3
CHUNK = 64  # faces whose records are written together, once their pixels are on the disk


def record_type(num_labels: int) -> np.dtype:
    """What is kept of a face: its size, its place in the files, which sample it is, where each label's pixels are, and
    CRC-32 checksums."""
    return np.dtype(
        [
            ("height", "<i4"),
            ("width", "<i4"),
            ("offset", "<i8"),  # in pixels, into photos.bin and labels.bin
            ("digest", "<u8"),  # of the sample, see ``sample_digest``
            ("count", "<i8", (num_labels,)),  # pixels of each of the data set's ids
            ("sum", "<i8", (num_labels, 2)),  # of their x and y
            ("low", "<i4", (num_labels, 2)),  # smallest x and y; meaningless where count is 0, as is ``high``
            ("high", "<i4", (num_labels, 2)),
            ("checksum", "<u4", (len(FILES),)),  # of its bytes in each of the files
            ("record_checksum", "<u4"),  # of all the fields before it
        ]
    )


def label_geometry(ids_HW: np.ndarray, num_labels: int) -> np.ndarray:
    """One record of ``record_type`` with the geometry of a label map (uint8; larger ids are left out) filled in."""
    record = np.zeros((), record_type(num_labels))
    height, width = ids_HW.shape
    record["height"], record["width"] = height, width
    ids = ids_HW.astype(np.int64)
    for axis, (length, position) in enumerate(((width, np.arange(width)), (height, np.arange(height)[:, None]))):
        along_KN = np.bincount((ids * length + position).ravel(), minlength=num_labels * length)
        along_KN = along_KN[: num_labels * length].reshape(num_labels, length)
        record["count"] = along_KN.sum(1)
        record["sum"][:, axis] = along_KN @ np.arange(length)
        record["low"][:, axis] = (along_KN > 0).argmax(1)
        record["high"][:, axis] = length - 1 - (along_KN[:, ::-1] > 0).argmax(1)
    return record


def part_geometry(records: np.ndarray, parts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where parts are that are made of some labels each.

    records: (N,) of ``record_type``. parts: the data set's ids of each part. Returns (present (N, P) bool,
    centroids (N, P, 2) and extents of the bounding boxes (N, P, 2), float32 pixels (x, y), 0 where absent).
    """
    shape = (len(records), len(parts))
    present = np.zeros(shape, bool)
    centre, extent = np.zeros((2, *shape, 2), np.float32)
    for part, ids in enumerate(map(list, parts)):
        held_NK = records["count"][:, ids] > 0
        count_N = records["count"][:, ids].sum(1)
        low_N2 = np.where(held_NK[..., None], records["low"][:, ids], np.iinfo(np.int32).max).min(1)
        high_N2 = np.where(held_NK[..., None], records["high"][:, ids], -1).max(1)
        there_N = present[:, part] = count_N > 0
        centre[there_N, part] = records["sum"][there_N][:, ids].sum(1) / count_N[there_N, None]
        extent[there_N, part] = (high_N2 - low_N2 + 1)[there_N]
    return present, centre, extent


def build_cache(source: Source, folder: Path, threads: int) -> None:
    """Let ``folder`` hold every face of the source; what exists already is kept, an interrupted build continues.

    Raises InputError for files that cannot be decoded, and where the cache cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locks.held(folder / "lock", f"the cache {folder}"):  # one builder at a time; the others find it done
            known = _known_faces(source, folder)
            if len(known) < len(source.samples):
                _append(source, folder, known, threads)
    except OSError as error:
        raise InputError(
            f"the cache {folder} could not be written ({error.strerror}): free space, or choose another folder"
        ) from error


def sample_digest(sample: Sample, version: str) -> int:
    """64 bits that change whenever a file of the sample does (name, size or time of change), or how it is read."""
    digest = hashlib.sha256(f"{CACHE_VERSION}|{version}|{sample.name}".encode("utf-8", "surrogateescape"))
    for path in (sample.photo, *sample.masks):
        if path.is_file():
            stat = path.stat()
            text = f"|{path.name}|{stat.st_size}|{stat.st_mtime_ns}"
            digest.update(text.encode("utf-8", "surrogateescape"))
    return int.from_bytes(digest.digest()[:8], "little")


def _record_checksum(record: bytes) -> int:
    return zlib.crc32(record[:-4])  # all but the field that holds this number


def _known_faces(source: Source, folder: Path) -> np.ndarray:
    """The records of the source's first faces, as far as they are sound and of these very samples."""
    path, kind = folder / "records.bin", record_type(len(source.labels))
    records = np.fromfile(path, kind, len(source.samples)) if path.is_file() else np.empty(0, kind)
    areas = np.maximum(records["height"], 0).astype(np.int64) * np.maximum(records["width"], 0)
    ends = np.cumsum(areas)
    sizes = [file.stat().st_size if (file := folder / f"{name}.bin").is_file() else 0 for name in FILES]
    images_256 = np.arange(1, len(records) + 1) * IMAGE_256_BYTES
    sound = (areas > 0) & (records["offset"] == ends - areas)
    sound &= (ends * 3 <= sizes[0]) & (ends <= sizes[1]) & (images_256 <= sizes[2])
    checksums = [_record_checksum(record.tobytes()) for record in records]
    sound &= records["record_checksum"] == np.array(checksums, np.uint32)
    digests = [sample_digest(sample, source.version) for sample in source.samples[: len(records)]]
    sound &= records["digest"] == np.array(digests, np.uint64)
    return records[: len(records) if sound.all() else int(sound.argmin())]


def _append(source: Source, folder: Path, known: np.ndarray, threads: int) -> None:
    """Decode what comes after the known faces; whatever else the files hold is cut off first."""
    pixels = int((known["height"].astype(np.int64) * known["width"]).sum())
    ends = (pixels * 3, pixels, len(known) * IMAGE_256_BYTES, len(known) * known.itemsize)
    paths = [folder / f"{name}.bin" for name in (*FILES, "records")]
    for path, end in reversed(list(zip(paths, ends, strict=True))):  # records first: they vouch for the others
        if end == 0:
            path.unlink(missing_ok=True)  # and not emptied: another process may still read it
        with open(path, "ab") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    todo = source.samples[len(known) :]
    with (
        open(paths[0], "ab") as photos,
        open(paths[1], "ab") as labels,
        open(paths[2], "ab") as images_256,
        open(paths[3], "ab") as records,
        ThreadPoolExecutor(max(1, threads)) as pool,
        tqdm(total=len(todo), desc=f"cache {folder.name}", unit="img", disable=None) as progress,
    ):
        for start in range(0, len(todo), CHUNK):
            written = []
            try:
                for photo, ids, image_256, record in pool.map(partial(decode, source), todo[start : start + CHUNK]):
                    for file, array in ((photos, photo), (labels, ids), (images_256, image_256)):
                        file.write(np.ascontiguousarray(array).data)
                        file.flush()
                    record["offset"] = pixels
                    pixels += ids.size
                    record["record_checksum"] = _record_checksum(record.tobytes())
                    written.append(record.tobytes())
                    progress.update()
            finally:  # the faces before a damaged one, or before the disk was full, are kept
                for file in (photos, labels, images_256):
                    os.fsync(file.fileno())
                records.write(b"".join(written))
                records.flush()
                os.fsync(records.fileno())


def decode(source: Source, sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the cache holds of a sample: its bytes in each of ``FILES``, and its record but for ``offset``.

    Raises InputError for files that cannot be decoded.
    """
    digest = sample_digest(sample, source.version)  # before it is read: a file that changes meanwhile is read again
    photo, ids = source.read(sample)
    record = label_geometry(ids, len(source.labels))
    record["digest"] = digest
    image_256 = make_image_256(photo)
    record["checksum"] = [zlib.crc32(array.tobytes()) for array in (photo, ids, image_256)]
    return photo, ids, image_256, record
