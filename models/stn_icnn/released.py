"""Reader of the checkpoints that the paper's authors published: their state dicts under our modules' names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from models.stn_icnn.model import STNiCNNConfig
from models.stn_icnn.parts import NETWORKS
from utils.errors import InputError

State = dict[str, Tensor]

# What the five published files hold; "model" is one state dict of all three, whose prefixes differ.
LAYOUTS = ({"model1"}, {"model1", "select_net"}, {"model2"}, {"model"}, {"model1", "select_net", "model2"})
_ENTRIES = {"model1": "coarse", "select_net": "localizer", "model2": "parts"}
_PREFIXES = {"modelA.": "model1", "stn_model.": "select_net", "modelC.": "model2"}
# What is stored with the weights: counters, scores and the states of optimizers, of no use here.
_BOOKKEEPING = re.compile(r"step|epoch|loss|error|f1|fscore|best_(error|accu|f1|loss)|(optimizer|scheduler)\w*", re.I)

_NODE = r"interlink_layers\.(\d)\.iCNN_Nodelist\.(\d)\."
_LAST_NODE = r"interlink_layers\.2\.iCNN_Nodelist\.([0-2])\."
_NAMES = [
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
        (r"model_res\.", "resnet."),
        (r"localize_net\.", "layers."),
    )
]
# Layers that the released forward pass never uses: they are saved all the same.
_UNUSED = re.compile(
    r"(model\.[0-3]\.)?(interlink_layers\.([01]\.iCNN_Nodelist\.[0-3]|2\.iCNN_Nodelist\.3)\.output_conv_node(_batchnorm)?"
    r"|last_con2_bnm|last_conv3_bnm)\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)


def from_released(checkpoint: Mapping[str, Any]) -> tuple[STNiCNNConfig, dict[str, State]]:
    """A published checkpoint, whole or one of its stages, as ``utils.checkpoint.read_tensors`` gives it.

    Returns the config that its weights were made for, and state dicts for those of the modules "coarse", "localizer"
    and "parts" of ``STNiCNN`` that the file holds (the config says "resnet18" where it holds no localizer). Of the
    official keys, exactly those of the layers that the released forward pass never uses are dropped; unknown ones keep
    their names, and no module takes them. Raises InputError (without a path) for what is none of the five published
    layouts.
    """
    if not all(isinstance(key, str) for key in checkpoint):
        raise InputError("not a checkpoint of the STN-iCNN authors: its keys are not strings")
    entries = {key: value for key, value in checkpoint.items() if not _BOOKKEEPING.fullmatch(key)}
    if set(entries) not in LAYOUTS:
        raise InputError(
            f"not a checkpoint of the STN-iCNN authors: entries {_few(entries)}; "
            "expected model1, model1 + select_net, model2, model, or model1 + select_net + model2"
        )
    states = {entry: _state(value, entry) for entry, value in entries.items()}
    if "model" in states:
        states = _split(states["model"])
    modules = {
        _ENTRIES[entry]: {_our_name(key): value for key, value in state.items() if not _UNUSED.fullmatch(key)}
        for entry, state in states.items()
    }
    localizer = "resnet18"
    if "localizer" in modules and not any(key.startswith("resnet.") for key in modules["localizer"]):
        localizer = "released"
        if not any(key.startswith("layers.") for key in modules["localizer"]):
            raise InputError(
                f"select_net: neither of the two released localizers; its keys are {_few(modules['localizer'])}"
            )
    return STNiCNNConfig(crop_size=81, localizer=localizer, frame="canvas", canvas=1024, paste="nearest"), modules


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


def _our_name(key: str) -> str:
    if match := re.match(r"model\.([0-3])\.", key):  # of a part network
        return f"nets.{list(NETWORKS)[int(match[1])]}.{_our_name(key[match.end() :])}"
    for pattern, name in _NAMES:
        if match := pattern.match(key):
            return match.expand(name) + key[match.end() :]
    return key
