"""Training: images a second of each stage, the cache, memory, and several processes."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import train_cropper
import train_end2end
import train_stage1
import train_stage2
from data.batch import Batch
from data.labels import NINE, NUM_PARTS
from data.loaders import open_faces
from data.source import FaceData, open_source
from tools.benchmark import reference
from tools.benchmark.measure import (
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
from tools.benchmark.setup import REPOSITORY, Setup, face_photos, helen_folder
from training.engine import Scores, Task, fit
from training.losses import parts_loss, segmentation_loss
from training.task import ParserTask, Plan
from utils import runtime
from utils.errors import InputError
from utils.runtime import Machine

STAGES: dict[str, ModuleType] = {
    "stage1": train_stage1,
    "cropper": train_cropper,
    "stage2": train_stage2,
    "end2end": train_end2end,
}
CPU = Machine(torch.device("cpu"))
PAPER_IMAGES = 2000 * 5 * 25  # HELEN's training faces, folds, epochs: what a stage of the paper's schedule sees
FOLDS = 5


def build_stage(setup: Setup, stage: str, root: Path, machine: Machine) -> ParserTask:
    """A stage's task: the paper's recipe on a folder in HELEN's layout, networks as large as the checkpoint's."""
    script, config = STAGES[stage], setup.config
    sizes: dict[str, dict[str, Any]] = {
        "stage1": {"coarse_size": config.coarse_size},
        "cropper": {"localizer": config.localizer, "crop_size": config.crop_size},
        "stage2": {"crop_size": config.crop_size},
        "end2end": {},
    }
    plan = Plan(
        data=helen_data(setup, root),
        recipe=script.RECIPES.choose("paper", "helen").changed(batch_size=setup.batch_size),
        machine=machine,
        folder=setup.scratch / f"train-{stage}",
        start={"init_from": setup.checkpoints[0]} if stage in ("cropper", "end2end") else {},
        model=sizes[stage],
    )
    return script.build(plan)


def helen_data(setup: Setup, root: Path) -> FaceData:
    """The faces of a folder in HELEN's layout, which all measurements decode once."""
    return FaceData("helen", root, cache=setup.scratch / "cache")


@dataclass(frozen=True)
class Part:
    """The first ``count`` batches of an epoch."""

    batches: Any
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.batches))

    def __iter__(self) -> Iterator[Batch]:
        return islice(self.batches, self.count)


class Excerpt(Task):
    """The first ``steps`` of each epoch of a task, without validation."""

    def __init__(self, task: ParserTask, epochs: int, steps: int) -> None:
        super().__init__(dict(task.networks.items()), replace(task.optimisation, epochs=epochs))
        self.task, self.steps = task, steps
        self.stage, self.score, self.maximise = task.stage, task.score, task.maximise

    def batches(self, epoch: int) -> Part:
        return Part(self.task.batches(epoch), self.steps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.task(batch)

    def validate(self) -> Scores:
        return {self.score: 0.0}


def fit_seconds(task: ParserTask, epochs: int, steps: int) -> list[float]:
    """Seconds that the first ``steps`` of each epoch take in the real loop, validation left out."""
    run = task.run
    with contextlib.redirect_stdout(io.StringIO()):
        fit(Excerpt(task, epochs, steps), run)
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    shutil.rmtree(run.folder)
    return [max(row["train_s"], 0.005) for row in rows]


def count_images(batches: Sized, setup: Setup) -> int:
    """Images in as many batches as are timed."""
    return min(setup.steps, len(batches)) * setup.batch_size


def measure_training(setup: Setup) -> list[Table]:
    """Images a second of the four stages: with the data path, the step on a batch at hand, the networks alone."""
    device, root = setup.device, helen_folder(setup, setup.faces)
    peak = peak_flops(device, torch.bfloat16 if "bf16" in setup.precisions else torch.float32, setup.quick)
    epochs = 1 if setup.quick else 3
    rows: list[Row] = []
    for stage in STAGES:
        task = build_stage(setup, stage, root, setup.machine)
        images = count_images(task.batches(0), setup)
        seconds = fit_seconds(task, epochs, setup.steps)[-max(1, epochs - 1) :]
        batch = next(iter(task.batches(0))).to(device)
        step = _train_step(task, batch)
        network = _network_step(task, setup)
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
        f"{setup.machine.workers} workers, {images} images a measurement. Busy: the step's share of the time. "
        f"The paper's HELEN schedule, extrapolated: {whole_minutes:.1f} minutes for four stages, without validation."
    )
    return [Table("Training", rows, note), _beside_reference(setup, root)]


def learning(task: Task) -> dict[str, nn.Module]:
    """The networks that learn; all are put into the mode that training has them in."""
    for name, network in task.networks.items():
        network.train(task.optimisation.lr[name] > 0)
    return {name: network for name, network in task.networks.items() if task.optimisation.lr[name] > 0}


