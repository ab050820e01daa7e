"""Cached faces, and the batches that come out of them."""

import hashlib
import math
import mmap
import os
import zlib
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data.batch import Batch, Key
from data.cache import FILES, IMAGE_256_BYTES, build_cache, part_geometry, record_type
from data.camera import degraded, is_degraded
from data.images import IMAGE_SIDE, make_image_256
from data.labels import LabelSet, among
from data.source import FaceData, open_source
from utils.errors import InputError
from utils.runtime import Machine

HERE = Machine(torch.device("cpu"))


class DamagedCache(InputError):
    """A face of the cache is damaged.

    A process that loads faces hands on an exception with its whole traceback as the message; the last line is ours.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


class Faces(Dataset):
    """One cached split. ``faces[index, key]`` reads one face; ``training_batches`` and ``evaluation_batches`` below are
    what training and evaluation use.

    labels: of the batches' label maps. data_labels: of the cached ones. photos: False leaves the photos of batches
    empty, for those who look at the small images alone. camera: see ``data.view.Augmentation``. note: see
    ``data.listing``.
    What is read is compared with the checksums of its record, once for each face: raises InputError where it differs.
    Raises InputError where ``labels`` cannot be told from ``data_labels``.
    """

    def __init__(
        self,
        folder: Path,
        names: list[str],
        data_labels: LabelSet,
        labels: LabelSet,
        split: str,
        photos: bool = True,
        camera: float = 0.0,
        note: str = "",
    ) -> None:
        self.folder, self.names, self.split, self.with_photos, self.camera = folder, names, split, photos, camera
        self.data_labels, self.labels, self.note = data_labels, labels, note
        self.lut = data_labels.map_to(labels)
        self.records = np.fromfile(folder / "records.bin", record_type(len(data_labels)), len(names))
        parts = [np.flatnonzero(among(self.lut, ids)).tolist() for ids in labels.part_ids]
        self._parts = part_geometry(self.records, parts)
        self.loader: DataLoader | None = None  # whose processes go on from epoch to epoch
        self._open()

    def _open(self) -> None:
        self.files = {name: os.open(self.folder / f"{name}.bin", os.O_RDONLY) for name in FILES}
        shape = (len(self.names), len(FILES))
        memory = mmap.mmap(-1, shape[0] * shape[1])  # shared with the processes that load faces
        self._compared = np.frombuffer(memory, np.uint8).reshape(shape)  # which pieces of which faces

    def __del__(self) -> None:
        for number in vars(self).get("files", {}).values():
            os.close(number)

    def __getstate__(self) -> dict[str, Any]:  # what means nothing in another process is left out
        return {name: value for name, value in vars(self).items() if name not in ("files", "_compared", "loader")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, loader=None)
        self._open()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the faces' names and decoded bytes: the same for the same faces anywhere."""
        digest = hashlib.sha256()
        for name, checksums in zip(self.names, self.records["checksum"], strict=True):
            digest.update(f"{name}\0".encode("utf-8", "surrogateescape") + checksums.tobytes())
        return digest.hexdigest()

    def count_labelled(self) -> int:
        """How many pixels of all faces have a label other than the background."""
        return int(self._counts_NK[:, 1:].sum())

    def _read(self, name: str, index: int) -> np.ndarray:
        # pread rather than a memory map: mapped pages would count as this process's memory as the epoch continues
        record, piece = self.records[index], FILES.index(name)
        pixels, (height, width) = int(record["offset"]), (int(record["height"]), int(record["width"]))
        offset, shape = {
            "photos": (pixels * 3, (height, width, 3)),
            "labels": (pixels, (height, width)),
            "images_256": (index * IMAGE_256_BYTES, (IMAGE_SIDE, IMAGE_SIDE, 3)),
        }[name]
        data = os.pread(self.files[name], math.prod(shape), offset)
        if not self._compared[index, piece]:
            if zlib.crc32(data) != record["checksum"][piece]:
                raise DamagedCache(f"the cache {self.folder} is damaged at {self.names[index]}: remove the folder")
            self._compared[index, piece] = 1
        return np.frombuffer(data, np.uint8).reshape(shape)

    def photo(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        return self._read("photos", index)

    def ids(self, index: int) -> np.ndarray:
        """uint8 (H, W), ids of ``data_labels``."""
        return self._read("labels", index)

    def label_map(self, index: int) -> np.ndarray:
        """uint8 (H, W), ids of ``labels``."""
        ids = self.ids(index)
        return ids if self._same_ids else cv2.LUT(ids, self.lut)

    def balance(self, share: float) -> np.ndarray:
        """How often to draw each face so that labels which fewer than ``share`` of the faces have are seen more often:
        the square root of how much rarer its rarest label is (Gupta et al. 2019), as probabilities, float64 (N,)."""
        held_NK = self._counts_NK > 0
        rarity_K = np.sqrt(share / np.maximum(held_NK.mean(0), 1 / len(self))).clip(1)
        often_N = np.where(held_NK, rarity_K, 1).max(1)
        return often_N / often_N.sum()

    def class_weights(self, share: float) -> np.ndarray:
        """Weights with which labels that have less than ``share`` of all pixels count as if they had it, 1 for the
        others and for absent ones: float32 (K,)."""
        count_K = self._counts_NK.sum(0)
        return np.where(count_K > 0, (share * count_K.sum() / np.maximum(count_K, 1)).clip(1), 1).astype(np.float32)

    @property
    def _counts_NK(self) -> np.ndarray:
        """Pixels of each label in each face."""
        return self.records["count"] @ (self.lut[: len(self.data_labels), None] == np.arange(len(self.labels)))

    @cached_property
    def _same_ids(self) -> bool:
        count = len(self.data_labels)
        return np.array_equal(self.lut[:count], np.arange(count))

    def image_256(self, index: int) -> np.ndarray:
        """uint8 (256, 256, 3), RGB, the stretched photo."""
        return self._read("images_256", index)

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the parts of all faces are; see ``data.cache.part_geometry``."""
        return self._parts

    def __getitem__(self, ticket: tuple[int, Key]) -> tuple[int, Key, np.ndarray, np.ndarray, np.ndarray]:
        index, key = ticket
        photo = self.photo(index) if self.with_photos else np.empty((0, 0, 3), np.uint8)
        image_256 = self.image_256(index)
        if is_degraded(key, self.camera):
            photo = degraded(photo, key) if self.with_photos else photo
            image_256 = make_image_256(photo) if self.with_photos else degraded(image_256, key)
        return index, key, photo, self.label_map(index), image_256

    def collate(self, items: list[tuple[int, Key, np.ndarray, np.ndarray, np.ndarray]]) -> Batch:
        """A batch of faces as ``faces[...]`` gives them."""
        index = np.array([item[0] for item in items])
        records = self.records[index]
        height, width = int(records["height"].max()), int(records["width"].max())
        photos = np.zeros((len(items), height, width, 3) if self.with_photos else (len(items), 0, 0, 3), np.uint8)
        labels = np.zeros((len(items), height, width), np.uint8)
        for b, (_, _, photo, label_map, _) in enumerate(items):
            photos[b, : photo.shape[0], : photo.shape[1]] = photo
            labels[b, : label_map.shape[0], : label_map.shape[1]] = label_map
        present, centres, extents = (values[index] for values in self._parts)
        batch = Batch(
            labels=self.labels,
            photos_BHW3=torch.from_numpy(photos),
            labels_BHW=torch.from_numpy(labels),
            images_256_BSS3=torch.from_numpy(np.stack([item[4] for item in items])),
            sizes_B2=torch.from_numpy(np.stack([records["height"], records["width"]], 1).astype(np.int64)),
            present_BP=torch.from_numpy(present),
            centres_BP2=torch.from_numpy(centres),
            extents_BP2=torch.from_numpy(extents),
            index_B=torch.from_numpy(index),
            keys_B3=torch.tensor([item[1] for item in items]),
        )
        for value in vars(batch).values() if get_worker_info() else ():
            if isinstance(value, Tensor) and value.numel():
                value.share_memory_()  # here, where it can fail aloud: the queue behind this would hang
        return batch

    def first(self, count: int) -> Batch:
        """The first faces of the split, for pictures."""
        return self.collate([self[index, (0, 0, index)] for index in range(min(count, len(self)))])


def open_faces(
    data: FaceData, split: str, labels: LabelSet, photos: bool = True, threads: int = 2, camera: float = 0.0
) -> Faces:
    """Open a split through its cache, decoding what is missing. threads: that decode. For the rest see ``Faces``.

    One cache serves every ``data.max_images`` and every label set. Raises InputError for a bad data folder, and where
    ``labels`` cannot be told from the data set's own.
    """
    data.labels.map_to(labels)
    source = open_source(data, split)
    where = f"{data.root.resolve() if data.root else ''}|{data.partition}|{data.face_size}"
    if data.label_set:
        where += f"|{data.label_set.name}"
    if data.labels.ignores:
        where += "|ignores"
    if data.train_labels and split == "train":
        where += f"|{data.train_labels.resolve()}"
    folder = data.cache / f"{data.dataset}-{split}-{hashlib.sha256(os.fsencode(where)).hexdigest()[:8]}"
    build_cache(source, folder, threads)
    names = [sample.name for sample in source.samples]
    return Faces(folder, names, data.labels, labels, split, photos, camera, source.note)


def training_batches(
    faces: Faces,
    batch_size: int,
    seed: int,
    epoch: int,
    folds: int = 1,
    rank: int = 0,
    world: int = 1,
    machine: Machine = HERE,
    often_N: np.ndarray | None = None,
) -> DataLoader:
    """One epoch in shuffled order, each face ``folds`` times, or as often as ``often_N`` has it (see ``Faces.balance``;
    without folds); the last incomplete batch is left out.

    batch_size: over all processes. machine: loads the faces, in processes that go on from epoch to epoch: the loader of
    one epoch ends when that of the next is asked for. The order depends on the seed and the epoch alone. The fold of a
    face (the number of operations of the five-fold augmentation) is its position modulo ``folds`` before shuffling, and
    is carried in the third key: key = position * folds + fold.
    """
    require_batch(len(faces) * folds, batch_size)
    rng, count = np.random.default_rng((seed, epoch)), len(faces) * folds
    order = rng.permutation(count) if often_N is None else rng.choice(count, count, p=often_N)
    order = order[: len(order) // batch_size * batch_size]
    tickets = [(int(i) // folds, (seed, epoch, position * folds + int(i) % folds)) for position, i in enumerate(order)]
    return _loader(faces, tickets, batch_size, rank, world, machine)


def require_batch(count: int, batch_size: int) -> None:
    """Raises InputError for a batch larger than the ``count`` faces of an epoch."""
    if count < batch_size:
        raise InputError(f"batch size {batch_size} is larger than the {count} faces of an epoch: lower it")


def require_pair(batch_size: int, normalised: str) -> None:
    """Raises InputError for a single face a batch, where a batch normalisation sees one value of each face and so no
    variance. normalised: of what it is, for the message."""
    if batch_size < 2:
        raise InputError(f"batch size {batch_size}: the batch normalisation of {normalised} needs at least 2")


def evaluation_batches(
    faces: Faces, batch_size: int, rank: int = 0, world: int = 1, machine: Machine = HERE
) -> DataLoader:
    """Every face once, in order. Each process takes every ``world``-th face; its share may be empty. machine: see
    ``training_batches``."""
    tickets = [(i, (0, 0, i)) for i in range(rank, len(faces), world)]
    return _loader(faces, tickets, max(1, batch_size // world), 0, 1, machine)


def _loader(faces: Faces, tickets: list, batch_size: int, rank: int, world: int, machine: Machine) -> DataLoader:
    share = batch_size // world
    starts = range(0, len(tickets), batch_size)
    batches = [tickets[start : start + batch_size][rank * share : (rank + 1) * share] for start in starts]
    if machine.workers and faces.loader is not None:
        faces.loader.batch_sampler[:] = batches  # type: ignore[index]
        return faces.loader
    # A copy: a loader and faces that hold each other would be collected with the loader's queues closed first, and each
    # process, which then hears of no end, waited for in vain, 5 seconds.
    held = copy(faces)
    loader = DataLoader(
        held,
        batch_sampler=batches,
        collate_fn=held.collate,
        num_workers=machine.workers,
        pin_memory=machine.device.type == "cuda",
        prefetch_factor=4 if machine.workers else None,
        persistent_workers=machine.workers > 0,
        generator=torch.Generator(),  # or each new one would draw from torch's own, on which dropout depends
    )
    if machine.workers:
        faces.loader = loader
    return loader
