"""The cache (each photo and mask decoded once) and the batches that come out of it.

A cache folder holds, for one split, flat files that are read record by record at their offsets, so that memory
does not grow with the data set: ``photos.bin`` (uint8 H x W x 3), ``labels.bin`` (uint8 H x W, the data set's own
ids), ``thumbs.bin`` (uint8 256 x 256 x 3, the stretched photo), ``records.bin`` (one ``RECORD`` each: size,
offset, where the six parts are) and ``meta.json``, written last.
"""

import fcntl
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.images import THUMB, make_thumb
from data.labels import NUM_PARTS, PART_LABELS, TABLES
from data.source import Sample, Source, open_source
from utils.errors import InputError

CACHE_VERSION = 1
FILES = ("photos", "labels", "thumbs")
RECORD = np.dtype(
    [
        ("height", "<i4"),
        ("width", "<i4"),
        ("offset", "<i8"),  # in pixels, into photos.bin and labels.bin
        ("present", "?", (NUM_PARTS,)),
        ("centre", "<f4", (NUM_PARTS, 2)),  # centroid (x, y), pixels; 0 where absent
        ("extent", "<f4", (NUM_PARTS, 2)),  # bounding box (width, height), pixels
    ]
)


@dataclass(frozen=True)
class Batch:
    """Photos of any size in one batch, padded with zeros at the right and bottom.

    photos_BHW3: uint8. labels_BHW: uint8, the nine labels. thumbs_BTT3: uint8, stretched photos.
    sizes_B2: int64 (height, width). present_BP: bool; centres_BP2, extents_BP2: float32 pixels.
    index_B: int64 position in the split. keys_B3: int64 (seed, epoch, position in the epoch), from which
    augmentation draws, whatever the batch size or the number of processes.
    """

    photos_BHW3: Tensor
    labels_BHW: Tensor
    thumbs_BTT3: Tensor
    sizes_B2: Tensor
    present_BP: Tensor
    centres_BP2: Tensor
    extents_BP2: Tensor
    index_B: Tensor
    keys_B3: Tensor

    def to(self, device: torch.device) -> "Batch":
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})

    def pin_memory(self) -> "Batch":
        return replace(self, **{name: value.pin_memory() for name, value in vars(self).items()})


