"""Weights from checkpoint files, ours or the authors', into an STN-iCNN."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from models.icnn import fold_batchnorm
from models.mirror import mirror_too
from models.released import from_released
from models.stn_icnn import STNiCNN, STNiCNNConfig
from utils import checkpoint
from utils.errors import InputError

MODULES = ("coarse", "localizer", "parts")


@dataclass(frozen=True)
class Weights:
    """State dicts of some of the three modules, the config that they were made for, and the file they come from."""

    config: STNiCNNConfig
    modules: dict[str, dict[str, Tensor]]
    path: Path


def read_weights(path: Path, stages: tuple[str, ...] = checkpoint.STAGES) -> Weights:
    """Read a checkpoint of ours (of one of ``stages``) or one of the authors' files. Raises InputError."""
    state = checkpoint.read_tensors(path)
    if "format" not in state:
        try:
            return Weights(*from_released(state), path)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    checkpoint.require(state, path, stages)
    known = {field.name for field in fields(STNiCNNConfig)}
    stored, held = state.get("config"), state.get("modules")
    if not isinstance(stored, dict) or not isinstance(held, dict) or stored.keys() - known:
        raise InputError(f"{path} lacks its config or weights, or comes from a newer version: update this repository")
    try:
        return Weights(STNiCNNConfig(**stored), held, path)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: its config is unusable ({error})") from error


def load_into(model: STNiCNN, weights: Weights, names: tuple[str, ...]) -> None:
    """Load the named modules strictly. Raises InputError for one that the file lacks or that does not fit."""
    for name in names:
        if name not in weights.modules:
            held = ", ".join(sorted(weights.modules))
            raise InputError(f"{weights.path} holds {held}, but its {name} weights are needed here")
        checkpoint.load_module(getattr(model, name), weights.modules[name], weights.path, name)


def told(config: STNiCNNConfig) -> str:
    """What is said of a configuration's windows."""
    return f"{config.crop_size} (margin {config.window_margin:g}, aspect {config.window_aspect:g})"


def load_model(paths: list[Path], names: tuple[str, ...] = MODULES) -> STNiCNN:
    """One end-to-end checkpoint, or several that hold the named modules between them (the last one wins).

    names: the modules that will be used; the others stay as they were drawn. The localizer decides about
    coarse_size, localizer, frame and the windows' margin and aspect, the part networks about crop_size and paste;
    where one is not named, the other decides. Raises InputError where a named module is missing.
    """
    found: dict[str, Weights] = {}
    for path in paths:
        weights = read_weights(path)
        found.update(dict.fromkeys(weights.modules, weights))
    missing = [name for name in names if name not in found]
    if missing:
        mend = "name one end-to-end checkpoint, or those of the cropper stage and of stage two"
        if len(names) < len(MODULES):
            mend = f"name a checkpoint that holds {' and '.join(names)}"
        raise InputError(f"{', '.join(map(str, paths))}: no {' or '.join(missing)} weights; {mend}")
    if "localizer" in names and "parts" in names:
        seen, made = found["localizer"].config, found["parts"].config
        fixed = seen.window_margin == 0  # else any number of samples fits
        if seen.windows[1:] != made.windows[1:] or (fixed and seen.crop_size != made.crop_size):
            raise InputError(
                f"{found['localizer'].path} places windows of {told(seen)}, but {found['parts'].path} was trained on "
                f"{told(made)}: train both alike"
            )

    def decides(*order: str) -> STNiCNNConfig:
        return next(found[name] for name in order if name in names).config

    one, two = decides("localizer", "coarse", "parts"), decides("parts", "localizer", "coarse")
    _, margin, aspect = decides("localizer", "parts", "coarse").windows
    model = STNiCNN(replace(one, window_margin=margin, window_aspect=aspect, crop_size=two.crop_size, paste=two.paste))
    for name in names:
        load_into(model, found[name], (name,))
    return model.eval()


def load_for_inference(
    paths: list[Path], device: torch.device, names: tuple[str, ...] = MODULES, mirror: bool = False
) -> STNiCNN:
    """``load_model``, then all that makes labelling fast: batch norm folded, channels last, on the device.

    mirror: label with test-time mirroring, see ``models.mirror``.
    """
    model = load_model(paths, names)
    fold_batchnorm(model)
    if mirror:
        mirror_too(model)
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
