"""Which faces: one way to name and open every data set. The only place that knows which data sets there are."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.datasets import celebamask, helen, merged, synthetic
from data.labels import CELEBAMASK, HELEN, LAPA, LabelSet
from data.listing import SPLITS, Listing, Read, Sample, Source, id_problem, read_face
from data.relabelled import relabelled
from utils.errors import InputError


@dataclass(frozen=True)
class FaceData:
    """Which faces.

    dataset: one of ``DATASETS``. root: its folder; None for synthetic faces. partition: only for the official layout
    of CelebAMask-HQ, one of ``data.datasets.celebamask.PARTITIONS``. face_size: longer side in pixels; synthetic faces
    are drawn so (default ``data.datasets.synthetic.SIZE``), photos and label maps are resized (default: unchanged).
    max_images: the first so many faces of each split; of synthetic faces as many are drawn to train on.
    cache: the folder of all caches. label_set: for data sets whose files may follow any, theirs.
    train_labels: a folder whose label maps replace those of the training split, see ``data.relabelled``. ignore: see
    ``LabelSet.ignores``; also where the label set itself does not say so.
    """

    dataset: str = "synthetic"
    root: Path | None = None
    partition: str | None = None
    face_size: int | None = None
    max_images: int | None = None
    cache: Path = Path("cache")
    label_set: LabelSet | None = None
    train_labels: Path | None = None
    ignore: bool = False

    @property
    def labels(self) -> LabelSet:
        """The label set of the data set's own label maps.

        Raises InputError for an unknown data set, and for a label set that is needed, or given without need.
        """
        own = _dataset(self).labels
        if own is None:
            if self.label_set is None:
                raise InputError(f"data set {self.dataset} needs labels: the label set of its ids")
            own = self.label_set
        elif self.label_set is not None:
            message = f"data set {self.dataset} holds ids of {own.name}; leave it out"
            raise InputError(f"labels {self.label_set.name}: {message}")
        return replace(own, ignores=True) if self.ignore else own


class Dataset(NamedTuple):
    """What is known of a data set.

    labels: of its label maps; None where ``FaceData.label_set`` says so. find: lists a split. partitions: whether it
    can be split in several ways.
    """

    labels: LabelSet | None
    find: Callable[[FaceData, str], Listing]
    partitions: bool = False


def open_source(data: FaceData, split: str) -> Source:
    """Opens one split, as far as ``data.max_images`` goes.

    Raises InputError for an unknown data set or split, a missing or empty folder, a layout that is not the expected
    one, photos without mask or masks without photo, and a folder of ``train_labels`` that does not fit. ``read`` raises
    InputError for damaged files, sizes that differ and unknown ids.
    """
    listing = _sound(data, split)
    source = Source(data.labels, listing.samples, reader(data, listing), listing.version, listing.note)
    return relabelled(source, data.train_labels) if data.train_labels and split == "train" else source


def label_maps(data: FaceData, split: str) -> Iterator[tuple[Sample, np.ndarray]]:
    """Each face of a split with its own label map, uint8 (H, W) of ``data.labels``' ids, at its own size; photos are
    not read.

    Raises InputError as ``open_source`` does, while it goes for damaged masks and unknown ids.
    """
    listing = _sound(data, split)
    for sample in tqdm(listing.samples, f"{split} masks", disable=None):
        ids = listing.read_labels(sample)
        if problem := id_problem(data.labels, sample, ids):
            raise InputError(problem)
        yield sample, ids


def _sound(data: FaceData, split: str) -> Listing:
    """The listing as far as ``data.max_images`` goes. Raises InputError for one with problems."""
    listing = find(data, split)
    if listing.problems:
        more = f"; {len(listing.problems) - 1} more: run python -m tools.check" if len(listing.problems) > 1 else ""
        raise InputError(listing.problems[0] + more)
    return listing._replace(samples=listing.samples[: data.max_images])


def reader(data: FaceData, listing: Listing) -> Read:
    """How one face of a listing is read; see ``Source``."""
    return listing.draw or partial(read_face, data.labels, listing.read_labels, listing.shrink, size=data.face_size)


def find(data: FaceData, split: str) -> Listing:
    """Lists one split, problems included. Raises InputError where nothing can be listed."""
    dataset = _dataset(data)
    if split not in SPLITS:
        raise InputError(f"unknown split {split}: choose from {', '.join(SPLITS)}")
    if data.partition is not None and not dataset.partitions:
        several = ", ".join(name for name, other in DATASETS.items() if other.partitions)
        raise InputError(f"partition {data.partition}: only {several} has several partitions; leave it out")
    listing = dataset.find(data, split)
    if not listing.samples and not listing.problems:
        way = "; its splits go by the faces' numbers: to train on few, put them into lists (--dataset list)"
        raise InputError(f"no faces for split {split} in {data.root}{way if dataset.partitions else ''}")
    return listing


def _dataset(data: FaceData) -> Dataset:
    if data.dataset not in DATASETS:
        raise InputError(f"unknown data set {data.dataset}: choose from {', '.join(DATASETS)}")
    return DATASETS[data.dataset]


def _folder(data: FaceData, layout: str) -> Path:
    """The folder of a data set on disk. layout: what it must hold, for the message where it is missing or empty."""
    if data.root is None:
        raise InputError(f"data set {data.dataset} needs its folder: give it")
    root = Path(data.root)
    if not root.is_dir():
        raise InputError(f"data folder {root} {'is not a folder' if root.exists() else 'does not exist'}")
    if not any(root.iterdir()):
        raise InputError(f"data folder {root} is empty: {layout}")
    return root


def _find_synthetic(data: FaceData, split: str) -> Listing:
    if data.root is not None:
        raise InputError(
            f"root {data.root} is given, but the data set is synthetic, which needs no folder: leave it out"
        )
    count = data.max_images
    if split != "train" and count is not None:
        count = min(count, synthetic.COUNTS[split])
    samples = [Sample(name, Path(), ()) for name in synthetic.sample_names(split, count)]
    size = synthetic.SIZE if data.face_size is None else data.face_size
    drawing = hashlib.sha256()
    for file in sorted(Path(synthetic.__file__).parent.glob("*.py")):  # new code may draw other faces
        drawing.update(file.read_bytes())
    draw = partial(_draw, size)
    return Listing(samples, [], partial(_drawn_labels, draw), version=f"{drawing.hexdigest()}|{size}", draw=draw)


def _draw(size: int, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    return synthetic.draw_named(sample.name, size=size)


def _drawn_labels(draw: Read, sample: Sample) -> np.ndarray:
    return draw(sample)[1]


DATASETS = {
    "helen": Dataset(HELEN, lambda data, split: helen.find(_folder(data, helen.LAYOUT), split)),
    "celebamask": Dataset(
        CELEBAMASK,
        lambda data, split: celebamask.find(_folder(data, celebamask.LAYOUT), split, data.partition),
        partitions=True,
    ),
    "lapa": Dataset(LAPA, lambda data, split: merged.find_lapa(_folder(data, merged.LAPA_LAYOUT), split)),
    "list": Dataset(None, lambda data, split: merged.find_list(_folder(data, merged.LIST_LAYOUT), split, data.labels)),
    "synthetic": Dataset(HELEN, _find_synthetic),
}
