"""A training step on a pretend GPU: nothing in it waits for the device, or mixes devices."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import data.view
from data.batch import Batch
from data.source import FaceData
from models.loading import SHIPPED_WEIGHTS
from retrieval import train as identity
from retrieval.network import EmbeddingConfig
from retrieval.people import list_people
from tests.test_retrieval import small, write_people  # noqa: F401
from training import engine
from training.task import Plan
from utils import runtime

GPU = torch.device("cuda:0")
SCRIPTS: dict[str, tuple[dict[str, Any], int]] = {  # fields of the plan, copies to the device that a view makes
    "train_stage1": ({}, 1),
    "train_cropper": ({"start": {"init_from": SHIPPED_WEIGHTS}}, 2),
    "train_stage2": ({}, 2),
    "train_end2end": ({"start": {"init_from": SHIPPED_WEIGHTS}}, 2),
    "train_deeplab": ({"model": {"size": 160}}, 1),
    "train_eagrnet": ({"model": {"size": 160}}, 1),
    "train_whole": ({"model": {"size": 160}}, 1),
}


class PretendGPU(TorchDispatchMode):
    """Runs what lies on the CPU, traces what lies on "cuda:0" by its shapes alone, and refuses what the host would wait
    for once it is ``armed``. launches: how often each operation was called there since then, copies to it included."""

    def __init__(self) -> None:
        super().__init__()
        self.armed, self.launches, self.pinned = False, Counter[str](), dict[int, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        target = torch.device(kwargs.get("device") or ("cuda" if there else "cpu"))
        if not there and target.type == "cpu":
            with _disable_current_modes():
                return func(*args, **kwargs)
        if self.armed:
            self.refuse_waits(name, args, kwargs, len(there) < sum(tensor.ndim > 0 for tensor in tensors), target)
            self.launches[name] += 1
        return func(*args, **kwargs)

    def refuse_waits(self, name: str, args: tuple, kwargs: dict, mixed: bool, target: torch.device) -> None:
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "linalg_inv_ex"), f"{name} waits"
        assert target.type == "cuda", "a copy from the device waits"
        if name == "_to_copy" and mixed:
            assert kwargs.get("non_blocking"), "a copy to the device waits"
            assert id(args[0]) in self.pinned, "a copy out of memory that is not pinned waits"
            self.launches["to the device"] += 1
        else:
            assert not mixed, f"{name} of tensors on both devices"
            assert name != "index" or all(i is None or i.dtype != torch.bool for i in args[1]), "a mask waits"


@contextmanager
def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGPU]:
    gpu, cached = PretendGPU(), (runtime.constant, data.view._ticks, data.view._noise)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: gpu.pinned.setdefault(id(self), self))
    monkeypatch.setattr(Tensor, "backward", lambda self: None)  # autograd asks CUDA itself for its devices
    monkeypatch.setattr(runtime, "autocast", lambda device, amp: nullcontext())  # needs a real one too
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), gpu:
            yield gpu
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()
        for made in cached:
            made.cache_clear()


def move(task: nn.Module) -> None:
    """A task's values to the pretend device, each with a gradient."""
    for module in task.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(value, device=GPU), value.requires_grad)
                module._parameters[name].grad = torch.empty_like(value, device=GPU)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=GPU)


def launches_of(task: engine.Task, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What a training step of a task launches on the pretend device, where it waits for nothing."""
    batch = next(iter(task.batches(0)))
    learning = {name: network for name, network in task.networks.items() if task.optimisation.lr[name] > 0}

    class Twice(list):
        def __iter__(self) -> Iterator[Batch]:
            yield batch.pin_memory()
            gpu.armed = True  # constants and the optimizer's state have been made
            yield batch.pin_memory()

    monkeypatch.setattr(task, "batches", lambda epoch: Twice([0, 1]))
    monkeypatch.setattr(engine, "_seen", None)  # looks at the losses, which may wait
    with pretend_gpu(monkeypatch) as gpu:
        move(task.train())
        optimizer = engine._optimizer(task.optimisation, learning, GPU)
        monkeypatch.setattr(optimizer, "zero_grad", lambda set_to_none: None)
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            engine._train_epoch(task, task, optimizer, 0, engine.Run(Path(), False, GPU, "bf16", {}))
    return gpu.launches


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_training_step_waits_for_nothing(name, tmp_path, monkeypatch):
    script, (settings, copies) = import_module(name), SCRIPTS[name]
    recipe = script.RECIPES.choose("best", "synthetic").changed(batch_size=2)
    faces = FaceData("synthetic", None, None, 160, 2, tmp_path / "cache", None, None)
    plan = Plan(faces, recipe, runtime.Machine(torch.device("cpu")), tmp_path / "run", **settings)
    launches = launches_of(script.build(plan), monkeypatch)
    assert launches["to the device"] == 8 + copies
    assert launches["_fused_adamw_"] > 0


@pytest.mark.usefixtures("small")
def test_a_training_step_of_retrieval_waits_for_nothing(tmp_path, monkeypatch):
    people = list_people(write_people(tmp_path, {name: 2 for name in "abcdef"}))
    cpu, recipe = runtime.Machine(torch.device("cpu")), identity.COSINE[2]
    plan = identity.Plan(people, recipe, 2, EmbeddingConfig(**recipe.model), cpu, tmp_path / "run")
    assert launches_of(identity.Identity(plan), monkeypatch)["_fused_adamw_"] > 0
