"""Checkpoint files: one flat dict of tensors and plain values, written whole or not at all."""

import os
import reprlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

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
# What is far more than any checkpoint needs. Files of ours are as large as their contents.
_DEEPEST, _MOST_VALUES, _LONGEST_NAME = 16, 50_000, 200
_UNPACKED = 4  # times the file's size, and another MiB

_MEND = "name one that training wrote (best.pt) or one of the authors' (python download.py --list), or get it again"
_BEGINNINGS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file (git lfs pull fetches it)"),
)


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
    """The values of a network in a file of other code, by name: it may hold them bare or beside an optimizer's state,
    with or without the prefix of several GPUs."""
    held = [state[name] for name in ("model_state_dict", "state_dict", "model_state", "model") if name in state]
    values = held[0] if held and isinstance(held[0], dict) else state
    return {str(name).removeprefix("module."): value for name, value in values.items()}


def read_tensors(path: Path) -> dict[str, Any]:
    """torch.load with ``weights_only``. Returns a dict of plain values and dense tensors, whatever classes of dicts and
    tensors the file holds. Raises InputError for every failure."""
    with files.open_regular(path, "checkpoint file") as file:
        most = _UNPACKED * os.fstat(file.fileno()).st_size + 2**20
        _refuse_other_files(file, path, most)
        file.seek(0)
        try:
            with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged bytes, OSError among them
            if any(words in str(error).lower() for words in ("unsupported global", "unrecognized function")):
                reason = "holds objects other than weights, which are not run: get it again from its source"
            elif isinstance(error, MemoryError) or "allocate memory" in str(error):
                reason = "damaged, or this machine has too little memory for it: get it again, or free some memory"
            else:
                reason = "damaged or not a checkpoint: get it again"
            raise InputError(f"{path}: {reason}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} is no checkpoint: it holds {_article(type(state).__name__)}; {_MEND}")
    return _Plain(path, most).value(state, "")


def _refuse_other_files(file: BinaryIO, path: Path, most: int) -> None:
    """Raises InputError for an empty file, for what is known to be something else, and for a zip archive that would
    unpack to more than ``most`` bytes."""
    start = file.read(4096)
    if not start:
        raise InputError(f"{path}: damaged, it is empty: get it again")
    what = next((what for beginning, what in _BEGINNINGS if start.startswith(beginning)), None)
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        what = "a WebP picture"
    elif start[4:9] == bytes(4) + b"{":  # the length of a JSON header, in eight bytes
        what = "a safetensors file"
    elif start[257:262] == b"ustar":
        what = "a tar archive"
    elif start.startswith(b"PK"):
        what = _kind_of_zip(file, path, most)
    elif what is None and _is_text(start):
        what = "a text"
    if what:
        raise InputError(f"{path}: this is {what}, not a checkpoint: {_MEND}")


def _kind_of_zip(file: BinaryIO, path: Path, most: int) -> str | None:
    """What a zip archive is, None for a checkpoint. Raises InputError for a damaged one and for one of more bytes."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
            size = sum(entry.file_size for entry in archive.infolist())
            if size <= most and archive.testzip():  # torch itself compares no checksums
                raise zipfile.BadZipFile
    except Exception as error:  # zipfile raises many kinds for damaged bytes
        raise InputError(f"{path}: damaged or not a checkpoint: get it again") from error
    if size > most:
        raise InputError(f"{path} would unpack to {size:,} bytes, far more than a checkpoint of its size: not read")
    if "constants.pkl" in names:
        return "a TorchScript archive"
    if "archive_format" in names:
        return "a program of torch.export"
    return None if "data.pkl" in names else "a zip archive that torch did not write (unpack it first?)"


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a character is cut in two
            return False
        text = start[: error.start].decode("utf-8")
    return bool(text) and all(character.isprintable() or character in "\t\r\n\f\ufeff" for character in text)


class _Plain:
    """The contents of a file as plain values, with limits: what is shared or expanded counts as often as it occurs.

    path: the file, for messages. most: bytes that all tensors together may take.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.bytes_left, self.values_left = path, most, _MOST_VALUES

    def value(self, value: Any, name: str, depth: int = 0) -> Any:
        """Dicts of any class as dicts, lists and tuples as such, the rest as it is. name: where it stands.

        Raises InputError for other classes, for tensors that are not dense ones of floats or integers in memory, and
        beyond the limits.
        """
        self.values_left -= 1
        if depth > _DEEPEST or self.values_left < 0:
            raise InputError(f"{self.path} is nested deeper, or holds more values, than any checkpoint: not read")
        if isinstance(value, dict):
            items = dict.items(value)  # not value.items(): a file may give its dicts attributes of that name
            return {self.key(key, name): self.value(entry, f"{name}.{key}", depth + 1) for key, entry in items}
        if isinstance(value, list | tuple):
            plain = [self.value(entry, f"{name}.{k}", depth + 1) for k, entry in enumerate(value)]
            return plain if isinstance(value, list) else tuple(plain)
        if isinstance(value, Tensor):
            return self.tensor(value, name)
        if value is not None and type(value) not in (bool, int, float, str) and not isinstance(value, np.number):
            self.refuse(name, type(value).__name__)
        return value

    def key(self, key: Any, name: str) -> str | int:
        if type(key) is int or (type(key) is str and key.isprintable() and len(key) <= _LONGEST_NAME):
            return key
        raise InputError(f"{self.path}: an entry of {name[1:] or 'it'} has no plain name: get it again from its source")

    def tensor(self, tensor: Tensor, name: str) -> Tensor:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or vars(tensor):
            self.refuse(name, "tensor of another class")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
            self.refuse(name, "nested tensor" if tensor.is_nested else f"{tensor.layout}, {tensor.device} tensor")
        if tensor.dtype not in (*_FLOATS, *_INTEGERS, torch.bool):
            self.refuse(name, f"{tensor.dtype} tensor")
        self.bytes_left -= tensor.numel() * tensor.element_size()
        if self.bytes_left < 0:
            raise InputError(f"{self.path}: {name[1:]} unpacks to far more than the file's size: not read")
        return tensor

    def refuse(self, name: str, what: str) -> None:
        article = _article(what.removeprefix("torch."))
        raise InputError(f"{self.path}: {name[1:]} is {article}, which no checkpoint holds: get it again")


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
        raise InputError(f"{path}: its {name} weights are no state dict of tensors")
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
                "(another class count or size?)"
            )
        if value.dtype not in (_FLOATS if own[key].is_floating_point() else _INTEGERS):
            held, needed = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, own[key].dtype))
            raise InputError(f"{path}: {name}.{key} holds {held}, this model needs {needed}: get it again")
        if not value.detach().to(own[key].dtype).isfinite().all():
            raise InputError(
                f"{path}: {name}.{key} holds NaN or infinity (from a training that diverged?): name other weights"
            )
    module.load_state_dict(weights, strict=True)
