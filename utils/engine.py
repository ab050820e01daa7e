"""The training loop and the evaluation loop that all stages share. It knows neither models nor data sets."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils import batchnorm, checkpoint, runtime
from utils.errors import InputError
from utils.metrics import confusion_matrix

Step = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]
SCHEDULES = ("halve", "onecycle", "constant")


@dataclass(frozen=True)
class Optimisation:
    """How a stage is optimised.

    lr: learning rate of each module; a module at 0 is frozen, batch statistics included.
    optimizer: "adam" or "adamw". schedule: "halve" (every five epochs, paper), "onecycle" or "constant".
    clip: largest gradient norm, 0 for no limit.
    """

    epochs: int
    lr: dict[str, float]
    optimizer: str = "adam"
    schedule: str = "halve"
    weight_decay: float = 0.0
    clip: float = 0.0


def learning_rate_factor(schedule: str, progress: float, epochs: int) -> float:
    """Share of the full learning rate at ``progress`` (epochs done, with fractions)."""
    if schedule == "halve":
        return 0.5 ** (int(progress) // 5)
    if schedule == "onecycle":
        warm_up, share = 0.15, progress / epochs
        if share < warm_up:
            return 0.04 + 0.96 * share / warm_up
        return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up))) + 1e-4
    return 1.0


def fit(
    *,
    stage: str,
    modules: dict[str, nn.Module],
    step: Step,
    batches: Callable[[int], Iterable[Any]],
    validate: Callable[[], dict[str, float]],
    picture: Callable[[], np.ndarray],
    score: str,
    maximise: bool,
    optimisation: Optimisation,
    amp: str,
    device: torch.device,
    run_dir: Path,
    resume: bool,
    description: dict[str, Any],
) -> dict[str, float]:
    """Train ``modules`` and keep ``last.pt`` (to resume) and ``best.pt`` (weights alone) in ``run_dir``.

    step: batch -> (loss, parts of the loss to log), under autocast. batches: epoch -> batches; everything random
    in a batch must come from the seed and the epoch, since this is what makes a resumed run equal to an
    uninterrupted one. validate: -> scores; ``score`` names the one that decides what is best.
    description: plain values that go into the checkpoints (config, data set, seed, recipe).
    Returns the best epoch's scores. Raises InputError for a run folder in use, a checkpoint that does not
    continue this run, and a loss that is not finite.
    """
    trained = {name: module for name, module in modules.items() if optimisation.lr[name] > 0}
    for name, module in modules.items():
        module.to(device).to(memory_format=torch.channels_last)
        module.requires_grad_(name in trained)
        if name in trained:
            batchnorm.use_in(module)
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimisation.optimizer]
    optimizer = optimizer_class(
        [{"params": list(module.parameters()), "name": name} for name, module in trained.items()],
        lr=1.0,
        weight_decay=optimisation.weight_decay,
    )
    first_epoch, best = 0, None
    if resume:
        first_epoch, best = _resume(run_dir / "last.pt", stage, modules, optimizer, optimisation, description)
    else:
        refuse_used(run_dir)
    total = runtime.sum_over_processes(torch.tensor(first_epoch, device=device))
    if int(total) != first_epoch * runtime.world_size():
        raise InputError(f"the processes do not see the same {run_dir}: put it where every machine can read it")
    if best is not None and first_epoch >= optimisation.epochs:
        return best
    lead = runtime.rank() == 0
    if lead:
        _begin_log(run_dir, stage, optimisation, amp, device, description, first_epoch)
    runtime.barrier()
    writer = SummaryWriter(run_dir / "tensorboard", purge_step=first_epoch) if lead else None

    for epoch in range(first_epoch, optimisation.epochs):
        started = time.monotonic()
        for name, module in modules.items():
            module.train(name in trained)
        losses = _train_epoch(step, batches(epoch), optimizer, optimisation, epoch, amp, device, lead)
        trained_at = time.monotonic()
        for module in modules.values():
            module.eval()
        with torch.no_grad(), runtime.autocast(device, amp):
            scores = validate()
            shown = picture() if lead else None
        row = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], **losses, **scores}
        row |= {"train_s": round(trained_at - started, 2), "val_s": round(time.monotonic() - trained_at, 2)}
        better = (
            best is None
            or not math.isfinite(best[score])
            or (scores[score] > best[score] if maximise else scores[score] < best[score])
        )
        if better:
            best = row
        if lead and writer is not None and shown is not None:
            weights = {name: module.state_dict() for name, module in modules.items()}
            state = {"stage": stage, **description, "modules": weights, "epoch": epoch, "best": best}
            if better:
                checkpoint.save(run_dir / "best.pt", state)
            with open(run_dir / "log.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            for key, value in row.items():
                if key != "epoch":
                    writer.add_scalar(key, value, epoch)
            writer.add_image("faces", shown, epoch, dataformats="HWC")
            writer.flush()
            checkpoint.save(run_dir / "last.pt", {**state, "optimizer": optimizer.state_dict()})
            told = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch")
            print(f"{stage} epoch {epoch + 1}/{optimisation.epochs}  {told}", flush=True)
    if writer is not None:
        writer.close()
    runtime.barrier()
    assert best is not None
    if lead:
        print(f"{stage}: best {score} {best[score]:.4f} at epoch {best['epoch'] + 1}: {run_dir / 'best.pt'}")
    return best


def refuse_used(run_dir: Path) -> None:
    """Raises InputError where a run lies already."""
    if (run_dir / "last.pt").exists() or (run_dir / "best.pt").exists():
        raise InputError(f"{run_dir} already holds a run: go on with --resume, or name another --run-dir")


def _train_epoch(
    step: Step,
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    optimisation: Optimisation,
    epoch: int,
    amp: str,
    device: torch.device,
    lead: bool,
) -> dict[str, float]:
    batches = batches if hasattr(batches, "__len__") else list(batches)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    bar = tqdm(batches, desc=f"epoch {epoch + 1}/{optimisation.epochs}", disable=None if lead else True, leave=False)
    for k, batch in enumerate(bar):
        factor = learning_rate_factor(optimisation.schedule, epoch + k / len(batches), optimisation.epochs)  # type: ignore[arg-type]
        for group in optimizer.param_groups:
            group["lr"] = optimisation.lr[group["name"]] * factor
        with runtime.autocast(device, amp):
            loss, losses = step(batch.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        runtime.average_gradients(parameters)
        if optimisation.clip > 0:
            nn.utils.clip_grad_norm_(parameters, optimisation.clip)
        optimizer.step()
        if k > 0:
            _check_finite(parts, epoch, k)  # one step late: the device need not wait for the check
        parts = {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}
        for name, value in parts.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value
    count = k + 1
    _check_finite(parts, epoch, count)
    return {
        name: float(runtime.sum_over_processes(value)) / count / runtime.world_size() for name, value in sums.items()
    }


def _check_finite(parts: dict[str, Tensor], epoch: int, step: int) -> None:
    if not torch.isfinite(parts["loss"]):
        told = ", ".join(f"{name} {float(value):.4g}" for name, value in parts.items())
        raise InputError(f"the loss is not finite at epoch {epoch + 1}, step {step} ({told}): lower the --lr")


def _resume(
    path: Path,
    stage: str,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    optimisation: Optimisation,
    description: dict[str, Any],
) -> tuple[int, dict[str, float] | None]:
    """Everything back from ``last.pt``: (first epoch to do, best row so far). Nothing there yet: from the start."""
    if not path.exists():
        rest = path.with_name("best.pt")  # left alone by a run that was stopped while it saved its first epoch
        if rest.exists() and checkpoint.load(rest, (stage,)).get("epoch") != 0:
            raise InputError(f"{rest} lies there without {path.name} to go on from: name another --run-dir")
        return 0, None
    state = checkpoint.load(path, (stage,))
    if lacks := {"modules", "optimizer", "epoch", "best"} - state.keys():
        raise InputError(f"{path} cannot be resumed: it lacks {', '.join(sorted(lacks))} (is it a copy of best.pt?)")
    for key, value in description.items():
        if changed := _difference(key, state.get(key), value):
            raise InputError(f"{path} was trained with {changed}: repeat its options, or start a new --run-dir")
    for name, module in modules.items():
        checkpoint.load_module(module, state["modules"].get(name), path, name)
    optimizer.load_state_dict(state["optimizer"])
    if runtime.rank() == 0:
        done = state["epoch"] + 1 == optimisation.epochs
        print(f"{stage}: {'finished already' if done else 'resumed'}, {path}, epoch {state['epoch'] + 1}", flush=True)
    return state["epoch"] + 1, state["best"]


def _difference(name: str, saved: Any, asked: Any) -> str:
    """The first difference between two trees of plain values, for people; empty where they are equal."""
    if isinstance(saved, dict) and isinstance(asked, dict) and saved.keys() == asked.keys():
        return next((told for key in asked if (told := _difference(f"{name}.{key}", saved[key], asked[key]))), "")
    return "" if saved == asked else f"{name} {saved}, not {asked}"


def _begin_log(
    run_dir: Path,
    stage: str,
    optimisation: Optimisation,
    amp: str,
    device: torch.device,
    description: dict[str, Any],
    first_epoch: int,
) -> None:
    """The run folder's config.json, and a log without the lines of epochs that will be done again."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--run-dir {run_dir} cannot be made ({error.strerror}): name another") from error
    environment = {
        "git": runtime.git_revision(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "processes": runtime.world_size(),
        "amp": amp,
    }
    config = {"stage": stage, **description, "optimisation": asdict(optimisation), "environment": environment}
    (run_dir / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    log = run_dir / "log.jsonl"
    if log.exists():
        rows = [line for line in log.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in rows if json.loads(line)["epoch"] < first_epoch]
        shortened = log.with_name(log.name + ".tmp")
        shortened.write_text("".join(line + "\n" for line in kept))
        os.replace(shortened, log)


def evaluate(
    predict: Callable[[Any], Tensor], batches: Iterable[Any], device: torch.device, num_labels: int = 9
) -> tuple[Tensor, Tensor]:
    """Label every face on its own photo's grid and count.

    predict: batch -> labels_BHW (uint8). Returns (index_N, matrices_N99): position of each face in the split and
    its int64 confusion matrix (rows: truth); over all processes the matrices' sum is the data set's.
    """
    index, matrices = [], []
    for batch in batches:
        batch = batch.to(device)
        predicted_BHW = predict(batch)
        for b, (height, width) in enumerate(batch.sizes_B2.tolist()):
            truth_HW = batch.labels_BHW[b, :height, :width]
            matrices.append(confusion_matrix(predicted_BHW[b, :height, :width], truth_HW, num_labels))
        index.append(batch.index_B)
    if not matrices:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, num_labels, num_labels, dtype=torch.long)
    return torch.cat(index).cpu(), torch.stack([torch.as_tensor(m) for m in matrices]).cpu()
