"""The training loop and the evaluation loop that every parser shares. It knows neither models nor data sets."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training import batchnorm
from training.casts import cast_together
from utils import checkpoint, distributed, files, locks, runtime
from utils.errors import InputError

LOOK_EVERY = 50  # steps after which the host waits for the device to see their losses
Scores = dict[str, float]


@dataclass(frozen=True)
class Optimisation:
    """How a stage is optimised.

    lr: learning rate of each network; a network at 0 is frozen, batch statistics included. NETWORK.PATH: that of a
    module within a network, such as "parts.nets.brows", where it has its own.
    optimizer: "adam", "adamw", "sgd" (momentum 0.9) or "adagrad" (TensorFlow's: sums of squares start at 0.1).
    schedule: "halve" (every five epochs, paper), "step F N" (times F every N epochs), "onecycle", "restarts" (cosine
    from epoch to epoch, anew after 10, 20, 40, … epochs), "polynomial" (power 0.9) or "constant".
    clip: largest gradient norm, 0 for no limit.
    """

    epochs: int
    lr: dict[str, float]
    optimizer: str = "adam"
    schedule: str = "halve"
    weight_decay: float = 0.0
    clip: float = 0.0


class Batches(Protocol):
    """An epoch's batches, such as a DataLoader or a list."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class Task(nn.Module):
    """What a training script builds and ``fit`` trains.

    stage: its name in checkpoints. networks: what is saved, by name; each has its own learning rate.
    score: the entry of ``validate()`` that decides which epoch is the best; maximise: whether higher is better.
    is_parser: whether its checkpoints alone are a parser that predict.py takes.
    """

    stage: str
    score: str = "f1"
    maximise: bool = True
    is_parser: bool = False

    def __init__(self, networks: dict[str, nn.Module], optimisation: Optimisation) -> None:
        super().__init__()
        self.networks, self.optimisation = nn.ModuleDict(networks), optimisation

    def batches(self, epoch: int) -> Batches:
        """This process's share of an epoch's batches.

        Everything random in a batch must come from the seed and the epoch: that is what makes a resumed run equal to
        an uninterrupted one.
        """
        raise NotImplementedError

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch by name; their sum is minimised. Runs under autocast."""
        raise NotImplementedError

    def validate(self) -> Scores:
        """Scores on the validation split, over all processes."""
        raise NotImplementedError

    def picture(self) -> np.ndarray | None:
        """What TensorBoard shows of an epoch: uint8 (H, W, 3)."""
        return None


@dataclass(frozen=True)
class Run:
    """Where and how a task is trained.

    folder: where its files go. resume: continue the run in it. device, amp: see ``utils.runtime``.
    description: plain values that go into the checkpoints (config, data set, seed, recipe) and must be the same when
    the run is resumed. save_every, validate_every: epochs from one ``last.pt``, or validation, to the next, counted
    from the first epoch; the last has both. score_start: the weights that training starts from are scored too, as epoch
    0, and kept as the best while no epoch is better.
    """

    folder: Path
    resume: bool
    device: torch.device
    amp: str
    description: dict[str, Any]
    save_every: int = 1
    validate_every: int = 1
    score_start: bool = False


def learning_rate_factor(schedule: str, progress: float, epochs: int) -> float:
    """Share of the full learning rate at ``progress`` (epochs done, with fractions). schedule: see ``Optimisation``;
    raises ValueError for another."""
    if schedule == "halve":
        return 0.5 ** (int(progress) // 5)
    if schedule.startswith("step "):
        _, factor, every = schedule.split()
        return float(factor) ** (int(progress) // int(every))
    if schedule == "onecycle":
        warm_up, share = 0.15, progress / epochs
        if share < warm_up:
            return 0.04 + 0.96 * share / warm_up
        return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up))) + 1e-4
    if schedule == "restarts":
        epoch, cycle = int(progress), 10
        while epoch >= cycle:
            epoch, cycle = epoch - cycle, 2 * cycle
        return 0.5 * (1 + math.cos(math.pi * epoch / cycle))
    if schedule == "polynomial":
        return (1 - progress / epochs) ** 0.9
    if schedule == "constant":
        return 1.0
    raise ValueError(f"no schedule is called {schedule!r}")


def fit(task: Task, run: Run) -> Scores:
    """Train a task; keep ``last.pt`` (everything, to resume) and ``best.pt`` (weights alone) in the run's folder.

    Returns the best epoch's row of the log. Raises InputError for a run folder in use, a checkpoint that does not
    continue this run, a loss that is not finite, and processes that were started differently or have ended.
    """
    with distributed.explain_lost():
        distributed.require_same({**run.description, "amp": run.amp, "resume": run.resume})
        with locks.one_run(run.folder, "--run-dir"):
            return _fit(task, run)


def _fit(task: Task, run: Run) -> Scores:
    """See ``fit``."""
    task.to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.requires_grad_(False)
    torch.backends.cudnn.benchmark = run.device.type == "cuda"  # the networks' inputs keep their sizes
    modules = _rated_modules(task)
    for name, module in modules.items():
        module.requires_grad_(task.optimisation.lr[name] > 0)
        if any(parameter.requires_grad for parameter in module.parameters()):
            batchnorm.prepare(module, run.device)
    optimizer = _optimizer(task.optimisation, modules, run.device)
    first_epoch, best = 0, None
    if run.resume:
        first_epoch, best = _resume(task, run, optimizer)
    else:
        refuse_used(run.folder)
    if len(set(distributed.gather(first_epoch))) > 1:
        raise InputError(f"the processes do not share the folder {run.folder}: use one that all machines share")
    epochs = task.optimisation.epochs
    if best is not None and first_epoch >= epochs:
        return best
    lead = distributed.rank() == 0
    writer = _begin_log(task, run, first_epoch) if lead else None
    distributed.barrier()
    step = _averaging(task, run.device) if dist.is_initialized() else task

    if run.score_start and first_epoch == 0:
        started = time.monotonic()
        scores, picture = _validated(task, run)
        best = {"epoch": 0, **scores, "val_s": round(time.monotonic() - started, 2)}
        if writer is not None:
            _log_epoch(task, run, optimizer, writer, best, best, picture, False)
        distributed.barrier()
    for epoch in range(first_epoch, epochs):
        started = time.monotonic()
        for name, module in modules.items():
            module.train(task.optimisation.lr[name] > 0)
        losses = _train_epoch(task, step, optimizer, epoch, run)
        trained = time.monotonic()
        scores, picture, last = Scores(), None, epoch + 1 == epochs
        if validated := last or epoch % run.validate_every == 0:
            scores, picture = _validated(task, run)
        row = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], **losses, **scores}
        row |= {"train_s": round(trained - started, 2), "val_s": round(time.monotonic() - trained, 2)}
        if best is None or (validated and _is_better(scores[task.score], best[task.score], task.maximise)):
            best = row
        if writer is not None:
            _log_epoch(task, run, optimizer, writer, row, best, picture, last or epoch % run.save_every == 0)
        distributed.barrier()  # not in the next step, see ``distributed.PATIENCE``
    assert best is not None
    if writer is not None:
        writer.close()
        path = run.folder / "best.pt"
        where = f"epoch {best['epoch']:.0f}" if best["epoch"] else "the start, which no epoch has improved"
        print(f"{task.stage}: best {task.score} {best[task.score]:.4f} at {where}: {path}")
        if task.is_parser:
            print(f"now try: python predict.py PHOTO --checkpoint {path}")
    return best


def refuse_used(folder: Path) -> None:
    """Raises InputError where a run lies already."""
    if (folder / "last.pt").exists() or (folder / "best.pt").exists():
        raise InputError(f"{folder} already holds a run: continue it with --resume, or choose another --run-dir")


def _averaging(task: Task, device: torch.device) -> nn.Module:
    """The task, with its gradients averaged over the processes."""
    step = DistributedDataParallel(task, process_group=distributed.group(device))
    step.broadcast_buffers = False  # batch statistics are the same everywhere; as an argument newer torch warns of it
    return step


def _rated_modules(task: Task) -> dict[str, nn.Module]:
    """What has its own learning rate, by name: the networks, then modules within them."""
    within = [name for name in task.optimisation.lr if "." in name]
    return {name: task.networks.get_submodule(name) for name in (*task.networks, *within)}


def _optimizer(
    optimisation: Optimisation, modules: dict[str, nn.Module], device: torch.device
) -> torch.optim.Optimizer:
    """One parameter group for each module that learns; the schedule sets their rates."""
    owners = {id(parameter): name for name, module in modules.items() for parameter in module.parameters()}
    groups: list[dict[str, Any]] = []
    for name, module in modules.items():
        own = [p for p in module.parameters() if p.requires_grad and owners[id(p)] == name]
        groups += [{"params": own, "name": name}] if own else []
    settings: dict[str, Any] = {"lr": 1.0, "weight_decay": optimisation.weight_decay}
    if optimisation.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, **settings)
    if optimisation.optimizer == "adagrad":
        return torch.optim.Adagrad(groups, initial_accumulator_value=0.1, eps=0, **settings)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimisation.optimizer]
    return kind(groups, fused=device.type == "cuda" or None, **settings)


def _train_epoch(
    task: Task, step: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, run: Run
) -> dict[str, float]:
    """One pass over the epoch's batches. step: the task, wrapped for several processes. Returns the mean losses."""
    batches, optimisation = task.batches(epoch), task.optimisation
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names: list[str] = []
    sums: list[Tensor] = []
    unseen: list[Tensor] = []  # the losses of the last steps, on the device
    hidden = None if distributed.rank() == 0 else True  # None: shown on terminals alone
    bar = tqdm(batches, desc=f"{task.stage} epoch {epoch + 1}/{optimisation.epochs}", disable=hidden, leave=False)
    for k, batch in enumerate(bar):
        factor = learning_rate_factor(optimisation.schedule, epoch + k / len(batches), optimisation.epochs)
        for group in optimizer.param_groups:
            group["lr"] = optimisation.lr[group["name"]] * factor
        with runtime.autocast(run.device, run.amp):
            on_gpu = run.device.type == "cuda" and torch.is_autocast_enabled("cuda")
            with cast_together(task.networks.values()) if on_gpu else nullcontext():
                parts = step(batch.to(run.device))
            losses_L = torch.stack(list(parts.values()))
            loss = losses_L.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if optimisation.clip > 0:
            nn.utils.clip_grad_norm_(parameters, optimisation.clip)
        optimizer.step()
        names = list(parts)
        unseen.append(losses_L.detach())
        if len(unseen) == LOOK_EVERY or k + 1 == len(batches):
            sums.append(_seen(unseen, names, epoch, k + 1))
            unseen = []
    sums_L = distributed.sum_over_processes(torch.stack(sums).sum(0).to(run.device))
    means_L = sums_L / (len(batches) * distributed.world_size())
    means = dict(zip(names, means_L.tolist(), strict=True))
    return {"loss": sum(means.values()), **(means if len(means) > 1 else {})}


def _seen(unseen: list[Tensor], names: list[str], epoch: int, step: int) -> Tensor:
    """The sums of the last steps' losses, float64 on the CPU; ``step`` was the last.

    Raises InputError for losses that are not finite, naming the first step's.
    """
    losses_SL = torch.stack(unseen).cpu().double()
    finite_S = losses_SL.sum(1).isfinite()
    if not finite_S.all():
        first = int(finite_S.int().argmin())
        losses_L = losses_SL[first]
        named = [f"{name} {value:.4g}" for name, value in zip(names, losses_L.tolist(), strict=True)]
        values = ", ".join([f"loss {losses_L.sum():.4g}", *(named if len(named) > 1 else [])])
        number = step - len(unseen) + first + 1
        raise InputError(f"the loss is not finite at epoch {epoch + 1}, step {number} ({values}): lower the --lr")
    return losses_SL.sum(0)


def _validated(task: Task, run: Run) -> tuple[Scores, np.ndarray | None]:
    """The scores, and the leading process's picture."""
    task.eval()
    with torch.no_grad(), runtime.autocast(run.device, run.amp):
        return task.validate(), task.picture() if distributed.rank() == 0 else None


def _is_better(score: float, best: float, maximise: bool) -> bool:
    return not math.isfinite(best) or (score > best if maximise else score < best)


def _log_epoch(
    task: Task,
    run: Run,
    optimizer: torch.optim.Optimizer,
    writer: SummaryWriter,
    row: Scores,
    best: Scores,
    picture: np.ndarray | None,
    resumable: bool,
) -> None:
    """best.pt where the epoch is the best so far, the log's line, and last.pt where it is due, in this order; then
    TensorBoard and the console."""
    weights = {name: network.state_dict() for name, network in task.networks.items()}
    epoch = int(row["epoch"])
    state = {"stage": task.stage, **run.description, "modules": weights, "epoch": epoch - 1, "best": best}
    if row is best:
        checkpoint.save(run.folder / "best.pt", state)
    with open(run.folder / "log.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    if resumable:
        checkpoint.save(run.folder / "last.pt", {**state, "optimizer": optimizer.state_dict()})
    values = {key: value for key, value in row.items() if key != "epoch"}
    for key, value in values.items():
        writer.add_scalar(key, value, epoch)
    if picture is not None:
        writer.add_image("faces", picture, epoch, dataformats="HWC")
    writer.flush()
    shown = "  ".join([f"epoch {epoch}/{task.optimisation.epochs}", *(f"{k} {v:.4g}" for k, v in values.items())])
    print(f"{task.stage} {shown}", flush=True)


def _resume(task: Task, run: Run, optimizer: torch.optim.Optimizer) -> tuple[int, Scores | None]:
    """Everything back from ``last.pt``: (first epoch to do, best row so far). Nothing there yet: from the start."""
    path = run.folder / "last.pt"
    if not path.exists():
        rest = run.folder / "best.pt"  # left alone by a run that was stopped while it saved its first epoch
        if rest.exists() and checkpoint.load(rest, (task.stage,)).get("epoch") not in (-1, 0):
            raise InputError(
                f"{rest} exists, but {path.name} is missing, so the run cannot be continued: choose another --run-dir"
            )
        return 0, None
    state = checkpoint.load(path, (task.stage,))
    if lacks := {"modules", "optimizer", "epoch", "best"} - state.keys():
        raise InputError(f"{path} cannot be resumed: it lacks {', '.join(sorted(lacks))} (is it a copy of best.pt?)")
    if changed := distributed.difference(state, run.description):  # older files lack some of it
        further = f" with --init-from {run.folder / 'best.pt'}" if "epochs" in changed else ""
        new = f"start a new --run-dir{further}"
        raise InputError(f"{path} was trained with {changed}: repeat its options and data, or {new}")
    epoch, best = state["epoch"], state["best"]
    try:
        for name, network in task.networks.items():
            checkpoint.load_module(network, state["modules"].get(name), path, name)
        for group, own in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
            group["fused"] = own.get("fused")  # the device's matter, not the run's
        optimizer.load_state_dict(state["optimizer"])
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be resumed: its weights or optimizer state are of another model") from error
    if distributed.rank() == 0:
        what = "finished already" if epoch + 1 == task.optimisation.epochs else "resumed"
        print(f"{task.stage}: {what}, {path}, epoch {epoch + 1}", flush=True)
    return epoch + 1, best


def _begin_log(task: Task, run: Run, first_epoch: int) -> SummaryWriter:
    """Say what begins; write config.json, and a log without the lines of epochs that will be done again.

    Raises InputError for a damaged log, and where the folder cannot be written.
    """
    environment = {
        "git": runtime.git_revision(),
        "torch": torch.__version__,
        "device": runtime.device_name(run.device),
        "processes": distributed.world_size(),
        "amp": run.amp,
    }
    settings = {"stage": task.stage, **run.description, "optimisation": asdict(task.optimisation)}
    text = json.dumps({**settings, "environment": environment}, indent=1) + "\n"
    log, epochs = run.folder / "log.jsonl", task.optimisation.epochs
    rows = files.read_json_lines(log, "log", unfinished=True) if log.exists() else []
    if not all(isinstance(row.get("epoch"), int) for row in rows):
        raise InputError(f"{log} is damaged (a row has no epoch): remove it")
    for rest in run.folder.glob(".*.part"):  # of a run that was killed while it saved
        rest.unlink()
    files.write_text(run.folder / "config.json", text)
    if log.exists():
        kept = [row for row in rows if 0 <= row["epoch"] <= first_epoch > 0]
        files.write_text(log, "".join(json.dumps(row) + "\n" for row in kept))
    writer = SummaryWriter(run.folder / "tensorboard", purge_step=first_epoch)
    print(
        f"{task.stage}: epochs {first_epoch + 1} to {epochs} on {environment['device']}, into {run.folder}", flush=True
    )
    return writer
