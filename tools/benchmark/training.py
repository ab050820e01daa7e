"""Training: the real loop of every stage, timed between its batches; the cache and the loader."""

import contextlib
import importlib
import io
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from data.batch import Batch
from data.loaders import Faces
from data.source import FaceData
from tools.benchmark.measure import Row, Setup, Table, clock, drawn_faces
from training.engine import fit
from training.task import ParserTask, Plan

STAGES = ("stage1", "cropper", "stage2", "end2end")
SCRIPTS = {name: importlib.import_module(f"train_{name}") for name in (*STAGES, "deeplab", "eagrnet")}
PAPER_VIEWS = 2000 * 5 * 25  # HELEN's training faces, folds, epochs: what a stage of the paper's schedule sees
Observer = Callable[[Iterator[Batch], Row], Iterator[Batch]]  # gives on so many batches, and fills the row
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


@dataclass(frozen=True)
class Batches:
    """What the loop goes over in an epoch."""

    make: Callable[[], Iterator[Batch]]
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


def build_task(setup: Setup, case: Case, data: FaceData) -> ParserTask:
    """The task of a case, where needed from the weights that are measured."""
    recipe = SCRIPTS[case.stage].RECIPES.choose(case.recipe, data.dataset).changed(batch_size=case.batch)
    model = SMALL.get(case.stage, {}) if setup.quick else {}
    start = {"init_from": setup.checkpoints[0]} if case.stage in ("cropper", "end2end") else {}
    machine, folder = replace(setup.machine, amp=case.amp), setup.scratch / "run"
    return SCRIPTS[case.stage].build(Plan(data, recipe, machine, folder, start=start, model=model))


def watch(task: ParserTask, steps: int, row: Row, observe: Observer | None = None, more: int = 0) -> None:
    """Fills a row with what ``steps`` of a task take in the real loop, at a thousandth of its learning rates.

    The first epoch repeats a few batches that are at hand, for ``observe`` too, which takes ``more`` steps. The second
    takes them from the loader, and is timed once what was loaded ahead is used up.
    """
    plan, optimisation, take, run = task.plan, task.optimisation, task.batches, task.run
    device, size = plan.machine.device, plan.recipe.batch_size
    warm_up = 1 if device.type == "cpu" else 8
    ahead = warm_up + 4 * plan.machine.workers
    faces = len(task.train_faces) * plan.recipe.augmentation.folds
    task.train_faces = Repeated(task.train_faces, math.ceil((ahead + steps) * size / faces))  # type: ignore[assignment]

    def at_hand() -> Iterator[Batch]:
        batches = cycle(list(islice(take(0), 3)))
        yield from islice(batches, warm_up)
        started = clock(device)
        yield from islice(batches, steps)
        seconds = (clock(device) - started) / steps
        row.update({"ms a step": 1e3 * seconds, "faces/s": size / seconds})
        if observe is not None:
            yield from observe(batches, row)

    def loaded() -> Iterator[Batch]:
        batches = iter(take(1))
        yield from islice(batches, ahead)
        started = clock(device)
        yield from islice(batches, steps)
        row["faces/s with loader"] = steps * size / (clock(device) - started)

    epochs = Batches(at_hand, warm_up + steps + more), Batches(loaded, ahead + steps)
    rates = {name: rate / 1000 for name, rate in optimisation.lr.items()}
    task.optimisation = replace(optimisation, epochs=len(epochs), lr=rates, schedule="constant")
    task.batches = epochs.__getitem__  # type: ignore[method-assign, assignment]
    task.validate = lambda: {task.score: 0.0}  # type: ignore[method-assign]
    task.picture = lambda: None  # type: ignore[assignment, method-assign, return-value]
    shutil.rmtree(run.folder, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):
        fit(task, run)


def measure_training(setup: Setup) -> list[Table]:
    """Faces a second of the paper's four stages."""
    data, rows = drawn_faces(setup), []
    for stage in STAGES:
        task = build_task(setup, Case(stage, "paper", setup.machine.amp, 2 if setup.quick else 32), data)
        rows.append({"training": stage, "recipe": "paper", "batch": task.plan.recipe.batch_size})
        watch(task, setup.steps, rows[-1])
    note = f"{schedule(rows)} With loader: {setup.machine.workers} processes; else batches that are at hand."
    return [Table("Training", rows, note)]


def schedule(rows: list[Row]) -> str:
    """The paper's schedule on HELEN at the speed of these rows, in words."""
    seconds = [PAPER_VIEWS / row["faces/s with loader"] for row in rows]
    return f"HELEN's {PAPER_VIEWS:,} views a stage at this speed: {sum(seconds) / 60:.1f} minutes for all stages."


def measure_cache(setup: Setup) -> list[Table]:
    """How fast faces are decoded into a cache, and loaded from it with their photos."""
    data, workers, target = drawn_faces(setup), setup.machine.workers, setup.scratch / "new-cache"
    case = Case("stage2", "paper", "off", 2 if setup.quick else 32)
    started = time.perf_counter()
    task = build_task(setup, case, replace(data, cache=target))
    built = time.perf_counter()
    loaded = sum(len(batch.index_B) for batch in task.batches(0))
    ended, faces = time.perf_counter(), len(task.train_faces)
    megabytes = sum(path.stat().st_size for path in target.rglob("photos.bin")) / 1e6
    row: Row = {"faces": faces, "size": setup.face_size, "MB of photos": megabytes}
    row |= {"cached faces/s": faces / (built - started), "loaded faces/s": loaded / (ended - built)}
    note = f"A JPEG and a PNG each; {setup.machine.threads} threads decode, {workers} processes load."
    return [Table("Cache and loader", [row], note)]
