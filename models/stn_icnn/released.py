"""Reader of the checkpoints that the paper's authors published: their state dicts under our modules' names."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.stn_icnn.icnn import ICNN, ICNNConfig
from models.stn_icnn.localizer import build_localizer
from models.stn_icnn.model import STNiCNNConfig
from models.stn_icnn.parts import NETWORKS, PartNets
from utils.errors import InputError

State = dict[str, Tensor]

# What the five published files hold; "model" is one state dict of all three, told apart by prefixes.
LAYOUTS = (
    {"model1"},
    {"model1", "select_net"},
    {"model2"},
    {"model"},
    {"model1", "select_net", "model2"},
)
_ENTRIES = {"model1": "coarse", "select_net": "localizer", "model2": "parts"}
_PREFIXES = {"modelA.": "model1", "stn_model.": "select_net", "modelC.": "model2"}
# What is stored with the weights: counters, scores and the states of optimizers, of no use here.
_BOOKKEEPING = re.compile(r"step|epoch|loss|error|f1|fscore|best_(error|accu|f1|loss)|(optimizer|scheduler)\w*", re.I)

_NODE = r"interlink_layers\.(\d)\.iCNN_Nodelist\.(\d)\."
_LAST_NODE = r"interlink_layers\.2\.iCNN_Nodelist\.([0-2])\."
_ICNN_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"input_conv\.(\d)\.", r"inputs.\1.conv."),
        (r"input_bnm\.(\d)\.", r"inputs.\1.bn."),
        (_NODE + r"inter_conv_node\.", r"interlinks.\1.mix.\2.conv."),
        (_NODE + r"inter_conv_node_batchnorm\.", r"interlinks.\1.mix.\2.bn."),
        (_NODE + r"conv_node\.", r"interlinks.\1.conv.\2.conv."),
        (_NODE + r"conv_node_batchnorm\.", r"interlinks.\1.conv.\2.bn."),
        (_LAST_NODE + r"output_conv_node\.", r"integrate.\1.conv."),
        (_LAST_NODE + r"output_conv_node_batchnorm\.", r"integrate.\1.bn."),
        (r"last_conv1\.", "head.0.conv."),
        (r"last_con1_bnm\.", "head.0.bn."),
        (r"last_conv2\.", "head.1."),
        (r"last_conv3\.", "head.2."),
    )
]
# Layers that the released forward pass never uses: they are saved all the same.
_ICNN_UNUSED = re.compile(
    r"(interlink_layers\.([01]\.iCNN_Nodelist\.[0-3]|2\.iCNN_Nodelist\.3)\.output_conv_node(_batchnorm)?"
    r"|last_con2_bnm|last_conv3_bnm)\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)


def from_released(checkpoint: Mapping[str, Any]) -> tuple[STNiCNNConfig, dict[str, State]]:
    """A published checkpoint, whole or one of its stages, as ``utils.checkpoint.read_tensors`` gives it.

    Returns the config that its weights were made for, and float32 state dicts for those of the modules
    "coarse", "localizer" and "parts" of ``STNiCNN`` that the file holds (the config says "resnet18" where it
    holds no localizer). Raises InputError (without a path) for what is none of the five published layouts.
    """
    modules = convert(checkpoint)
    localizer = localizer_kind(modules["localizer"]) if "localizer" in modules else "resnet18"
    return STNiCNNConfig(crop_size=81, localizer=localizer, frame="canvas", canvas=1024, paste="nearest"), modules


def convert(checkpoint: Mapping[str, Any]) -> dict[str, State]:
    """Entries of a published checkpoint to float32 state dicts for our modules "coarse", "localizer", "parts".

    Of the official keys, exactly those of the layers that the released forward pass never uses are dropped.
    Raises InputError for another layout, and for keys that are unknown, missing, or of another shape.
    """
    if not all(isinstance(key, str) for key in checkpoint):
        raise InputError("not a checkpoint of the STN-iCNN authors: its keys are no names")
    entries = {key: value for key, value in checkpoint.items() if not _BOOKKEEPING.fullmatch(key)}
    if set(entries) not in LAYOUTS:
        raise InputError(
            f"not a checkpoint of the STN-iCNN authors: entries {_few(entries)}; "
            "expected model1, model1 + select_net, model2, model, or model1 + select_net + model2"
        )
    states = {entry: _state(value, entry) for entry, value in entries.items()}
    if "model" in states:
        states = _split(states["model"])
    return {_ENTRIES[entry]: _CONVERTERS[entry](state) for entry, state in states.items()}


def localizer_kind(state: Mapping[str, Tensor]) -> str:
    """Which of ``models.stn_icnn.localizer.KINDS`` a localizer's state dict, official or ours, belongs to."""
    if any(key.startswith(("model_res.", "resnet.")) for key in state):
        return "resnet18"
    if any(key.startswith(("localize_net.", "layers.")) for key in state):
        return "released"
    raise InputError(f"select_net: neither of the two released localizers; its keys are {_few(state)}")


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return (", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")) or "none"


