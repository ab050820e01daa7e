"""Training: the real loop of every stage, timed between its batches."""

import contextlib
import importlib
import io
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from data.batch import Batch
from data.loaders import Faces
from data.source import FaceData
from tools.benchmark.measure import Row, Setup, Table, clock
from training.engine import fit
from training.task import ParserTask, Plan

STAGES = ("stage1", "cropper", "stage2", "end2end")
SCRIPTS = {name: importlib.import_module(f"train_{name}") for name in (*STAGES, "deeplab", "eagrnet")}
PAPER_VIEWS = 2000 * 5 * 25  # HELEN's training faces, folds, epochs: what a stage of the paper's schedule sees
SMALL = {"stage1": {"coarse_size": 32}, "stage2": {"crop_size": 17}, "deeplab": {"size": 64}, "eagrnet": {"size": 97}}


class Case(NamedTuple):
    """One training. amp: "off" or "bf16". batch: None for the recipe's."""

    stage: str
    recipe: str
    amp: str
    batch: int | None = None


class Repeated(Dataset):
    """A split whose faces come up ``times`` times in an epoch. loader: see ``data.loaders``."""

    loader: Any = None

    def __init__(self, faces: Faces, times: int) -> None:
        self.faces, self.times, self.collate = faces, times, faces.collate

    def __len__(self) -> int:
        return len(self.faces) * self.times

    def __getitem__(self, ticket: tuple[int, Any]) -> Any:
        return self.faces[ticket[0] % len(self.faces), ticket[1]]


class Timed:
    """The batches of an epoch. milliseconds: what a step took, once they were gone over, without the first ones."""

    milliseconds = math.nan

    def __init__(self, batches: Iterable[Batch], first: int, steps: int, device: torch.device) -> None:
        self.batches, self.first, self.steps, self.device = batches, first, steps, device

    def __len__(self) -> int:
        return self.first + self.steps

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches)
        yield from islice(batches, self.first)
        started = clock(self.device)
        yield from islice(batches, self.steps)
        self.milliseconds = 1e3 * (clock(self.device) - started) / self.steps


def build_task(setup: Setup, case: Case, data: FaceData) -> ParserTask:
    """The task of a case, where needed from the weights that are measured."""
    if setup.quick:
        case = case._replace(amp="off", batch=2)
    recipe = SCRIPTS[case.stage].RECIPES.choose(case.recipe, data.dataset).changed(batch_size=case.batch)
    model = SMALL.get(case.stage, {}) if setup.quick else {}
    start = {"init_from": setup.checkpoints[0]} if case.stage in ("cropper", "end2end") else {}
    machine, folder = replace(setup.machine, amp=case.amp), setup.scratch / "run"
    return SCRIPTS[case.stage].build(Plan(data, recipe, machine, folder, start=start, model=model))


def time_steps(task: ParserTask, steps: int) -> tuple[float, float]:
    """Milliseconds that a step of a task takes in the real loop, at a thousandth of its learning rates: on a few
    batches at hand, which are repeated; and on those of the loader, once what was loaded ahead is used up."""
    plan, optimisation, run = task.plan, task.optimisation, task.run
    device, size = plan.machine.device, plan.recipe.batch_size
    warm_up = 1 if device.type == "cpu" else 8
    ahead = warm_up + 4 * plan.machine.workers
    faces = len(task.train_faces) * plan.recipe.augmentation.folds
    task.train_faces = Repeated(task.train_faces, math.ceil((ahead + steps) * size / faces))  # type: ignore[assignment]
    at_hand = Timed(cycle(list(islice(task.batches(0), 3))), warm_up, steps, device)
    loaded = Timed(task.batches(1), ahead, steps, device)
    rates = {name: rate / 1000 for name, rate in optimisation.lr.items()}
    task.optimisation = replace(optimisation, epochs=2, lr=rates, schedule="constant")
    task.batches = (at_hand, loaded).__getitem__  # type: ignore[method-assign, assignment]
    task.validate = lambda: {task.score: 0.0}  # type: ignore[method-assign]
    task.picture = lambda: None  # type: ignore[assignment, method-assign, return-value]
    shutil.rmtree(run.folder, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):
        fit(task, run)
    return at_hand.milliseconds, loaded.milliseconds


def measure_training(setup: Setup, cases: Sequence[Case] = ()) -> list[Table]:
    """Faces a second of trainings, by default of the paper's four stages, whose whole schedule the note tells."""
    data = FaceData(face_size=setup.face_size, max_images=setup.faces, cache=setup.scratch / "cache")
    device, rows = setup.device, []
    for case in cases or [Case(stage, "paper", setup.machine.amp, 32) for stage in STAGES]:
        task = build_task(setup, case, data)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        size, (ms, ms_loaded) = task.plan.recipe.batch_size, time_steps(task, setup.steps)
        row: Row = {"training": case.stage, "recipe": case.recipe, "amp": task.plan.machine.amp, "batch": size}
        row |= {"ms a step": ms, "faces/s": 1e3 * size / ms, "faces/s with loader": 1e3 * size / ms_loaded}
        if device.type == "cuda":
            row["peak GB"] = torch.cuda.max_memory_allocated(device) / 1e9
        rows.append(row)
    note = f"With loader: {setup.machine.workers} processes; else batches that are at hand."
    if not cases:
        minutes = sum(PAPER_VIEWS / row["faces/s with loader"] for row in rows) / 60
        note += f" HELEN's {PAPER_VIEWS:,} views a stage at this speed: {minutes:.1f} minutes for all stages."
    return [Table("Training" if cases else "The paper's training", rows, note)]
