"""Checkpoint files: one flat dict of tensors and plain values, written whole or not at all."""

import os
import pickletools
import reprlib
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

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

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_UNPACKED = 4  # times the file's size, and another MiB: more than any checkpoint takes, ours are stored as they are
_MOST_VALUES = 50_000
_PICKLES = 4  # in files of torch before 1.6, of which the last holds the values
_GETS, _PUTS = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_DEEPEST = 8  # tuples in one another: the hash of one that is a key can take twice the time with each
_MEND = "give one that training wrote (best.pt) or one of the authors' (python download.py --list), or get it again"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the file whole or not at all; an older one stays until then.

    Raises InputError where the file cannot be written (disk full, no permission).
    """
    try:
        files.write_whole(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    except (OSError, RuntimeError) as error:
        # over any other, Ctrl-C's too, torch raises a RuntimeError where it closes the half-written file
        cause = error.__context__ or error if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise cause from None
        reason = cause.strerror or cause
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
    number, stage = state.get("format"), state.get("stage")
    if type(number) is not int or not 1 <= number <= FORMAT:
        raise InputError(f"{path} is not a checkpoint of this repository (format {shown(number)}): {_MEND}")
    if not isinstance(stage, str) or (stages is not None and stage not in stages):
        needed = f"; needed here: {' or '.join(stages)}" if stages else ": get it again from its source"
        raise InputError(f"{path} comes from stage {shown(stage)}{needed}")
    if number == 1:
        state.update(BEFORE_FORMAT_2)


def foreign_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a network in a file of other code, by name: it may hold them bare or with an optimizer's state,
    with or without the prefix of several GPUs."""
    held = [state[name] for name in ("model_state_dict", "state_dict", "model_state", "model") if name in state]
    values = held[0] if held and isinstance(held[0], dict) else state
    return {str(name).removeprefix("module."): value for name, value in values.items()}


def read_tensors(path: Path) -> dict[str, Any]:
    """torch.load with ``weights_only``: a dict of plain values and dense tensors, whatever classes the file names.

    Raises InputError for every failure, and for a file that would unpack to far more than its size.
    """
    with files.open_regular(path, "checkpoint file") as file:
        most = _UNPACKED * os.fstat(file.fileno()).st_size + 2**20
        try:
            if file.read(4) == b"PK\3\4":  # the format of torch since 1.6
                files.check_zip(file, path, most)  # torch itself compares no checksums
                with zipfile.ZipFile(file) as archive:  # names may come twice, and torch does not tell .pkl from .PKL
                    entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".pkl")]
                    pickles: list[Any] = [archive.read(entry) for entry in entries]
            else:
                file.seek(0)
                pickles = [file] * _PICKLES
            with suppress(ValueError, IndexError, KeyError):  # torch says what is wrong
                for pickle in pickles:
                    _check_tuples(pickle)
            file.seek(0)
            with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(file, map_location="cpu", weights_only=True)
        except InputError:
            raise
        except Exception as error:  # torch and zipfile raise many kinds for damaged bytes, OSError among them
            file.seek(0)
            if any(words in str(error).lower() for words in ("unsupported global", "unrecognized function")):
                reason = "holds objects other than weights, which are not run: get it again from its source"
            elif isinstance(error, MemoryError) or "allocate memory" in str(error):
                reason = "damaged, or this machine has too little memory for it: get it again, or free some memory"
            elif file.read(19) == b"version https://git":
                reason = "this is a Git LFS pointer instead of the file: git lfs pull fetches it"
            else:
                reason = f"damaged or not a checkpoint: {_MEND}"
            raise InputError(f"{path}: {reason}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} is not a checkpoint: it holds {_article(type(state).__name__)}; {_MEND}")
    return _plain(state, path, most)


