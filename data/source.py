"""One way to open every data set: names, files and a function that reads one face."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import images
from data.labels import TABLES
from utils.errors import InputError

SPLITS = ("train", "val", "test")


class Sample(NamedTuple):
    """One face: its name and files. Synthetic faces have no files (``Path()`` and ``()``)."""

    name: str
    photo: Path
    masks: tuple[Path, ...]


class Listing(NamedTuple):
    """What a folder holds for one split, found without opening a picture.

    samples: the complete pairs.
    problems: one line for each thing that is missing or unknown.
    read_labels: sample -> uint8 (H, W) of the data set's ids.
    shrink: whether photos are stored larger than the masks and must be brought to the masks' grid.
    version: changes whenever the same files would be read differently.
    """

    samples: list[Sample]
    problems: list[str]
    read_labels: Callable[[Sample], np.ndarray]
    shrink: bool = False
    version: str = ""


class Source(NamedTuple):
    """A split of a data set; ``read(sample)`` gives photo uint8 (H, W, 3) RGB and labels uint8 (H, W), data-set ids.

    version: changes whenever ``read`` would give something else for the same names and files.
    """

    dataset: str
    samples: list[Sample]
    read: Callable[[Sample], tuple[np.ndarray, np.ndarray]]
    version: str = ""


def open_source(
    dataset: str,
    root: Path | None,
    split: str,
    partition: str | None = None,
    count: int | None = None,
    size: int | None = None,
) -> Source:
    """Opens one split of a data set: ``helen``, ``celebamask`` (official or challenge layout) or ``synthetic``.

    root: the data folder; None for synthetic faces.
    partition: only for the official layout of CelebAMask-HQ, see ``data.celebamask.find``.
    count: the first so many faces, default all; of synthetic faces as many are drawn for training, and at most
        ``data.synthetic.COUNTS`` for the other splits.
    size: longer side of the faces (pixels): synthetic ones are drawn so, default ``data.synthetic.SIZE``; photos and
        label maps are resized, default as they are.

    Raises InputError for an unknown data set or split, a missing or empty folder, a layout that is not the expected
    one, and photos without mask or masks without photo. ``read`` raises InputError for damaged files, sizes that
    differ and unknown ids.
    """
    if dataset == "synthetic" and root is None and split in SPLITS:
        return _open_synthetic(split, count, size)
    listing = find(dataset, root, split, partition)
    if listing.problems:
        more = f"; {len(listing.problems) - 1} more: run python -m data.check" if len(listing.problems) > 1 else ""
        raise InputError(listing.problems[0] + more)
    read = partial(read_face, dataset, listing.read_labels, listing.shrink, size=size)
    return Source(dataset, listing.samples[:count], read, listing.version)


def find(dataset: str, root: Path | None, split: str, partition: str | None = None) -> Listing:
    """Lists one split of a data set, problems included. Raises InputError where nothing can be listed."""
    from data import celebamask, helen  # they build Samples and Listings themselves

    if dataset not in TABLES:
        raise InputError(f"unknown data set {dataset}: choose from {', '.join(TABLES)}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split}: choose from {', '.join(SPLITS)}")
    if partition is not None and dataset != "celebamask":
        raise InputError(f"partition {partition}: only celebamask can be split in several ways; leave it out")
    if dataset == "synthetic":
        if root is not None:
            raise InputError(f"synthetic faces are drawn, not read from {root}: leave --data out")
        source = _open_synthetic(split, None, None)
        return Listing(source.samples, [], partial(_synthetic_labels, source.read), version=source.version)
    if root is None:
        raise InputError(f"data set {dataset} needs its folder: give --data DIR")
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"data folder {root} {'is not a folder' if root.exists() else 'does not exist'}")
    if not any(root.iterdir()):
        raise InputError(f"data folder {root} is empty: {(helen if dataset == 'helen' else celebamask).LAYOUT}")
    listing = helen.find(root, split) if dataset == "helen" else celebamask.find(root, split, partition)
    if not listing.samples and not listing.problems:
        raise InputError(f"no faces for split {split} in {root}")
    return listing


def pair(split: str, photos: dict[str, Path], masks: dict[str, tuple[Path, ...]]) -> tuple[list[Sample], list[str]]:
    """Pairs photos and masks by name: (complete samples in the photos' order, one line for each direction missing)."""
    samples = [Sample(name, photo, masks[name]) for name, photo in photos.items() if name in masks]
    problems = []
    bare = [name for name in photos if name not in masks]
    orphans = [name for name in masks if name not in photos]
    if bare:
        where = photos[bare[0]].parent
        problems.append(f"photos without mask in split {split}: {images.shorten(bare)} in {where}")
    if orphans:
        where = masks[orphans[0]][0].parent
        problems.append(f"masks without photo in split {split}: {images.shorten(orphans)} in {where}")
    return samples, problems


def size_problem(sample: Sample, photo: tuple[int, int], labels: tuple[int, int], shrink: bool) -> str | None:
    """The line to tell when a photo and its mask, both (H, W), do not fit each other; None when they do."""
    if photo == labels or (shrink and photo[0] * labels[1] == photo[1] * labels[0]):
        return None
    return (
        f"sizes differ: photo {sample.photo} is {photo[1]}×{photo[0]}, "
        f"its mask {sample.masks[0]} is {labels[1]}×{labels[0]}"
    )


def id_problem(dataset: str, sample: Sample, labels: np.ndarray) -> str | None:
    """The line to tell when a label map holds ids that its data set does not have; None when it does not."""
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    unknown = [str(i) for i in present if TABLES[dataset].merge[i] == 255]
    if not unknown:
        return None
    last = len(TABLES[dataset].names) - 1
    return f"unknown ids in mask {sample.masks[0]}: {images.shorten(unknown)}; {dataset} has 0 to {last}"


def read_face(
    dataset: str,
    read_labels: Callable[[Sample], np.ndarray],
    shrink: bool,
    sample: Sample,
    size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Photo uint8 (H, W, 3) and labels uint8 (H, W) of one sample; see ``Listing`` and ``open_source`` for the
    arguments.

    Raises InputError for damaged files, sizes that differ and unknown ids.
    """
    photo, labels = images.read_photo(sample.photo), read_labels(sample)
    height, width = labels.shape
    problem = size_problem(sample, photo.shape[:2], (height, width), shrink) or id_problem(dataset, sample, labels)
    if problem:
        raise InputError(problem)
    if size is not None:
        height, width = (max(1, round(side * size / max(labels.shape))) for side in labels.shape)
        labels = images.resize_labels(labels, height, width)
    return images.resize_photo(photo, height, width), labels


def _open_synthetic(split: str, count: int | None, size: int | None) -> Source:
    from data import synthetic

    size = synthetic.SIZE if size is None else size
    if split != "train" and count is not None:
        count = min(count, synthetic.COUNTS[split])
    samples = [Sample(name, Path(), ()) for name in synthetic.sample_names(split, count)]
    drawing = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()  # new code may draw other faces
    return Source("synthetic", samples, partial(_draw, size), version=f"{drawing}|{size}")


def _draw(size: int, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    from data import synthetic

    return synthetic.draw_named(sample.name, size=size)


def _synthetic_labels(read: Callable[[Sample], tuple[np.ndarray, np.ndarray]], sample: Sample) -> np.ndarray:
    return read(sample)[1]
