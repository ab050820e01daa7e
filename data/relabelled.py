"""Label maps that take the place of a training split's own, one PNG a face, as ``training.relabel`` writes them."""

import os
from functools import partial
from pathlib import Path

import numpy as np

from data import images
from data.listing import Sample, Source, id_problem
from utils.errors import InputError
from utils.files import read_json

RECORD = "relabel.json"  # in the folder of the maps: what wrote them, and how often each label occurs


def relabelled(source: Source, folder: Path) -> Source:
    """The same faces with the label maps ``<name>.png`` of a folder, in ids of the same label set and, as in all of
    this repository, with brow1 and eye1 on the image's left.

    Raises InputError for a folder that lacks the map of a face or whose record names another label set. ``read`` also
    raises it for a map that has not the size of the one that it replaces.
    """
    if not folder.is_dir():
        raise InputError(f"train labels {folder} is not a folder: choose one with a label map <name>.png for each face")
    if os.path.lexists(folder / RECORD):
        held = read_json(folder / RECORD, "record").get("labels")
        if held != source.labels.name:
            raise InputError(f"train labels {folder} holds ids of {held}, the data set those of {source.labels.name}")
    own = {sample.name: sample for sample in source.samples}
    if lacking := [f"{name}.png" for name in own if not (folder / f"{name}.png").is_file()]:
        raise InputError(f"train labels {folder} lacks {images.shorten(lacking)}: relabel all faces that are used")
    samples = [sample._replace(masks=(folder / f"{sample.name}.png", *sample.masks)) for sample in source.samples]
    return Source(source.labels, samples, partial(_read, source, own), f"{source.version}|relabelled")


def _read(source: Source, own: dict[str, Sample], sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    photo, replaced = source.read(own[sample.name])
    ids = images.read_labels(sample.masks[0])
    if ids.shape != replaced.shape:
        (height, width), (own_height, own_width) = ids.shape, replaced.shape
        raise InputError(
            f"sizes differ: {sample.masks[0]} is {width}×{height}, the label map that it replaces "
            f"{own_width}×{own_height}: relabel at the same face size"
        )
    if problem := id_problem(source.labels, sample, ids):
        raise InputError(problem)
    return photo, ids
