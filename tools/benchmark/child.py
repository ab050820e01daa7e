"""Measurements of memory, each in a process of its own: ``python -m tools.benchmark.child predict|train JSON``.

What a measurement does not need is not imported, since modules take memory too.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.cache import FILES, THUMB_BYTES, record_type
from data.labels import HELEN, NINE
from data.loaders import Faces
from data.source import FaceData
from models.loading import load_for_inference
from tools.benchmark.measure import Row, peak_resident_bytes
from training.task import Plan
from utils import runtime
from utils.runtime import Machine


def main(argv: list[str]) -> int:
    kind, options = argv[0], json.loads(argv[1])
    device = runtime.pick_device(options["device"])
    machine = Machine(device, options["workers"])
    with contextlib.redirect_stdout(io.StringIO()):
        before = {"predict": _predict, "train": _train}[kind](options, machine)
    row: Row = {"before": before / 1e6, "peak": peak_resident_bytes() / 1e6}
    if device.type == "cuda":
        row["device"] = torch.cuda.max_memory_allocated(device) / 1e6
    print(json.dumps(row))
    return 0


def _predict(options: dict[str, Any], machine: Machine) -> int:
    """Label one photo; returns the resident bytes before."""
    from faces.labelling import Labelling, label_photos
    from faces.results import Job

    before = peak_resident_bytes()
    photo = Path(options["photo"])
    outputs = {"labels": photo.with_suffix(".png"), "overlay": photo.with_name(f"{photo.stem}_overlay.jpg")}
    parser = load_for_inference([Path(path) for path in options["checkpoints"]], machine.device)
    failed, _ = label_photos(Labelling(parser, None, machine, 1), [Job(photo, outputs)])
    if failed:
        raise RuntimeError(failed[0])
    return before


def _train(options: dict[str, Any], machine: Machine) -> int:
    """The first steps of an epoch of stage 1; returns the resident bytes before."""
    import train_stage1
    from tools.benchmark.training import fit_seconds

    before = peak_resident_bytes()
    scratch, count = Path(options["scratch"]), options["faces"]
    plan = Plan(
        data=FaceData(face_size=16, max_images=1, cache=scratch / "drawn"),  # takes the place of a data set
        recipe=train_stage1.RECIPES.choose("paper", "helen").changed(batch_size=options["batch_size"]),
        machine=machine,
        folder=scratch / f"memory{count}",
        model={"coarse_size": options["coarse_size"]},
    )
    task = train_stage1.build(plan)
    task.train_faces = sparse_faces(scratch / f"sparse{count}", count, options["size"])
    fit_seconds(task, 1, options["steps"])
    return before


def sparse_faces(folder: Path, count: int, size: int) -> Faces:
    """A cache of ``count`` black faces of size x size whose files take no room on disks that can leave holes.

    With photos in its batches, whatever the stage. Raises RuntimeError for a disk that stores holes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = np.zeros(count, record_type(len(HELEN)))
    records["height"] = records["width"] = size
    records["offset"] = np.arange(count) * size * size
    records.tofile(folder / "records.bin")
    for name, length in zip(FILES, (size * size * 3, size * size, THUMB_BYTES), strict=True):
        with open(folder / f"{name}.bin", "wb") as file:
            file.truncate(count * length)
    with open(folder / "hole.bin", "wb") as file:
        file.truncate(2**24)
    if (folder / "hole.bin").stat().st_blocks * 512 >= 2**24:
        raise RuntimeError(f"{folder}: this disk stores empty files in full")
    return Faces(folder, [str(i) for i in range(count)], HELEN, NINE, "train")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
