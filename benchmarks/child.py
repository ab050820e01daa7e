"""Measurements of memory, each in a process of its own: ``python -m benchmarks.child predict|train JSON``.

What a measurement does not need is not imported, since modules take memory too.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.measure import Row, peak_resident_bytes
from data.images import THUMB
from data.loading import RECORD, Faces
from utils import options, runtime


def main(argv: list[str]) -> int:
    kind, plan = argv[0], json.loads(argv[1])
    device = runtime.pick_device(plan["device"])
    with contextlib.redirect_stdout(io.StringIO()):
        before = {"predict": _predict, "train": _train}[kind](plan)
    row: Row = {"before": before / 1e6, "peak": peak_resident_bytes() / 1e6}
    if device.type == "cuda":
        row["device"] = torch.cuda.max_memory_allocated(device) / 1e6
    print(json.dumps(row))
    return 0


def _predict(plan: dict[str, Any]) -> int:
    """Label one photo; returns the resident bytes before."""
    import predict

    before = peak_resident_bytes()
    named = [word for path in plan["checkpoints"] for word in ("--checkpoint", path)]
    out = str(Path(plan["scratch"]) / "large")
    status = predict.main(
        [plan["photo"], *named, "--out", out, "--overwrite", "--device", plan["device"], "--workers", "1"]
    )
    if status != 0:
        raise RuntimeError(f"predict.py ended with status {status}")
    return before


def _train(plan: dict[str, Any]) -> int:
    """The first steps of an epoch of stage 1; returns the resident bytes before."""
    import train_stage1
    from benchmarks.training import fit_seconds, take_fit

    before = peak_resident_bytes()
    scratch = Path(plan["scratch"])
    faces = sparse_faces(scratch / f"sparse{plan['faces']}", plan["faces"], plan["size"])
    run_dir = scratch / f"memory{plan['faces']}"
    words = ["--coarse-size", plan["coarse_size"], "--batch-size", plan["batch_size"], "--workers", plan["workers"]]
    words += ["--device", plan["device"], "--run-dir", run_dir, "--recipe", "paper"]
    with mock.patch.object(options, "open_split", return_value=faces):
        taken = take_fit(train_stage1, [str(word) for word in words])
    fit_seconds(taken, 1, plan["steps"], run_dir)
    return before


def sparse_faces(folder: Path, count: int, size: int) -> Faces:
    """A cache of ``count`` black faces of size x size whose files take no room on disks that can leave holes."""
    folder.mkdir(parents=True, exist_ok=True)
    records = np.zeros(count, RECORD)
    records["height"] = records["width"] = size
    records["offset"] = np.arange(count) * size * size
    records.tofile(folder / "records.bin")
    for name, length in (("photos", size * size * 3), ("labels", size * size), ("thumbs", THUMB * THUMB * 3)):
        with open(folder / f"{name}.bin", "wb") as file:
            file.truncate(count * length)
    with open(folder / "hole.bin", "wb") as file:
        file.truncate(2**24)
    if (folder / "hole.bin").stat().st_blocks * 512 >= 2**24:
        raise RuntimeError(f"{folder}: this disk stores empty files in full")
    return Faces(folder, [str(i) for i in range(count)], "helen", "train")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