def _state(value: Any, entry: str) -> State:
    if not isinstance(value, Mapping) or not all(
        isinstance(v, Tensor) and isinstance(k, str) for k, v in value.items()
    ):
        raise InputError(f"{entry}: not a state dict of tensors")
    if value and all(key.startswith("module.") for key in value):  # saved from inside DataParallel
        return {key.removeprefix("module."): tensor for key, tensor in value.items()}
    return dict(value)


def _split(state: State) -> dict[str, State]:
    unknown = [key for key in state if not key.startswith(tuple(_PREFIXES))]
    if unknown:
        raise InputError(f"model: unknown keys {_few(unknown)}")
    return {
        entry: _state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, entry)
        for prefix, entry in _PREFIXES.items()
    }


def _icnn_name(key: str) -> str | None:
    """Our name of an official iCNN key, "" for one that is never used, None for an unknown one."""
    if _ICNN_UNUSED.fullmatch(key):
        return ""
    for pattern, name in _ICNN_NAMES:
        if match := pattern.match(key):
            return match.expand(name) + key[match.end() :]
    return None


def _part_name(key: str) -> str | None:
    match = re.match(r"model\.([0-3])\.", key)
    name = _icnn_name(key[match.end() :]) if match else None
    return f"nets.{list(NETWORKS)[int(match[1])]}.{name}" if match and name else name


def _rename(state: State, entry: str, name_of: Callable[[str], str | None], build: Callable[[], nn.Module]) -> State:
    with torch.device("meta"):
        expected = build().state_dict()
    names = {key: name_of(key) for key in state}
    unknown = [key for key, name in names.items() if name is None or (name and name not in expected)]
    missing = sorted(set(expected) - set(names.values()))  # type: ignore[arg-type]
    if unknown or missing:
        parts = [f"unknown keys {_few(unknown)}"] * bool(unknown) + [f"lacks {_few(missing)}"] * bool(missing)
        raise InputError(f"{entry}: {'; '.join(parts)}")
    renamed = {name: state[key] for key, name in names.items() if name}
    for key, name in names.items():
        if name and renamed[name].shape != expected[name].shape:
            shapes = tuple(renamed[name].shape), tuple(expected[name].shape)
            raise InputError(f"{entry}: {key} has shape {shapes[0]}, the released network {shapes[1]}")
        if name and renamed[name].is_floating_point() != expected[name].is_floating_point():
            raise InputError(f"{entry}: {key} holds {renamed[name].dtype}, the released network {expected[name].dtype}")
    return {name: tensor.to(expected[name].dtype) for name, tensor in renamed.items()}


def _localizer(state: State) -> State:
    kind = localizer_kind(state)
    theirs, ours = ("model_res.", "resnet.") if kind == "resnet18" else ("localize_net.", "layers.")
    return _rename(
        state,
        "select_net",
        lambda key: ours + key.removeprefix(theirs) if key.startswith(theirs) else None,
        lambda: build_localizer(kind),
    )


_CONVERTERS: dict[str, Callable[[State], State]] = {
    "model1": lambda state: _rename(state, "model1", _icnn_name, lambda: ICNN(ICNNConfig())),
    "select_net": _localizer,
    "model2": lambda state: _rename(state, "model2", _part_name, PartNets),
}