def _check_tuples(pickle: bytes | IO[bytes]) -> None:
    """Raises RecursionError for tuples in one another, more than ``_DEEPEST``; ValueError, IndexError and KeyError for
    what is no pickle. A file is read to the end of its next pickle."""
    stack: list[int | None] = []  # how deep the tuples of each value go; None: a mark
    memo: dict[int, int | None] = {}
    for code, argument, _ in pickletools.genops(pickle):
        name, taken = code.name, code.stack_before
        if name in _PUTS:
            memo[len(memo) if name == "MEMOIZE" else int(argument or 0)] = stack[-1]
        elif name in _GETS:
            stack.append(memo[int(argument or 0)])
        elif name == "MARK":
            stack.append(None)
        else:
            first = len(stack) - len(taken)
            if pickletools.markobject in taken:
                mark = next(k for k in reversed(range(len(stack))) if stack[k] is None)
                first = mark - taken.index(pickletools.markobject)
            depth = max((held or 0 for held in stack[first:]), default=0) if taken else 0
            depth += "TUPLE" in name
            if depth > _DEEPEST:
                raise RecursionError
            stack[first:] = [depth] * len(code.stack_after)


def _plain(state: Any, path: Path, most: int) -> Any:
    """Dicts of any class as dicts, lists and tuples as such, tensors without attributes, the rest as it is.

    most: bytes that one tensor may take. Raises InputError for values of other classes, for tensors that are not dense
    ones of numbers in memory, for keys that cannot be shown, and for values without end.
    """
    count = 0

    def plain(value: Any, name: str) -> Any:
        nonlocal count
        count += 1
        if count > _MOST_VALUES:
            raise RecursionError
        if isinstance(value, dict):
            entries = dict.items(value)  # not value.items(): a file may give its dicts attributes of that name
            if not all(
                type(key) is int or (type(key) is str and key.isprintable() and len(key) < 200) for key in value
            ):
                raise InputError(f"{path}: an entry of {name[1:] or 'it'} has no plain name: get it again")
            return {key: plain(entry, f"{name}.{key}") for key, entry in entries}
        if isinstance(value, list | tuple):
            values = [plain(entry, f"{name}.{k}") for k, entry in enumerate(value)]
            return values if isinstance(value, list) else tuple(values)
        if isinstance(value, Tensor):
            value = Tensor.detach(value)
            dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
            if not dense or value.dtype not in (*_FLOATS, *_INTEGERS, torch.bool):
                raise InputError(f"{path}: {name[1:]} is not a dense tensor of real numbers: get it again")
            if value.numel() * value.element_size() > most:
                raise InputError(f"{path}: {name[1:]} unpacks to far more than the file's size: not read")
        elif value is not None and not isinstance(value, bool | int | float | str | np.number):
            raise InputError(f"{path}: {name[1:]} is {_article(type(value).__name__)}, which no checkpoint holds")
        return value

    try:
        return plain(state, "")
    except RecursionError:
        raise InputError(f"{path} is nested deeper, or holds more values, than any checkpoint: not read") from None


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def shown(value: Any) -> str:
    """A value from a file, for a message: short, and on one line."""
    if isinstance(value, Tensor | np.ndarray | dict | list | tuple):
        return _article(type(value).__name__)
    return reprlib.repr(value)


def load_module(module: torch.nn.Module, weights: dict[str, Tensor], path: Path, name: str) -> None:
    """Load strictly. Raises InputError naming what does not fit (another class count, another architecture), and for
    weights that are not finite; the module is as it was then."""
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path}: its {name} weights are not a state dict of tensors")
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys(), key=str)
    if missing or unknown:
        what = [f"lacks {missing[0]}"] if missing else []
        what += [f"has an unknown {unknown[0]}"] if unknown else []
        raise InputError(f"{path}: its {name} weights are of another architecture ({', '.join(what)})")
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise InputError(
                f"{path}: {name}.{key} is {tuple(value.shape)}, this model needs {tuple(own[key].shape)} "
                "(another class count or size, or other widths?)"
            )
        if value.dtype not in (_FLOATS if own[key].is_floating_point() else _INTEGERS):
            held, needed = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, own[key].dtype))
            raise InputError(f"{path}: {name}.{key} holds {held}, this model needs {needed}: get it again")
        if not value.detach().to(own[key].dtype).isfinite().all():
            raise InputError(
                f"{path}: {name}.{key} holds NaN or infinity (from a training that diverged?): name other weights"
            )
    module.load_state_dict(weights, strict=True)
