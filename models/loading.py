"""From checkpoint files, ours or the authors', to a parser: the one place that knows which kinds there are."""

from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.labels import CELEBAMASK, NINE, label_set
from models import eagrnet
from models.deeplab import DeepLab, DeepLabConfig
from models.eagrnet import EAGRNetConfig, EAGRNetParser
from models.ensemble import EnsembleParser
from models.fused import FusedParser
from models.parser import FaceParser, Weights, check_types
from models.stn_icnn.model import STNiCNN
from models.stn_icnn.released import from_released
from models.whole import WholeParser
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import uses_bf16

KINDS: dict[str, type[FaceParser]] = {parser.kind: parser for parser in (STNiCNN, DeepLab, EAGRNetParser, WholeParser)}
CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
SHIPPED_WEIGHTS = CHECKPOINTS / "stn_icnn.pt"
# Of all 19 labels of CelebAMask-HQ; deeplab.pt needs no further library.
SHIPPED_WHOLE = CHECKPOINTS / ("whole.pt" if find_spec("segmentation_models_pytorch") else "deeplab.pt")


def read_weights(path: Path) -> Weights:
    """Read a checkpoint of ours or one of the authors' files. Raises InputError for anything else."""
    state = checkpoint.read_tensors(path)
    if "format" not in state:
        try:
            found = checkpoint.foreign_weights(state)
            if any(name.startswith("backbone.low_level") for name in found):  # of the challenge team
                return Weights(DeepLab.kind, CELEBAMASK, DeepLabConfig(), {"network": found}, path)
            if any(name.startswith("edge_layer.") for name in found):
                labels, network = eagrnet.from_released(found)
                return Weights(EAGRNetParser.kind, labels, EAGRNetConfig(bgr=True), {"network": network}, path)
            return Weights(STNiCNN.kind, NINE, *from_released(state), path)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    checkpoint.require(state, path)
    kind = state.get("parser")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{path} holds an unknown parser {checkpoint.shown(kind)}: update this repository")
    config = read_config(state, KINDS[kind].Config, path)
    try:
        return Weights(kind, label_set(state.get("labels")), config, state["modules"], path)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of a tensor where a number is expected
        raise InputError(f"{path}: its label set is unusable ({error})") from error


def read_config(state: dict[str, Any], config_class: type, path: Path) -> Any:
    """The configuration that a checkpoint of ours holds beside its weights. Raises InputError where one of them is
    missing or unusable."""
    config, modules = state.get("config"), state.get("modules")
    known = {field.name for field in fields(config_class)}
    if not isinstance(config, dict) or not isinstance(modules, dict) or config.keys() - known:
        raise InputError(f"{path} lacks its config or weights, or comes from a newer version: update this repository")
    if not all(isinstance(name, str) for name in modules):
        raise InputError(f"{path}: its networks' names are not plain text: get it again from its source")
    try:
        checked = config_class(**config)
        check_types(checked)  # whether or not the class does
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: its config is unusable ({error})") from error
    return checked


def load_parser(paths: Sequence[Path], crops: str = "predicted", labels: str | None = None) -> FaceParser:
    """The parser that the checkpoints hold, on the CPU, in evaluation mode.

    Those of STN-iCNN hold one together (the last one wins); each other one holds a parser of the whole face. Several of
    these are averaged, see ``models.ensemble``, and STN-iCNN is drawn into them, see ``models.fused``.
    crops: for STN-iCNN, where its windows come from (see ``models.stn_icnn.model.CROPS``). labels: the name of the
    label set that is wanted, default the parser's own; where it is CelebAMask-HQ's, an STN-iCNN is fused with the
    parser of the whole face that ships.
    Raises InputError for parsers that cannot be combined, for weights that are missing or do not fit, and for a parser
    of another label set than is wanted.
    """
    if not paths:
        raise InputError("no checkpoint is given: give at least one file")
    found = [read_weights(path) for path in paths]
    parts = [weights for weights in found if weights.kind == STNiCNN.kind]
    whole = [weights for weights in found if weights.kind != STNiCNN.kind]
    if labels == CELEBAMASK.name and not whole:
        if not SHIPPED_WHOLE.is_file():
            raise InputError(f"labels {labels}: no whole-face weights at {SHIPPED_WHOLE}; add their checkpoint")
        whole = [read_weights(SHIPPED_WHOLE)]
    whole_crops = "predicted" if parts else crops
    parsers = [KINDS[weights.kind].from_weights([weights], whole_crops) for weights in whole]
    if len(parsers) > 1:
        parsers = [EnsembleParser(parsers)]
    if parts:
        parsers.append(STNiCNN.from_weights(parts, crops))
    parser = FusedParser(*parsers) if len(parsers) > 1 else parsers[0]
    parser.eval()
    if labels is not None and parser.labels.name != labels:
        files = ", ".join(str(path) for path in paths)
        raise InputError(f"labels {labels}: {files} labels {parser.labels.name}; give a checkpoint of {labels}")
    return parser


def load_for_inference(
    paths: Sequence[Path],
    device: torch.device,
    crops: str = "predicted",
    mirror: bool = False,
    labels: str | None = None,
    amp: str = "off",
) -> FaceParser:
    """``load_parser``, then all that makes labelling fast: batch norm folded, channels last, on the device.

    mirror: average with the mirrored photo. amp: the precision that the parser will run in, by ``utils.runtime
    .autocast``, see there.
    """
    parser = load_parser(paths, crops, labels)
    parser.fold()
    if mirror:
        parser = parser.mirrored()
    if device.type == "cuda" and uses_bf16(device, amp):
        cast_weights(parser)
    return parser.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def cast_weights(parser: nn.Module) -> None:
    """Cast the convolutions to bfloat16 once and in place, as autocast would in every pass. It has to be on all the
    same; the localizer, which runs without it, stays float32."""
    for name, module in parser.named_modules():
        if isinstance(module, nn.Conv2d) and "localizer" not in name.split("."):
            module.bfloat16()
