"""Checkpoint files: one flat dict of tensors and plain values, written whole or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils import files
from utils.errors import InputError

FORMAT = 2
BEFORE_FORMAT_2 = {"parser": "stn_icnn", "labels": "nine"}  # there was no other

# The authors' files hold NumPy numbers, under the name that NumPy's module had then.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the file whole or not at all; an older one stays until then.

    Raises InputError where the file cannot be written (disk full, no permission).
    """
    try:
        files.write_whole(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    except (OSError, RuntimeError) as error:  # torch reports a failed zip write as RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "write failed, disk full?"
        raise InputError(f"{path} could not be saved ({reason}); an older checkpoint there is untouched") from error


def load(path: Path, stages: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Read a checkpoint of ours onto the CPU; nothing in the file is ever executed.

    stages: those that it may come from; default: any. Raises InputError for a missing, damaged or foreign file and
    for one of another stage.
    """
    state = read_tensors(path)
    require(state, path, stages)
    return state


def require(state: dict[str, Any], path: Path, stages: tuple[str, ...] | None = None) -> None:
    """Raises InputError unless the state is a checkpoint of ours, of one of the stages; adds what old formats meant."""
    if not isinstance(state.get("format"), int) or not 1 <= state["format"] <= FORMAT:
        raise InputError(f"{path} is not a checkpoint of this repository (format {state.get('format')!r})")
    if stages is not None and state.get("stage") not in stages:
        raise InputError(f"{path} comes from stage {state.get('stage')!r}; needed here: {' or '.join(stages)}")
    if state["format"] == 1:
        state.update(BEFORE_FORMAT_2)


def read_tensors(path: Path) -> dict[str, Any]:
    """torch.load with ``weights_only``. Raises InputError for every failure."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged bytes, OSError among them
        if "nsupported" in str(error) or "unrecognized function" in str(error):
            reason = "holds objects other than weights, which are not run: get it again from its source"
        else:
            reason = "damaged or not a checkpoint: get it again"
        raise InputError(f"{path}: {reason}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} is no checkpoint: it holds a {type(state).__name__}")
    return state


def load_module(module: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path, name: str) -> None:
    """Load strictly. Raises InputError naming what does not fit (another class count, another architecture)."""
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"{path}: its {name} weights are no state dict of tensors")
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        what = [f"lacks {missing[0]}"] if missing else []
        what += [f"has an unknown {unknown[0]}"] if unknown else []
        raise InputError(f"{path}: its {name} weights are of another architecture ({', '.join(what)})")
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise InputError(
                f"{path}: {name}.{key} is {tuple(value.shape)}, this model needs {tuple(own[key].shape)} "
                "(another class count or size?)"
            )
    module.load_state_dict(weights, strict=True)