def _train_step(task: ParserTask, batch: Batch) -> Callable[[], None]:
    """One optimisation step of the stage's own on a batch that is on the device, augmentation there included."""
    machine = task.plan.machine
    learned = [p for network in learning(task).values() for p in network.parameters()]
    optimizer = torch.optim.Adam(learned, lr=1e-5)

    def step() -> None:
        with runtime.autocast(machine.device, machine.amp):
            loss = torch.stack(list(task(batch).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _network_step(task: ParserTask, setup: Setup) -> Callable[[], None]:
    """The same networks forward and backward on inputs that are there, without data, augmentation, crop or update."""
    config, count, device = setup.config, setup.batch_size, setup.device
    networks, lr = task.networks, task.optimisation.lr
    size, side = config.coarse_size, config.crop_size
    images = torch.rand(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
    crops = torch.rand(count, NUM_PARTS, 3, side, side, device=device)
    labels = torch.zeros(count, size, size, dtype=torch.long, device=device)
    targets = [torch.zeros(count, side, side, dtype=torch.long, device=device) for _ in range(NUM_PARTS)]

    def step() -> None:
        losses: list[Tensor] = []
        with runtime.autocast(device, setup.machine.amp):
            if "coarse" in networks:
                with torch.set_grad_enabled(lr["coarse"] > 0):
                    logits = networks["coarse"](images)
                if lr["coarse"] > 0:
                    losses.append(segmentation_loss(logits, labels))
            if "localizer" in networks:
                losses.append(networks["localizer"](logits.float().softmax(1)).square().mean())
            if "parts" in networks:
                losses.append(parts_loss(networks["parts"](crops), targets))
        networks.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()

    return step


def _beside_reference(setup: Setup, root: Path) -> Table:
    """Stage 1 and its data path alone, ours and the reference in turns, from the same files."""
    device, workers, size = setup.device, setup.machine.workers, setup.config.coarse_size
    samples = open_source(helen_data(setup, root), "train").samples
    samples = samples[: max(64, setup.batch_size)]  # the reference needs no long epochs
    plain_step = reference.stage1_step(setup.load_plain())
    task = build_stage(setup, "stage1", root, setup.machine)
    augmentation = task.plan.recipe.augmentation

    def reference_batches() -> Any:
        return reference.load_batches(samples, size, setup.batch_size, workers)

    images = {"ours": len(task.batches(0)), "reference": len(reference_batches())}
    images = {name: count * setup.batch_size for name, count in images.items()}
    fitted = count_images(task.batches(0), setup)

    def reference_epoch() -> None:
        for images_B3SS, labels_BSS in reference_batches():
            plain_step(images_B3SS, labels_BSS)

    def reference_data() -> None:
        for images_B3SS, labels_BSS in reference_batches():
            images_B3SS.to(device), labels_BSS.to(device)

    def our_data() -> None:
        for batch in task.batches(0):
            view = augmentation.view(batch.to(device))
            view.photo(size), view.label_map(size)

    rounds = Rounds(4 * setup.rounds.seconds, 1 if setup.quick else 3, 10)
    data = alternate({"ours": our_data, "reference": reference_data}, device, rounds)
    epochs: dict[str, list[float]] = {"ours": [], "reference": []}
    for _ in range(1 if setup.quick else 3):
        epochs["ours"] += fit_seconds(task, 2, setup.steps)[1:]
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
    note = f"{workers} workers each; ours reads the cache that it has built before. Images an epoch: "
    note += ", ".join(f"{name} {count}" for name, count in images.items()) + f"; {fitted} where ours trains"
    return Table("Training stage 1 beside the reference", rows, note)


def measure_cache(setup: Setup) -> list[Table]:
    """How fast photos and masks are decoded into a cache."""
    root, target = helen_folder(setup, setup.faces), setup.scratch / "new-cache"
    threads = setup.machine.threads
    sizes: list[int] = []

    def build() -> None:
        shutil.rmtree(target, ignore_errors=True)
        open_faces(FaceData("helen", root, cache=target), "train", NINE, threads=threads)
        sizes.append(sum(path.stat().st_size for path in target.rglob("*.bin")))

    times: Times = alternate({"build": build}, torch.device("cpu"), setup.rounds)["build"]
    rates = spread([setup.faces / seconds for seconds in times.seconds])
    row: Row = {"faces": setup.faces, "size": setup.face_size, "threads": threads, "faces/s": rates}
    row["MB a face"] = sizes[-1] / setup.faces / 1e6
    return [Table("Building the cache", [row], "A JPEG and eleven PNG masks for each face, in HELEN's layout.")]


def measure_memory(setup: Setup) -> list[Table]:
    """Largest resident set of processes of their own: a large photo, and training on few and on many faces."""
    height, width = (400, 600) if setup.quick else (4000, 6000)
    photo = setup.scratch / "large.jpg"
    Image.fromarray(face_photos(1, height, width)[0]).save(photo, quality=90)
    common = {"device": str(setup.device), "workers": setup.machine.workers, "scratch": str(setup.scratch)}
    checkpoints = [str(path) for path in setup.checkpoints]
    found = in_child("predict", {**common, "photo": str(photo), "checkpoints": checkpoints})
    rows: list[Row] = [{"what": f"predict.py, photo of {width}×{height}", **found}]
    few, many = (40, 80) if setup.quick else (1_000, 30_000)
    notes = ["MB. Before: once everything is imported. With workers: all processes, sampled, shared pages once."]
    for faces in (few, many):
        plan = {"faces": faces, "size": 64 if setup.quick else 512, "batch_size": setup.batch_size}
        plan |= {"steps": 2 if setup.quick else 30, "coarse_size": setup.config.coarse_size}
        rows.append({"what": f"training stage 1 on {faces:,} faces", **in_child("train", {**common, **plan})})
    if "peak" in rows[-1] and "peak" in rows[-2]:
        more = {key: rows[-1][key] - rows[-2][key] for key in ("peak", "with workers")}
        rows.append({"what": f"{many:,} faces more than {few:,}", **more})
    return [Table("Peak memory", rows, " ".join(notes))]


def in_child(kind: str, options: dict[str, Any]) -> Row:
    """Run ``tools.benchmark.child`` and return the row that it prints."""
    command = [sys.executable, "-m", "tools.benchmark.child", kind, json.dumps(options)]
    together = 0
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while True:
            try:
                output, errors = child.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                together = max(together, shared_out_bytes(child.pid))
    if child.returncode != 0:
        return {"failed": (errors.strip() or "killed").splitlines()[-1][:200]}
    return {**json.loads(output.strip().splitlines()[-1]), "with workers": together / 1e6}


def measure_distributed(setup: Setup) -> list[Table]:
    """What the processes tell each other in a step, and gloo on this machine's cores beside one process."""
    root = helen_folder(setup, min(setup.faces, max(32, setup.batch_size)))  # one thread trains all of an epoch
    rows: list[Row] = [{"stage": stage, **messages(build_stage(setup, stage, root, CPU))} for stage in STAGES]
    note = "Numbers of 4 bytes, all-reduced: gradients once a step, statistics of batch normalisation in each layer."
    tables = [Table("Communication in a step", rows, note)]
    alone, together = (_epoch_in_children(setup, root, processes) for processes in (1, 2))
    if alone is None or together is None:
        return [*tables, Table("Two processes", [], "Left out: a training process failed on this machine")]
    row: Row = {"stage": "stage1", "batch": setup.batch_size, "1 process s": alone, "2 processes s": together}
    row["speed-up"] = alone / together
    note = "Seconds of an epoch on the CPU, torchrun with gloo, one thread a process, the same global batch."
    return [*tables, Table("Two processes", [row], note)]


def messages(task: ParserTask) -> Row:
    """Bytes and messages of one step, by counting the calls of each batch normalisation."""
    counts = {"MB": 0.0, "messages": 0}

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training and isinstance(module, nn.BatchNorm2d):  # mean; variance; both of their gradients
            counts["MB"] += 4 * 4 * module.num_features / 1e6
            counts["messages"] += 3

    learned = learning(task).values()
    hooks = [layer.register_forward_hook(count) for network in learned for layer in network.modules()]
    task(next(iter(task.batches(0))))
    for hook in hooks:
        hook.remove()
    gradients = 4 * sum(p.numel() for network in learned for p in network.parameters()) / 1e6
    return {
        "gradients MB": gradients,
        "statistics MB": counts["MB"],
        "messages": 1 + counts["messages"],
        "batch": task.plan.recipe.batch_size,
    }


def _epoch_in_children(setup: Setup, root: Path, processes: int) -> float | None:
    """Seconds of the last epoch of stage 1, trained by this many processes; None where they fail."""
    folder, data = setup.scratch / f"by{processes}", helen_data(setup, root)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "train_stage1.py", "--recipe", "paper"]
    command += ["--dataset", data.dataset, "--data", str(data.root), "--cache", str(data.cache), "--device", "cpu"]
    command += ["--batch-size", str(setup.batch_size), "--coarse-size", str(setup.config.coarse_size)]
    command += ["--workers", "0", "--epochs", "1" if setup.quick else "2", "--run-dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if ended.returncode != 0:
        return None
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["train_s"]


def check(setup: Setup) -> None:
    """Raises InputError where the options cannot make an epoch."""
    if setup.faces * FOLDS < setup.batch_size:
        raise InputError(f"--faces {setup.faces}: five times as many must fill a batch of {setup.batch_size}")