def part_geometry(labels_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the six parts are in a nine-label map: (present (6,) bool, centroid (6, 2), extent (6, 2)), pixels."""
    present = np.zeros(NUM_PARTS, bool)
    centre = np.zeros((NUM_PARTS, 2), np.float32)
    extent = np.zeros((NUM_PARTS, 2), np.float32)
    for part, labels in enumerate(PART_LABELS):
        ys, xs = np.nonzero((labels_HW >= labels[0]) & (labels_HW <= labels[-1]))
        if len(xs):
            present[part] = True
            centre[part] = xs.mean(), ys.mean()
            extent[part] = np.ptp(xs) + 1, np.ptp(ys) + 1
    return present, centre, extent


class Faces(Dataset):
    """One cached split. ``faces[ticket]`` reads one face; ``batches`` below is what training and evaluation use."""

    def __init__(self, folder: Path, names: list[str], dataset: str, split: str, photos: bool = True) -> None:
        self.folder, self.names, self.dataset, self.split = folder, names, dataset, split
        self.with_photos = photos
        self.records = np.fromfile(folder / "records.bin", RECORD)
        self.merge = TABLES[dataset].merge
        self.files = {name: os.open(folder / f"{name}.bin", os.O_RDONLY) for name in FILES}

    def __getstate__(self) -> dict:  # file descriptors mean nothing in another process
        return {name: value for name, value in vars(self).items() if name != "files"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.files = {name: os.open(self.folder / f"{name}.bin", os.O_RDONLY) for name in FILES}

    def __len__(self) -> int:
        return len(self.names)

    def _read(self, name: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        # pread rather than a memory map: mapped pages would count as this process's memory as the epoch goes on
        data = os.pread(self.files[name], int(np.prod(shape)), offset)
        return np.frombuffer(data, np.uint8).reshape(shape)

    def photo(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        record = self.records[index]
        return self._read("photos", int(record["offset"]) * 3, (record["height"], record["width"], 3))

    def classes(self, index: int) -> np.ndarray:
        """uint8 (H, W), the data set's own ids."""
        record = self.records[index]
        return self._read("labels", int(record["offset"]), (record["height"], record["width"]))

    def labels(self, index: int) -> np.ndarray:
        """uint8 (H, W), the nine labels."""
        return cv2.LUT(self.classes(index), self.merge)

    def thumb(self, index: int) -> np.ndarray:
        """uint8 (256, 256, 3), RGB, stretched."""
        return self._read("thumbs", index * THUMB * THUMB * 3, (THUMB, THUMB, 3))

    def __getitem__(self, ticket: tuple[int, tuple[int, int, int]]) -> tuple[int, tuple[int, int, int], tuple]:
        index, key = ticket
        photo = self.photo(index) if self.with_photos else np.empty((0, 0, 3), np.uint8)
        return index, key, (photo, self.labels(index), self.thumb(index))

    def collate(self, items: list[tuple[int, tuple[int, int, int], tuple]]) -> Batch:
        index = np.array([item[0] for item in items])
        records = self.records[index]
        height, width = int(records["height"].max()), int(records["width"].max())
        photos = np.zeros((len(items), height, width, 3) if self.with_photos else (len(items), 0, 0, 3), np.uint8)
        labels = np.zeros((len(items), height, width), np.uint8)
        for b, (_, _, (photo, label, _)) in enumerate(items):
            photos[b, : photo.shape[0], : photo.shape[1]] = photo
            labels[b, : label.shape[0], : label.shape[1]] = label
        return Batch(
            photos_BHW3=torch.from_numpy(photos),
            labels_BHW=torch.from_numpy(labels),
            thumbs_BTT3=torch.from_numpy(np.stack([thumb for _, _, (_, _, thumb) in items])),
            sizes_B2=torch.from_numpy(np.stack([records["height"], records["width"]], 1).astype(np.int64)),
            present_BP=torch.from_numpy(records["present"].copy()),
            centres_BP2=torch.from_numpy(records["centre"].copy()),
            extents_BP2=torch.from_numpy(records["extent"].copy()),
            index_B=torch.from_numpy(index),
            keys_B3=torch.tensor([item[1] for item in items]),
        )


def open_faces(
    dataset: str,
    root: Path | None,
    split: str,
    cache: Path,
    max_images: int | None = None,
    workers: int = 2,
    partition: str | None = None,
    size: int | None = None,
    photos: bool = True,
) -> Faces:
    """Open a split through its cache, building what is missing. Raises InputError for a bad data folder.

    cache: folder that holds all caches. workers: decoding threads. photos: False leaves the photos of its batches
    empty, for those who look at the thumbs alone.
    max_images, size, partition: see ``data.source.open_source``.
    """
    source = open_source(dataset, root, split, partition, max_images, size)
    where = f"{root.resolve() if root else ''}|{partition}|{max_images}|{size}"
    folder = cache / f"{dataset}-{split}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    build_cache(source, folder, workers)
    return Faces(folder, [sample.name for sample in source.samples], dataset, split, photos)


def _fingerprint(source: Source) -> str:
    """Changes whenever a file of the source does (name, size or time of change)."""
    digest = hashlib.sha256(f"{CACHE_VERSION}|{source.dataset}|{source.version}".encode())
    for sample in source.samples:
        digest.update(sample.name.encode())
        for path in (sample.photo, *sample.masks):
            if path.is_file():
                stat = path.stat()
                digest.update(f"|{path.name}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def build_cache(source: Source, folder: Path, workers: int) -> None:
    """Bring ``folder`` up to date with the source; an interrupted build goes on where it stopped."""
    fingerprint = _fingerprint(source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one builder at a time; the others find it done
            meta, begun = folder / "meta.json", folder / "begun.txt"
            expected = json.dumps({"fingerprint": fingerprint, "images": len(source.samples)})
            if meta.exists() and meta.read_text() == expected and len(_whole_records(folder)) == len(source.samples):
                return
            meta.unlink(missing_ok=True)
            if not begun.exists() or begun.read_text() != fingerprint:
                for name in (*FILES, "records"):
                    (folder / f"{name}.bin").unlink(missing_ok=True)
                begun.write_text(fingerprint)
            _append_missing(source, folder, workers)
            meta.write_text(expected)
    except OSError as error:
        raise InputError(
            f"the cache {folder} could not be written ({error.strerror}): make room or name another folder with --cache"
        ) from error


def _whole_records(folder: Path) -> np.ndarray:
    """The records, as far as they are sound and the other files hold what they vouch for."""
    path = folder / "records.bin"
    records = np.fromfile(path, RECORD) if path.exists() else np.empty(0, RECORD)
    areas = np.maximum(records["height"], 0).astype(np.int64) * np.maximum(records["width"], 0)
    ends = np.cumsum(areas)
    held = [file.stat().st_size if (file := folder / f"{name}.bin").exists() else 0 for name in FILES]
    thumbs = np.arange(1, len(records) + 1) * THUMB * THUMB * 3
    sound = (areas > 0) & (records["offset"] == ends - areas)
    sound &= (ends * 3 <= held[0]) & (ends <= held[1]) & (thumbs <= held[2])
    return records[: len(records) if sound.all() else int(sound.argmin())]


def _append_missing(source: Source, folder: Path, workers: int) -> None:
    records_path = folder / "records.bin"
    records = _whole_records(folder)
    pixels = int((records["height"].astype(np.int64) * records["width"]).sum())
    for name, size in (
        ("photos", pixels * 3),
        ("labels", pixels),
        ("thumbs", len(records) * THUMB * THUMB * 3),
        ("records", len(records) * RECORD.itemsize),
    ):
        with open(folder / f"{name}.bin", "ab") as file:
            file.truncate(size)  # what an interrupted build left half written
    todo = source.samples[len(records) :]
    merge = TABLES[source.dataset].merge

    def decode(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        photo, labels = source.read(sample)
        record = np.zeros(1, RECORD)
        record["height"], record["width"] = labels.shape
        record["present"], record["centre"], record["extent"] = part_geometry(merge[labels])
        return photo, labels, make_thumb(photo), record

    with (
        open(folder / "photos.bin", "ab") as photos,
        open(folder / "labels.bin", "ab") as labels_file,
        open(folder / "thumbs.bin", "ab") as thumbs,
        open(records_path, "ab") as records_file,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        files = (photos, labels_file, thumbs)
        chunk = 64
        with tqdm(total=len(todo), desc=f"cache {folder.name}", unit="img", disable=None) as progress:
            for start in range(0, len(todo), chunk):
                for photo, labels, thumb, record in pool.map(decode, todo[start : start + chunk]):
                    record["offset"] = pixels
                    pixels += labels.size
                    for file, array in zip(files, (photo, labels, thumb), strict=True):
                        file.write(np.ascontiguousarray(array).data)
                    for file in files:
                        file.flush()  # before the record that vouches for them
                    records_file.write(record.tobytes())
                    records_file.flush()
                    progress.update()


def photo_batch(photos: list[np.ndarray]) -> Batch:
    """Photos of one size, uint8 (H, W, 3), as the batch that a data set would give; without truth."""
    count, (height, width) = len(photos), photos[0].shape[:2]
    none_BP2 = torch.zeros(count, 6, 2)
    return Batch(
        photos_BHW3=torch.from_numpy(np.stack(photos) if count > 1 else photos[0][None]),
        labels_BHW=torch.zeros(1, 1, 1, dtype=torch.uint8).expand(count, height, width),
        thumbs_BTT3=torch.from_numpy(np.stack([make_thumb(photo) for photo in photos])),
        sizes_B2=torch.tensor([[height, width]]).expand(count, 2),
        present_BP=torch.zeros(count, 6, dtype=torch.bool),
        centres_BP2=none_BP2,
        extents_BP2=none_BP2,
        index_B=torch.arange(count),
        keys_B3=torch.zeros(count, 3, dtype=torch.long),
    )


def training_batches(
    faces: Faces,
    batch_size: int,
    seed: int,
    epoch: int,
    folds: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> DataLoader:
    """One epoch in shuffled order, each face ``folds`` times, the last incomplete batch left out.

    batch_size: over all processes. The order depends on the seed and the epoch alone. The fold of a face (the
    number of operations of the five-fold augmentation) is its position modulo ``folds`` before shuffling, and is
    carried in the third key: key = position * folds + fold.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(faces) * folds)
    if len(order) < batch_size:
        raise InputError(f"--batch-size {batch_size} is larger than the {len(order)} faces of an epoch: lower it")
    order = order[: len(order) // batch_size * batch_size]
    tickets = [(int(i) // folds, (seed, epoch, position * folds + int(i) % folds)) for position, i in enumerate(order)]
    return _loader(faces, tickets, batch_size, rank, world, workers)


def evaluation_batches(faces: Faces, batch_size: int, rank: int = 0, world: int = 1, workers: int = 0) -> DataLoader:
    """Every face once, in order. Each process takes every ``world``-th face; its share may be empty."""
    tickets = [(i, (0, 0, i)) for i in range(rank, len(faces), world)]
    return _loader(faces, tickets, max(1, batch_size // world), 0, 1, workers)


def _loader(faces: Faces, tickets: list, batch_size: int, rank: int, world: int, workers: int) -> DataLoader:
    share = batch_size // world
    starts = range(0, len(tickets), batch_size)
    batches = [tickets[start : start + batch_size][rank * share : (rank + 1) * share] for start in starts]
    return DataLoader(
        faces,
        batch_sampler=batches,
        collate_fn=faces.collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )
