"""Training: images a second of each stage, the cache, memory, and several processes."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import train_cropper
import train_end2end
import train_stage1
import train_stage2
from benchmarks import reference
from benchmarks.measure import (
    Rounds,
    Row,
    Table,
    Times,
    alternate,
    clock,
    count_flops,
    peak_flops,
    shared_out_bytes,
    spread,
)
from benchmarks.setup import REPOSITORY, Setup, face_photos, helen_folder
from data.augment import draw, whole, whole_labels
from data.labels import PART_LABELS
from data.loading import Batch, open_faces
from data.source import open_source
from models.pretrained import load_model
from utils import engine, runtime
from utils.errors import InputError
from utils.losses import parts_loss, segmentation_loss

STAGES: dict[str, ModuleType] = {
    "stage1": train_stage1,
    "cropper": train_cropper,
    "stage2": train_stage2,
    "end2end": train_end2end,
}
PAPER_IMAGES = 2000 * 5 * 25  # HELEN's training faces, folds, epochs: what a stage of the paper's schedule sees
FOLDS = 5


def stage_options(setup: Setup, stage: str, root: Path, run_dir: Path, device: str, workers: int) -> list[str]:
    """Options of a training script: the paper's recipe on this folder, networks as large as the checkpoint's."""
    config = load_model(setup.checkpoints).config
    options = ["--dataset", "helen", "--data", str(root), "--cache", str(setup.scratch / "cache"), "--recipe", "paper"]
    options += ["--batch-size", str(setup.batch_size), "--workers", str(workers), "--device", device]
    options += ["--run-dir", str(run_dir), "--amp", "auto"]
    if stage == "stage1":
        return [*options, "--coarse-size", str(config.coarse_size)]
    if stage == "stage2":
        return [*options, "--crop-size", str(config.crop_size)]
    options += ["--init-from", str(setup.checkpoints[0])]
    if stage == "cropper":
        options += ["--localizer", config.localizer, "--crop-size", str(config.crop_size)]
    return options


def take_fit(script: ModuleType, options: list[str]) -> dict[str, Any]:
    """What a training script hands to ``utils.engine.fit``: its modules, step, batches and optimisation."""
    taken: dict[str, Any] = {}
    with mock.patch.object(script, "fit", lambda **arguments: taken.update(arguments)):
        script.main(options)
    return taken


@dataclass(frozen=True)
class Part:
    """The first ``count`` batches of an epoch."""

    batches: Any
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.batches))

    def __iter__(self) -> Iterator[Batch]:
        return islice(self.batches, self.count)


def fit_seconds(taken: dict[str, Any], epochs: int, steps: int, run_dir: Path) -> list[float]:
    """Seconds that the first ``steps`` of each epoch take in the real loop, validation left out."""
    batches = taken["batches"]
    changed = {
        "batches": lambda epoch: Part(batches(epoch), steps),
        "optimisation": replace(taken["optimisation"], epochs=epochs),
        "validate": lambda: {taken["score"]: 0.0},
        "picture": lambda: np.zeros((8, 8, 3), np.uint8),
        "run_dir": run_dir,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        engine.fit(**{**taken, **changed})
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    shutil.rmtree(run_dir)
    return [max(row["train_s"], 0.005) for row in rows]


def measure_training(setup: Setup) -> list[Table]:
    """Images a second of the four stages: with the data path, the step on a batch at hand, the networks alone."""
    device, root = setup.device, helen_folder(setup, setup.faces)
    peak = peak_flops(device, torch.bfloat16 if runtime.has_fast_bf16(device) else torch.float32, setup.quick)
    epochs = 1 if setup.quick else 3
    rows: list[Row] = []
    for stage, script in STAGES.items():
        options = stage_options(setup, stage, root, setup.scratch / stage, str(device), setup.workers)
        taken = take_fit(script, options)
        batches = taken["batches"](0)
        images = len(Part(batches, setup.steps)) * setup.batch_size
        seconds = fit_seconds(taken, epochs, setup.steps, setup.scratch / stage)[-max(1, epochs - 1) :]
        batch = next(iter(batches)).to(device)
        step = _train_step(taken, batch)
        network = _network_step(taken["modules"], taken["optimisation"].lr, setup, device)
        flops = count_flops(step)
        times = alternate({"step": step, "networks": network}, device, setup.few_rounds)
        rate = {name: setup.batch_size / measured.median for name, measured in times.items()}
        with_data = images / float(np.median(seconds))
        row: Row = {"stage": stage, "images/s": spread([images / s for s in seconds])}
        row |= {"step on a batch at hand images/s": rate["step"], "networks alone images/s": rate["networks"]}
        row |= {"GFLOP an image": flops / setup.batch_size / 1e9}
        row["% of peak"] = 100 * flops / setup.batch_size * with_data / peak
        row["busy %"] = 100 * with_data / rate["step"]
        row["paper's schedule minutes"] = PAPER_IMAGES / with_data / 60
        rows.append(row)
    whole_minutes = sum(row["paper's schedule minutes"] for row in rows)
    note = (
        f"HELEN's layout at {setup.face_size}×{setup.face_size}, paper recipe, batches of {setup.batch_size}, "
        f"{setup.workers} workers, {images} images a measurement. Busy: the step's share of the time. "
        f"The paper's HELEN schedule, extrapolated: {whole_minutes:.1f} minutes for four stages, without validation."
    )
    return [Table("Training", rows, note), _beside_reference(setup, root)]


def _train_step(taken: dict[str, Any], batch: Any) -> Callable[[], None]:
    """One optimisation step of the stage's own on a batch that is on the device, augmentation there included."""
    lr, modules, device = taken["optimisation"].lr, taken["modules"], taken["device"]
    for name, module in modules.items():
        module.train(lr[name] > 0)
    learned = [p for name, module in modules.items() if lr[name] > 0 for p in module.parameters()]
    optimizer = torch.optim.Adam(learned, lr=1e-5)

    def step() -> None:
        with runtime.autocast(device, taken["amp"]):
            loss, _ = taken["step"](batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _network_step(
    modules: dict[str, nn.Module], lr: dict[str, float], setup: Setup, device: torch.device
) -> Callable[[], None]:
    """The same modules forward and backward on inputs that lie there, without data, augmentation, crop or update."""
    config, count = load_model(setup.checkpoints).config, setup.batch_size
    size, side = config.coarse_size, config.crop_size
    images = torch.rand(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
    crops = torch.rand(count, 6, 3, side, side, device=device)
    labels = torch.zeros(count, size, size, dtype=torch.long, device=device)
    targets = [torch.zeros(count, side, side, dtype=torch.long, device=device) for _ in PART_LABELS]

    def step() -> None:
        losses: list[Tensor] = []
        with runtime.autocast(device, "auto"):
            if "coarse" in modules:
                with torch.set_grad_enabled(lr["coarse"] > 0):
                    logits = modules["coarse"](images)
                if lr["coarse"] > 0:
                    losses.append(segmentation_loss(logits, labels))
            if "localizer" in modules:
                losses.append(modules["localizer"](logits.float().softmax(1)).square().mean())
            if "parts" in modules:
                losses.append(parts_loss(modules["parts"](crops), targets))
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()

    return step


def _beside_reference(setup: Setup, root: Path) -> Table:
    """Stage 1 and its data path alone, ours and the reference in turns, from the same files."""
    device, size = setup.device, load_model(setup.checkpoints).config.coarse_size
    samples = open_source("helen", root, "train").samples[: max(64, setup.batch_size)]  # it needs no long epochs
    plain_step = reference.stage1_step(setup.load_plain())
    options = stage_options(setup, "stage1", root, setup.scratch / "beside", str(device), setup.workers)
    taken = take_fit(train_stage1, options)
    augmentation = train_stage1.PAPER_HELEN.augmentation

    def reference_batches() -> Any:
        return reference.load_batches(samples, size, setup.batch_size, setup.workers)

    images = {"ours": len(taken["batches"](0)), "reference": len(reference_batches())}
    images = {name: count * setup.batch_size for name, count in images.items()}
    fitted = len(Part(taken["batches"](0), setup.steps)) * setup.batch_size

    def reference_epoch() -> None:
        for images_B3SS, labels_BSS in reference_batches():
            plain_step(images_B3SS, labels_BSS)

    def reference_data() -> None:
        for images_B3SS, labels_BSS in reference_batches():
            images_B3SS.to(device), labels_BSS.to(device)

    def our_data() -> None:
        for batch in taken["batches"](0):
            batch = batch.to(device)
            view = draw(augmentation, batch)
            whole(batch, view, size), whole_labels(batch, view, size)

    rounds = Rounds(4 * setup.rounds.seconds, 1 if setup.quick else 3, 10)
    data = alternate({"ours": our_data, "reference": reference_data}, device, rounds)
    epochs: dict[str, list[float]] = {"ours": [], "reference": []}
    for _ in range(1 if setup.quick else 3):
        epochs["ours"] += fit_seconds(taken, 2, setup.steps, setup.scratch / "beside")[1:]
        epochs["reference"].append(clock(reference_epoch, device))
    rows: list[Row] = []
    for what, ours, theirs in (
        ("stage 1 from files", epochs["ours"], epochs["reference"]),
        ("data path alone", data["ours"].seconds, data["reference"].seconds),
    ):
        row: Row = {"what": what}
        counts = {**images, "ours": fitted} if what == "stage 1 from files" else images
        for name, seconds in (("ours", ours), ("reference", theirs)):
            row[f"{name} images/s"] = spread([counts[name] / s for s in seconds])
        rows.append({**row, "speed-up": row["ours images/s"]["median"] / row["reference images/s"]["median"]})
    note = f"{setup.workers} workers each; ours reads the cache that it has built before. Images an epoch: "
    note += ", ".join(f"{name} {count}" for name, count in images.items()) + f"; {fitted} where ours trains"
    return Table("Training stage 1 beside the reference", rows, note)


def measure_cache(setup: Setup) -> list[Table]:
    """How fast photos and masks are decoded into a cache."""
    root, target = helen_folder(setup, setup.faces), setup.scratch / "new-cache"
    sizes: list[int] = []

    def build() -> None:
        shutil.rmtree(target, ignore_errors=True)
        open_faces("helen", root, "train", target, workers=setup.threads)
        sizes.append(sum(path.stat().st_size for path in target.rglob("*.bin")))

    times: Times = alternate({"build": build}, torch.device("cpu"), setup.rounds)["build"]
    rates = spread([setup.faces / seconds for seconds in times.seconds])
    row: Row = {"faces": setup.faces, "size": setup.face_size, "threads": setup.threads, "faces/s": rates}
    row["MB a face"] = sizes[-1] / setup.faces / 1e6
    return [Table("Building the cache", [row], "A JPEG and eleven PNG masks for each face, in HELEN's layout.")]


def measure_memory(setup: Setup) -> list[Table]:
    """Largest resident set of processes of their own: a large photo, and training on few and on many faces."""
    height, width = (400, 600) if setup.quick else (4000, 6000)
    photo = setup.scratch / "large.jpg"
    Image.fromarray(face_photos(1, height, width)[0]).save(photo, quality=90)
    common = {"device": str(setup.device), "workers": setup.workers, "scratch": str(setup.scratch)}
    checkpoints = [str(path) for path in setup.checkpoints]
    found = in_child("predict", {**common, "photo": str(photo), "checkpoints": checkpoints})
    rows: list[Row] = [{"what": f"predict.py, photo of {width}×{height}", **found}]
    coarse_size = load_model(setup.checkpoints).config.coarse_size
    few, many = (40, 80) if setup.quick else (1_000, 30_000)
    notes = ["MB. Before: once everything is imported. With workers: all processes, sampled, shared pages once."]
    for faces in (few, many):
        plan = {"faces": faces, "size": 64 if setup.quick else 512, "batch_size": setup.batch_size}
        plan |= {"steps": 2 if setup.quick else 30, "coarse_size": coarse_size}
        rows.append({"what": f"training stage 1 on {faces:,} faces", **in_child("train", {**common, **plan})})
    if "peak" in rows[-1] and "peak" in rows[-2]:
        more = {key: rows[-1][key] - rows[-2][key] for key in ("peak", "with workers")}
        rows.append({"what": f"{many:,} faces more than {few:,}", **more})
    return [Table("Peak memory", rows, " ".join(notes))]


def in_child(kind: str, options: dict[str, Any]) -> Row:
    """Run ``benchmarks.child`` and return the row that it prints."""
    command = [sys.executable, "-m", "benchmarks.child", kind, json.dumps(options)]
    together = 0
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while True:
            try:
                told, complaint = child.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                together = max(together, shared_out_bytes(child.pid))
    if child.returncode != 0:
        return {"failed": (complaint.strip() or "killed").splitlines()[-1][:200]}
    return {**json.loads(told.strip().splitlines()[-1]), "with workers": together / 1e6}


def measure_distributed(setup: Setup) -> list[Table]:
    """What the processes tell each other in a step, and gloo on this machine's cores beside one process."""
    root = helen_folder(setup, min(setup.faces, max(32, setup.batch_size)))  # one thread trains all of an epoch
    rows = []
    for stage, script in STAGES.items():
        options = stage_options(setup, stage, root, setup.scratch / stage, "cpu", 0)
        rows.append({"stage": stage, **messages(take_fit(script, options))})
    told = "Numbers of 4 bytes, all-reduced: gradients once a step, statistics of batch normalisation in each layer."
    tables = [Table("Communication in a step", rows, told)]
    alone, together = (_epoch_in_children(setup, root, processes) for processes in (1, 2))
    if alone is None or together is None:
        return [*tables, Table("Two processes", [], "Left out: a training process failed on this machine")]
    row: Row = {"stage": "stage1", "batch": setup.batch_size, "1 process s": alone, "2 processes s": together}
    row["speed-up"] = alone / together
    note = "Seconds of an epoch on the CPU, torchrun with gloo, one thread a process, the same global batch."
    return [*tables, Table("Two processes", [row], note)]


def messages(taken: dict[str, Any]) -> Row:
    """Bytes and messages of one step, by counting the calls of each batch normalisation."""
    modules, lr = taken["modules"], taken["optimisation"].lr
    counts = {"MB": 0.0, "messages": 0}

    def normalised(module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training and isinstance(module, nn.BatchNorm2d):  # mean; variance; both of their gradients
            counts["MB"] += 4 * 4 * module.num_features / 1e6
            counts["messages"] += 3

    learned = [module for name, module in modules.items() if lr[name] > 0]
    for name, module in modules.items():
        module.train(lr[name] > 0)
    hooks = [layer.register_forward_hook(normalised) for module in learned for layer in module.modules()]
    taken["step"](next(iter(taken["batches"](0))))
    for hook in hooks:
        hook.remove()
    gradients = 4 * sum(p.numel() for module in learned for p in module.parameters()) / 1e6
    return {
        "gradients MB": gradients,
        "statistics MB": counts["MB"],
        "messages": 1 + counts["messages"],
        "batch": taken["description"]["recipe"]["batch_size"],
    }


def _epoch_in_children(setup: Setup, root: Path, processes: int) -> float | None:
    """Seconds of the last epoch of stage 1, trained by this many processes; None where they fail."""
    run_dir = setup.scratch / f"by{processes}"
    options = stage_options(setup, "stage1", root, run_dir, "cpu", 0)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "train_stage1.py", *options]
    command += ["--epochs", "1" if setup.quick else "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if ended.returncode != 0:
        return None
    return json.loads((run_dir / "log.jsonl").read_text().splitlines()[-1])["train_s"]


def check_training(setup: Setup) -> None:
    """Raises InputError where the options cannot make an epoch."""
    if setup.faces * FOLDS < setup.batch_size:
        raise InputError(f"--faces {setup.faces}: five times as many must fill a batch of {setup.batch_size}")
