"""Photo to label map: latency and throughput compared with the reference, predict.py, and the exported graph."""

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image

from faces.labelling import Labelling, label_photos
from faces.results import Job
from models.loading import load_for_inference, load_parser
from models.stn_icnn.model import STNiCNN
from tools.benchmark import reference
from tools.benchmark.measure import REPOSITORY, Row, Setup, Table, agreement, face_photos, parse_photos, time_in_turns
from tools.export import export, load_onnx, missing
from utils import runtime
from utils.errors import InputError

CHILD = """
import sys, predict
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e3
libraries = peak()
predict.main(sys.argv[1:])
print(libraries, peak())
"""


def measure_inference(setup: Setup) -> list[Table]:
    """Latency, throughput and agreement for each size and batch, ours and the reference in turns. Raises InputError
    for checkpoints of another parser."""
    plain, device = load_parser(setup.checkpoints).to(setup.device), setup.device
    if not isinstance(plain, STNiCNN):
        raise InputError(f"--checkpoint: {plain.kind} cannot be measured; give a checkpoint of {STNiCNN.kind}")
    model = load_for_inference(setup.checkpoints, device)
    rows: list[Row] = []
    for (height, width), batch in product(setup.sizes, setup.batches):
        photos = face_photos(batch, height, width)
        functions = {"reference": partial(reference.parse, plain, photos, device)}
        functions |= {f"ours {name}": partial(parse_photos, model, photos, device, name) for name in setup.precisions}
        what = {"photo": f"{height}×{width}", "batch": batch}
        try:
            labels = {name: function() for name, function in functions.items()}
            times = time_in_turns(functions, setup.seconds)
        except Exception as error:
            if not runtime.is_out_of_memory(error):
                raise
            rows.append({**what, "which": "left out: too little memory"})
            continue
        for name, ms in times.items():
            row = {**what, "which": name, "ms": ms, "photos/s": 1e3 * batch / ms["median"]}
            if name != "reference":
                row["speed-up"] = times["reference"]["median"] / ms["median"]
                row["labels equal %"] = agreement(labels[name], labels["reference"])
            rows.append(row)
    return [Table("Decoded photo to label map", rows, "On CUDA, fp32 is TF32.")]


def measure_predict(setup: Setup) -> list[Table]:
    """predict.py on a folder of photos that are faces, and the networks alone."""
    count, side = (2, 96) if setup.quick else (48, 1024)
    model, photos = load_for_inference(setup.checkpoints, setup.device), face_photos(count, side, side)
    files = [setup.scratch / f"photo{i}.jpg" for i in range(count)]
    for file, photo in zip(files, photos, strict=True):
        Image.fromarray(photo).save(file, quality=95)
    jobs = [Job(file, {"labels": file.with_suffix(".png"), "overlay": file.with_suffix(".o.jpg")}) for file in files]

    def networks() -> None:
        for start in range(0, count, 4):
            parse_photos(model, photos[start : start + 4], setup.device, setup.precisions[-1])

    def folder() -> None:
        failed, _ = label_photos(Labelling(model, None, setup.machine, 4), jobs)
        if failed:
            raise RuntimeError(failed[0])

    times = time_in_turns({"networks": networks, "folder": folder}, setup.seconds)
    row: Row = {"what": f"{count} photos of {side}×{side}", "ms a photo": times["folder"]["median"] / count}
    row["networks alone"] = times["networks"]["median"] / count
    note = f"From file to label map and overlay; {setup.machine.threads} threads decode."
    return [Table("predict.py", [row], note)]


def measure_export(setup: Setup) -> list[Table]:
    """The exported ONNX graph under onnxruntime, on the CPU."""
    if lacking := missing("onnx", "onnxscript", "onnxruntime"):
        return [Table("Exported graph", [], f"Left out: no {' and no '.join(lacking)} here")]
    file, cpu, started = setup.scratch / "stn_icnn.onnx", torch.device("cpu"), time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        export(setup.checkpoints, onnx=file)
    note = f"Written in {time.monotonic() - started:.1f} s"
    model, graph = load_for_inference(setup.checkpoints, cpu), load_onnx(file)
    rows: list[Row] = []
    for height, width in setup.sizes:
        photos = face_photos(1, height, width)
        functions: dict[str, Callable[[], Any]] = {
            "ours": partial(parse_photos, model, photos, cpu, "fp32"),
            "onnxruntime": partial(graph, torch.from_numpy(np.stack(photos))),
        }
        labels = {name: np.asarray(function()) for name, function in functions.items()}
        times = {f"{name} ms": ms for name, ms in time_in_turns(functions, setup.seconds).items()}
        rows.append({"photo": f"{height}×{width}", **times, "labels equal %": agreement(*labels.values())})
    return [Table("Exported graph, one photo, CPU, fp32", rows, note)]


def measure_memory(setup: Setup) -> list[Table]:
    """Largest resident set of predict.py on a large photo, in a process of its own; Linux alone."""
    height, width = (400, 600) if setup.quick else (4000, 6000)
    Image.fromarray(face_photos(1, height, width)[0]).save(setup.scratch / "large.jpg", quality=90)
    options = ["--faces", "none", "--out", str(setup.scratch / "large"), "--device", str(setup.device)]
    options += ["--checkpoint", *map(str, setup.checkpoints)]
    command = [sys.executable, "-c", CHILD, str(setup.scratch / "large.jpg"), *options]
    child = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    libraries, peak = map(float, child.stdout.split()[-2:])
    row = {"what": f"predict.py, photo of {width}×{height}", "libraries MB": libraries, "peak MB": peak}
    return [Table("Peak memory", [row])]
