"""STN-iCNN, whole: photo -> rough mask -> six windows -> part masks -> label map on the photo's own grid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.batch import FRAME_SIDE, Batch
from data.labels import NINE
from data.view import View
from geometry.paste import paste, paste_labels
from geometry.sampling import crop, enlarged_labels
from geometry.theta import canvas_to_image, compose, enlarged, image_to_padded
from models.mirror import Mirrored
from models.parser import FaceParser, Parsed, Weights, WindowProbs, check_types, framed_input, one_window, stretched
from models.stn_icnn.baseline import baseline_theta
from models.stn_icnn.icnn import CHANNELS, ICNN, KERNELS, ICNNConfig
from models.stn_icnn.localizer import FACE_LAYOUT, KINDS, build_localizer
from models.stn_icnn.parts import PartNets
from models.stn_icnn.windows import Windows, target_theta
from utils.checkpoint import shown
from utils.errors import InputError

FRAMES = ("image", "canvas")
PASTES = ("nearest", "bilinear")
# Where the windows come from -> the networks that this takes. "baseline": the old cropper behind the coarse network;
# "truth": the true parts; "none": no windows, the enlarged rough mask is the result.
NETWORKS_OF_CROPS = {
    "predicted": ("coarse", "localizer", "parts"),
    "baseline": ("coarse", "parts"),
    "truth": ("parts",),
    "none": ("coarse",),
}
CROPS = tuple(NETWORKS_OF_CROPS)


@dataclass(frozen=True)
class STNiCNNConfig:
    """What the weights were made for; it travels in every checkpoint. Raises ValueError for values of other types or
    out of range.

    coarse_size: side of the stretched photo that the coarse network sees (pixels).
    crop_size: samples along a side of each crop (paper: 81 for HELEN, 127 for CelebAMask-HQ).
    window_margin: 0 for the paper's windows of crop_size photo pixels; else the windows that the localizer is
        taught follow the part: their longer side is this many times the part's longer extent.
    window_aspect: the shorter side of windows that follow the part is so many times its shorter extent too, but
        at least this share of the longer side; 1 for square windows.
    localizer: "paper", "resnet18" or "released".
    frame: what theta is relative to: "image", or the released checkpoints' centred square "canvas".
    canvas: side of that canvas (pixels).
    paste: "nearest" (paper) or "bilinear".
    coarse_channels, part_channels: widths of the four rows of the coarse network and of the part networks, from the
        finest row.
    kernel: of both networks' convolutions, 5 (the last one 9) or 3 (all; the paper's Fig. 2).
    """

    coarse_size: int = 128
    crop_size: int = 81
    window_margin: float = 0.0
    window_aspect: float = 1.0
    localizer: str = "paper"
    frame: str = "image"
    canvas: int = 1024
    paste: str = "nearest"
    coarse_channels: tuple[int, ...] = CHANNELS
    part_channels: tuple[int, ...] = CHANNELS
    kernel: int = 5

    def __post_init__(self) -> None:
        check_types(self)
        for name, value, allowed in (
            ("localizer", self.localizer, KINDS),
            ("frame", self.frame, FRAMES),
            ("paste", self.paste, PASTES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {shown(value)}")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be 3 or 5, not {self.kernel}")
        for name in ("coarse_channels", "part_channels"):
            widths = getattr(self, name)
            if not (isinstance(widths, tuple) and [type(w) is int and 1 <= w <= 512 for w in widths] == [True] * 4):
                raise ValueError(f"{name.replace('_', ' ')} must be four whole numbers between 1 and 512")
        if not (16 <= self.coarse_size <= 1024 and 8 <= self.crop_size <= 1024):
            raise ValueError("coarse size must lie between 16 and 1024, crop size between 8 and 1024")
        if not (0 <= self.window_margin <= 10 and 0 < self.window_aspect <= 1 and 2 <= self.canvas <= 65536):
            raise ValueError(
                "window margin must lie between 0 and 10, aspect above 0 and up to 1, the canvas between 2 and 65536"
            )
        if self.localizer == "released" and self.coarse_size != 128:
            raise ValueError(f"the released localizer needs a coarse_size of 128, not {self.coarse_size}")

    @property
    def windows(self) -> Windows:
        """How the windows follow the parts."""
        return Windows(self.crop_size, self.window_margin, self.window_aspect)


class STNiCNN(FaceParser):
    """The three networks of the paper: ``coarse`` (A), ``localizer`` (B), ``parts`` (C).

    crops: where the windows of ``parse`` come from, one of ``CROPS``.
    """

    kind = "stn_icnn"
    Config = STNiCNNConfig
    networks = ("coarse", "localizer", "parts")
    folded = ("coarse", "parts")
    config: STNiCNNConfig

    def __init__(self, config: STNiCNNConfig, crops: str = "predicted") -> None:
        super().__init__(config, NINE)
        self.crops, self.paste = crops, config.paste
        self.coarse = ICNN(ICNNConfig(len(NINE), config.coarse_channels, *KERNELS[config.kernel]))
        self.localizer = build_localizer(config.localizer, config.coarse_size)
        self.localizer.full_precision = True  # type: ignore[assignment]
        self.parts = PartNets(config.part_channels, config.kernel)
        self.layout_P3: Tensor
        self.register_buffer("layout_P3", FACE_LAYOUT, persistent=False)

    @classmethod
    def from_weights(cls, found: Sequence[Weights], crops: str = "predicted", **settled: Any) -> "STNiCNN":
        """From one end-to-end checkpoint, or from several that hold the networks between them (the last one wins).

        Loaded are the networks that ``crops`` takes; the others keep their random weights. The localizer decides about
        coarse_size, localizer, frame and the windows' margin and aspect, the part networks about crop_size and paste,
        each network about its own widths; where one is not loaded, the other decides. settled: fields that differ from
        all of these. Raises InputError for missing weights and for windows that differ.
        """
        names, holds = NETWORKS_OF_CROPS[crops], {}
        for weights in found:
            holds.update(dict.fromkeys(weights.modules, weights))
        paths = ", ".join(str(weights.path) for weights in found)
        if missing := [name for name in names if name not in holds]:
            mend = "give one end-to-end checkpoint, or those of the cropper stage and of stage two"
            if len(names) < len(cls.networks):
                mend = f"give a checkpoint that holds {' and '.join(names)}"
            raise InputError(f"{paths}: no {' or '.join(missing)} weights; {mend}")
        if crops == "predicted":
            _require_same_windows(holds["localizer"], holds["parts"])

        def decides(*order: str) -> STNiCNNConfig:
            return next(holds[name] for name in order if name in names).config

        one, two = decides("localizer", "coarse", "parts"), decides("parts", "localizer", "coarse")
        _, margin, aspect = decides("localizer", "parts", "coarse").windows
        kept = {
            **{"window_margin": margin, "window_aspect": aspect, "crop_size": two.crop_size, "paste": two.paste},
            "coarse_channels": decides("coarse", "localizer", "parts").coarse_channels,
            "part_channels": two.part_channels,
        }
        model = cls(replace(one, **{**kept, **settled}), crops)
        for name in names:
            model.load(holds[name], (name,))
        return model.eval()

    def rough_mask(self, batch: Batch) -> Tensor:
        """The coarse network's logits_BKSS of the photos as they are."""
        return self.coarse(View(batch).photo(self.config.coarse_size))

    def locate(self, coarse_logits_BKhw: Tensor, sizes_B2: Tensor) -> Tensor:
        """Rough mask to theta_BP23 in the frame of each photo. sizes_B2: the photos' (height, width) in pixels."""
        with torch.autocast(coarse_logits_BKhw.device.type, enabled=False):  # bfloat16 is half a pixel coarse at 512
            theta_BP23 = self.localizer(coarse_logits_BKhw.softmax(1, dtype=torch.float32))
        if self.config.frame == "canvas":
            return compose(canvas_to_image(sizes_B2, self.config.canvas), theta_BP23)
        if self.config.window_margin == 0:
            # Windows of crop_size photo pixels: their scale depends on the photo's size, which the stretched photo
            # does not show, so it is predicted relative to that of a photo in which they fit the face layout.
            span_B121 = (sizes_B2.flip(-1).float() - 1).clamp(min=1)[:, None, :, None]
            nominal_BP21 = (self.config.crop_size - 1) / span_B121 / self.layout_P3[:, 2, None, None]
            return enlarged(theta_BP23, nominal_BP21)
        return theta_BP23

    def true_windows(self, view: View, jitter: float = 0.0) -> tuple[Tensor, Tensor]:
        """theta_BP23 around the true parts, in the frame of each photo of the view, and which parts are present_BP
        (1.0 or 0.0). jitter: see ``View.jittered``."""
        parts, host = view.parts(), view.host
        theta_BP23 = host.jittered(target_theta(parts, host.sizes_B2, self.config.windows), jitter)
        theta_BP23, present_BP = view.send(theta_BP23, parts.present_BP.float())
        return theta_BP23, present_BP

    def windows_of(self, batch: Batch, crops: str) -> Tensor:
        """theta_BP23 in the frame of each photo of the batch's view. crops: "predicted", "baseline" or "truth"."""
        if crops == "truth":
            return self.true_windows(View(batch))[0]
        logits_BKSS, sizes_B2 = self.rough_mask(batch), View(batch).sizes_B2
        if crops == "baseline":
            return baseline_theta(logits_BKSS.argmax(1), sizes_B2, self.config.windows)
        return self.locate(logits_BKSS, sizes_B2)

    def window_probs(self, batch: Batch, crops: str | None = None) -> WindowProbs:
        """See ``FaceParser.window_probs``. crops: one of ``CROPS``; default: those that the model was built with."""
        crops = crops or self.crops
        if crops == "none":
            return one_window(self.rough_mask(batch))
        return self.probs_in(batch, self.windows_of(batch, crops))

    def probs_in(self, batch: Batch, theta_BP23: Tensor) -> WindowProbs:
        """What the part networks see in given windows, which are in the frame of each photo of the batch's view."""
        return WindowProbs(_softmax(self.parts(View(batch).crops(theta_BP23, self.config.crop_size))), theta_BP23)

    def parse(self, batch: Batch, crops: str | None = None) -> Parsed:
        """See ``FaceParser.parse``. crops: see ``window_probs``."""
        if (crops or self.crops) == "none":
            height, width = batch.labels_BHW.shape[1:]
            return Parsed(enlarged_labels(self.rough_mask(batch), batch.host.sizes_B2, height, width), None)
        return self.paste_whole(self.window_probs(batch, crops), batch)

    def paste_whole(self, windows: WindowProbs, batch: Batch) -> Parsed:
        """The windows of whole photos, pasted onto their grids."""
        probs, theta_BP23 = windows
        height, width = batch.labels_BHW.shape[1:]
        padded_BP23 = compose(image_to_padded(batch.sizes_B2, height, width), theta_BP23)
        return Parsed(paste_labels(probs, padded_BP23, height, width, self.paste), theta_BP23)

    def probabilities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """See ``FaceParser.probabilities``; where windows overlap, a pixel's may sum to more than 1."""
        height, width = batch.labels_BHW.shape[1:]
        probs, theta_BP23 = self.window_probs(batch)
        padded_BP23 = compose(image_to_padded(batch.sizes_B2, height, width), theta_BP23)
        return paste(probs, padded_BP23, height, width, self.paste), theta_BP23

    def forward(self, photos_BHW3: Tensor) -> Tensor:
        """See ``FaceParser.forward``."""
        batch, height, width, _ = photos_BHW3.shape
        sizes_B2 = torch.tensor([[height, width]], device=photos_BHW3.device).expand(batch, 2)
        theta_BP23 = self.locate(self.coarse(stretched(photos_BHW3, self.config.coarse_size)), sizes_B2)
        crops_BP3SS = crop(photos_BHW3, theta_BP23, self.config.crop_size, sizes_B2)
        return paste(_softmax(self.parts(crops_BP3SS)), theta_BP23, height, width, self.paste)

    def framed_probs(self, photos_1HW3: Tensor, frames_F23: Tensor) -> WindowProbs:
        """See ``FaceParser.framed_probs``."""
        images_F3SS, frames_F33, sizes_F2, photo_F = framed_input(photos_1HW3, frames_F23, self.config.coarse_size)
        theta_FP23 = self.locate(self.coarse(images_F3SS), torch.full_like(sizes_F2, FRAME_SIDE))
        theta_FP23 = compose(frames_F33, theta_FP23)
        crops_FP3SS = crop(photos_1HW3, theta_FP23, self.config.crop_size, sizes_F2, photo_F)
        return WindowProbs(_softmax(self.parts(crops_FP3SS)), theta_FP23)

    def mirrored(self) -> "STNiCNN":
        self.coarse = Mirrored(self.coarse, NINE)  # type: ignore[assignment]
        self.parts.twice = True
        return self


def _softmax(part_logits: list[Tensor]) -> list[Tensor]:
    return [logits.softmax(1, dtype=torch.float32) for logits in part_logits]


def _require_same_windows(localizer: Weights, parts: Weights) -> None:
    """Raises InputError where the part networks were trained on other windows than the localizer places."""
    seen, made = localizer.config.windows, parts.config.windows
    fixed = seen.margin == 0  # else any number of samples fits
    if seen[1:] != made[1:] or (fixed and seen.crop_size != made.crop_size):
        raise InputError(
            f"{localizer.path} places windows of {seen.describe()}, but {parts.path} was trained on "
            f"{made.describe()}: train both alike"
        )
