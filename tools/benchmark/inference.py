"""Photo to label map: latency, throughput, steps, scaling, whole folders, and the exported graph."""

import contextlib
import importlib
import importlib.util
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from data.images import read_photo
from faces.labelling import BATCH_PIXELS, Labelling, label_photos
from faces.results import Job, Result, write
from models.loading import load_for_inference
from models.stn_icnn.model import STNiCNN
from tools.benchmark.measure import (
    Rounds,
    Row,
    Table,
    agreement,
    alternate,
    clock,
    count_flops,
    fit_exponent,
    free_bytes,
    peak_flops,
    spread,
    synchronise,
)
from tools.benchmark.reference import Plain, parse
from tools.benchmark.setup import Setup, face_photos, parse_photos
from tools.export import export

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BYTES_A_PIXEL = {"reference": 120, "ours": 60}  # generous; the photo as floats, canvases, sampling points
BYTES_A_FACE = 2**26  # the networks' activations


def measure_inference(setup: Setup) -> list[Table]:
    """Latency, throughput and agreement for each size and batch."""
    model, plain = setup.load_ours(), setup.load_plain()
    peaks = {name: peak_flops(setup.device, DTYPES[name], setup.quick) for name in setup.precisions}
    flops = count_flops(lambda: parse(plain, face_photos(1, *setup.sizes[0])))
    rows: list[Row] = []
    skipped = []
    for height, width in setup.sizes:
        a_photo = {"reference": 0.0, "ours": 0.0}
        for batch in setup.batches:
            functions, why = _contenders(setup, model, plain, height, width, batch, a_photo)
            skipped += [f"{height}×{width}, batch {batch}: {reason}" for reason in why]
            if not functions:
                continue
            labels: dict[str, np.ndarray] = {}
            times = alternate(_keeping(functions, labels), setup.device, _rounds(setup, batch))
            for name, measured in times.items():
                who = name.split()[0]
                a_photo[who] = max(a_photo[who], measured.median / batch)
                peak = peaks.get(name.partition(" ")[2], peaks["fp32"])
                row = {"photo": f"{height}×{width}", "batch": batch, "which": name}
                row |= {"ms": spread(measured.seconds, 1e3), "photos/s": batch / measured.median}
                row |= {"first call ms": measured.first * 1e3}
                row["% of peak"] = 100 * flops * batch / measured.median / peak
                if name != "reference" and "reference" in times:
                    row["speed-up"] = times["reference"].median / measured.median
                    row["agrees %"] = agreement(labels[name], labels["reference"])
                rows.append(row)
    note = f"Work: {flops / 1e9:.2f} GFLOP a photo; peak of a matrix product: " + ", ".join(
        f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items()
    )
    note += ". bf16: not fast on this machine, not measured" if "bf16" not in setup.precisions else ""
    return [Table("Decoded photo to label map", rows, ". ".join([note, *(f"Left out: {line}" for line in skipped)]))]


def _contenders(
    setup: Setup, model: STNiCNN, plain: Plain, height: int, width: int, batch: int, a_photo: dict[str, float]
) -> tuple[dict[str, Callable[[], np.ndarray]], list[str]]:
    """Who takes part at this size and batch, and a line for each who does not. a_photo: seconds that are known."""
    room, least = free_bytes(setup.device), _rounds(setup, batch).least + 1
    held, why = [], []
    for name, bytes_a_pixel in BYTES_A_PIXEL.items():
        needed = batch * (height * width * bytes_a_pixel + BYTES_A_FACE)
        if needed > 0.7 * room:
            why.append(f"{name} would need about {needed / 1e9:.0f} GB, {room / 1e9:.0f} are free")
        elif a_photo[name] * batch * least > setup.limit:
            why.append(f"{name} would take about {a_photo[name] * batch * least:.0f} s, --limit is {setup.limit:.0f}")
        else:
            held.append(name)
    if not held:
        return {}, why
    photos = face_photos(batch, height, width)
    functions: dict[str, Callable[[], np.ndarray]] = {}
    if "reference" in held:
        functions["reference"] = partial(parse, plain, photos)
    if "ours" in held:
        for precision in setup.precisions:
            functions[f"ours {precision}"] = partial(parse_photos, model, photos, setup.device, precision)
    return functions, why


def _keeping(functions: dict[str, Callable[[], Any]], kept: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """The same functions, which leave their results in ``kept``."""

    def keep(name: str) -> None:
        kept[name] = functions[name]()

    return {name: partial(keep, name) for name in functions}


def measure_steps(setup: Setup) -> list[Table]:
    """Where the time of one photo goes, from file to file."""
    model, plain = setup.load_ours(), setup.load_plain()
    rows = [row for height, width in setup.sizes for row in _steps_of(setup, model, plain, height, width)]
    note = "Decode and encode (JPEG; palette PNG) are the same code for both. Prepare: to the device, stretch. "
    note += "The device's queue is emptied after each step, which takes a little longer than without."
    return [Table("Steps of one photo, fp32", rows, note)]


def _steps_of(setup: Setup, model: STNiCNN, plain: Plain, height: int, width: int) -> list[Row]:
    photo = face_photos(1, height, width)[0]
    path, out = setup.scratch / f"{height}x{width}.jpg", setup.scratch / "step.png"
    Image.fromarray(photo).save(path, quality=95)
    marks = {"ours": _module_marks(model, setup.device), "reference": _Marks(setup.device)}

    def ours() -> np.ndarray:
        return marks["ours"].run(lambda: parse_photos(model, [photo], setup.device, "fp32"), "paste")

    def reference() -> np.ndarray:
        return marks["reference"].run(lambda: parse(plain, [photo], marks["reference"].mark))

    alternate({"ours": ours, "reference": reference}, setup.device, setup.rounds)
    marks["ours"].forget()
    result = Result(parse_photos(model, [photo], setup.device, "fp32")[0], [], None, None)

    def encode() -> None:
        write(Job(out, {"labels": out}), photo, result, model.labels, windows=False)

    files = alternate({"decode": lambda: read_photo(path), "encode": encode}, torch.device("cpu"), setup.rounds)
    rows = []
    for step in ("decode", *marks["reference"].seconds, "encode"):
        row: Row = {"photo": f"{height}×{width}", "step": step}
        for name, measured in marks.items():
            seconds = files[step].seconds if step in files else measured.seconds.get(step, [])[1:]
            row[f"{name} ms"] = spread(seconds, 1e3) if seconds else None
        rows.append(row)
    return rows


class _Marks:
    """Seconds that passed between the ends of named steps, one for each call of ``run``."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.last = device, 0.0
        self.seconds: dict[str, list[float]] = {}
        self.hooks: list[Any] = []

    def mark(self, step: str) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds.setdefault(step, []).append(now - self.last)
        self.last = now

    def run(self, function: Callable[[], Any], last_step: str = "") -> Any:
        synchronise(self.device)
        self.last = time.perf_counter()
        result = function()
        if last_step:
            self.mark(last_step)
        return result

    def forget(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _module_marks(model: STNiCNN, device: torch.device) -> _Marks:
    """Marks the steps of ours where its three modules begin and end."""
    marks = _Marks(device)
    for module, before, after in (
        (model.coarse, "prepare", "coarse"),
        (model.localizer, "", "localize"),
        (model.parts, "crop", "parts"),
    ):
        if before:
            marks.hooks.append(module.register_forward_pre_hook(lambda m, x, step=before: marks.mark(step)))
        marks.hooks.append(module.register_forward_hook(lambda m, x, y, step=after: marks.mark(step)))
    return marks


def measure_scaling(setup: Setup) -> list[Table]:
    """Time against the number of photos, their pixels, and the batch, with fitted exponents and a plot."""
    model, plain = setup.load_ours(), setup.load_plain()
    side = 96 if setup.quick else 512
    sides = (64, 96) if setup.quick else (128, 256, 512, 1024, 2048, 3072)
    counts = (1, 2) if setup.quick else (1, 2, 4, 8, 16, 32)

    def in_turn(label: Callable[[list[np.ndarray]], Any], photos: list[np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            for photo in photos:
                label([photo])

        return run

    def all_at_once(label: Callable[[list[np.ndarray]], Any], photos: list[np.ndarray]) -> Callable[[], Any]:
        return lambda: label(photos)

    labellers: dict[str, Callable[[list[np.ndarray]], Any]] = {
        "ours": lambda photos: parse_photos(model, photos, setup.device, "fp32"),
        "reference": lambda photos: parse(plain, photos),
    }
    plans = {
        "photos, one after the other": [(n, in_turn, face_photos(n, side, side)) for n in counts],
        "pixels of one photo": [(s * s, all_at_once, face_photos(1, s, s)) for s in sides],
        "batch": [(n, all_at_once, face_photos(n, side, side)) for n in counts],
    }
    rows: list[Row] = []
    fits: list[Row] = []
    for against, plan in plans.items():
        series: dict[str, list[float]] = {name: [] for name in labellers}
        for size, how, photos in plan:
            times = alternate(
                {name: how(label, photos) for name, label in labellers.items()}, setup.device, setup.few_rounds
            )
            for name, measured in times.items():
                series[name].append(measured.median)
            rows.append({"against": against, "size": size, **{f"{name} s": t.median for name, t in times.items()}})
        sizes = [size for size, _, _ in plan]
        fits.append({"against": against, **{name: fit_exponent(sizes, series[name]) for name in labellers}})
    plot(rows, fits, setup.out / "scaling.png")
    note = f"Photos of {side}×{side} unless said otherwise. 1: time grows in proportion; below: a fixed share remains."
    return [Table("Exponents of time", fits, note), Table("Scaling", rows)]


def _rounds(setup: Setup, batch: int) -> Rounds:
    """Throughput needs fewer calls than latency."""
    return setup.rounds if batch == 1 else setup.few_rounds


def plot(rows: list[Row], fits: list[Row], path: Path) -> None:
    """Time against size, logarithmic, one panel for each of ``fits``."""
    figure = Figure(figsize=(4 * len(fits), 3.4), layout="constrained")
    panels = figure.subplots(1, len(fits), squeeze=False)[0]
    for panel, fit in zip(panels, fits, strict=True):
        shown = [row for row in rows if row["against"] == fit["against"]]
        for name in ("reference", "ours"):
            label = f"{name}, exponent {fit[name]:.2f}"
            panel.loglog([row["size"] for row in shown], [row[f"{name} s"] for row in shown], "o-", label=label)
        panel.set_xlabel(fit["against"])
        panel.set_ylabel("seconds")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def measure_predict(setup: Setup) -> list[Table]:
    """predict.py on a folder beside its three activities alone."""
    count, side = (2, 96) if setup.quick else (48, 1024)
    folder, out = setup.scratch / "folder", setup.scratch / "predicted"
    folder.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    for i, photo in enumerate(face_photos(count, side, side)):
        Image.fromarray(photo).save(folder / f"{i}.jpg", quality=95)
    files, device = sorted(folder.iterdir()), setup.device
    photos = [read_photo(file) for file in files]
    model = setup.load_ours()
    precision = setup.precisions[-1]
    jobs = [Job(f, {"labels": out / f"{f.stem}.png", "overlay": out / f"{f.stem}_overlay.jpg"}) for f in files]
    most = max(1, min(8, BATCH_PIXELS // (side * side)))
    how = Labelling(model, None, setup.machine, 8)
    results: list[Result] = []

    def whole() -> None:
        failed, _ = label_photos(how, jobs)
        if failed:
            raise RuntimeError(failed[0])

    def compute() -> None:
        results.clear()
        for start in range(0, count, most):
            labels_BHW = parse_photos(model, photos[start : start + most], device, precision)
            results.extend(Result(labels, [], None, None) for labels in labels_BHW)

    encode = partial(write, labels=model.labels, windows=False)

    def threads(function: Callable[..., Any], *columns: list[Any]) -> None:
        with ThreadPoolExecutor(setup.machine.threads) as pool:
            list(pool.map(function, *columns))

    times = alternate(
        {
            "compute": compute,
            "decode": lambda: threads(read_photo, files),
            "encode": lambda: threads(encode, jobs, photos, results),
            "whole": whole,
        },
        device,
        setup.few_rounds,
    )
    slowest = max(("decode", "compute", "encode"), key=lambda name: times[name].median)
    folder_s = times["whole"].median
    row: Row = {"photos": count, "size": f"{side}×{side}", "predict.py ms": 1e3 * folder_s / count}
    row |= {f"{name} ms": 1e3 * times[name].median / count for name in ("decode", "compute", "encode")}
    row |= {"slowest": slowest, "predict.py / slowest": folder_s / times[slowest].median}
    note = "Milliseconds a photo; predict.py without loading the weights. "
    note += f"{setup.machine.threads} threads decode, as many encode."
    return [Table("predict.py on a folder", [row], note)]


def measure_export(setup: Setup) -> list[Table]:
    """The exported ONNX graph under onnxruntime, on the CPU."""
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if lacking:
        return [Table("Exported graph", [], f"Left out: no {' and no '.join(lacking)} here")]
    onnxruntime = importlib.import_module("onnxruntime")
    file, cpu = setup.scratch / "stn_icnn.onnx", torch.device("cpu")
    with contextlib.redirect_stdout(io.StringIO()):
        build_s = clock(lambda: export(setup.checkpoints, onnx=file), cpu)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    model = load_for_inference(setup.checkpoints, cpu)
    rows: list[Row] = []
    for height, width in setup.sizes:
        photos = face_photos(1, height, width)
        labels: dict[str, np.ndarray] = {}
        functions: dict[str, Callable[[], np.ndarray]] = {
            "ours": partial(parse_photos, model, photos, cpu, "fp32"),
            "onnxruntime": partial(_run_graph, session, np.stack(photos)),
        }
        times = alternate(_keeping(functions, labels), cpu, setup.rounds)
        row: Row = {"photo": f"{height}×{width}", **{f"{n} ms": spread(t.seconds, 1e3) for n, t in times.items()}}
        rows.append({**row, "agrees %": agreement(labels["ours"], labels["onnxruntime"])})
    return [Table("Exported graph, one photo, CPU, fp32", rows, f"Written in {build_s:.1f} s")]


def _run_graph(session: Any, photos_BHW3: np.ndarray) -> np.ndarray:
    return session.run(["labels"], {"photos": photos_BHW3})[0]
