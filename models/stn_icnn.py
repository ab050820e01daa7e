"""STN-iCNN, whole: photo -> rough mask -> six windows -> part masks -> label map on the photo's own grid."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.images import THUMB
from models.grid import canvas_to_image, compose, crop, paste, paste_labels
from models.icnn import ICNN, ICNNConfig
from models.localizer import FACE_LAYOUT, KINDS, build_localizer
from models.parts import PartNets

FRAMES = ("image", "canvas")
PASTES = ("nearest", "bilinear")


@dataclass(frozen=True)
class STNiCNNConfig:
    """What the weights were made for; it travels in every checkpoint.

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
    """

    coarse_size: int = 128
    crop_size: int = 81
    window_margin: float = 0.0
    window_aspect: float = 1.0
    localizer: str = "paper"
    frame: str = "image"
    canvas: int = 1024
    paste: str = "nearest"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("localizer", self.localizer, KINDS),
            ("frame", self.frame, FRAMES),
            ("paste", self.paste, PASTES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        if not (16 <= self.coarse_size <= 1024 and 8 <= self.crop_size <= 1024):
            raise ValueError("coarse size must lie between 16 and 1024, crop size between 8 and 1024")
        if not (0 <= self.window_margin <= 10 and 0 < self.window_aspect <= 1 and 2 <= self.canvas <= 65536):
            raise ValueError(
                "window margin must lie between 0 and 10, aspect above 0 and up to 1, the canvas between 2 and 65536"
            )
        if self.localizer == "released" and self.coarse_size != 128:
            raise ValueError(f"the released localizer works behind a coarse_size of 128 alone, not {self.coarse_size}")

    @property
    def windows(self) -> tuple[int, float, float]:
        """(crop_size, margin, aspect), as ``target_theta`` and ``baseline_theta`` take them."""
        return self.crop_size, self.window_margin, self.window_aspect


def whole_view(photos_BHW3: Tensor, size: int) -> Tensor:
    """Photos (uint8) stretched to size x size as the coarse network sees them: images_B3SS, float in [0, 1].

    The same as ``data.images.make_thumb`` and ``data.augment.whole``, up to the rounding of bytes, as two products
    with the matrices of each axis' weights.
    """
    height, width = photos_BHW3.shape[1:3]
    sizes_2 = torch.tensor([height, width], device=photos_BHW3.device)
    shrinks = (sizes_2 >= THUMB).all()
    rows_SH, columns_SW = _stretch(height, sizes_2[0], size, shrinks), _stretch(width, sizes_2[1], size, shrinks)
    with torch.autocast(photos_BHW3.device.type, enabled=False):
        by_rows_BSW3 = (rows_SH @ photos_BHW3.float().flatten(2)).unflatten(2, (-1, 3))
        return (columns_SW @ by_rows_BSW3).permute(0, 3, 1, 2) / 255


def _stretch(count: int, length: Tensor, size: int, shrinks: Tensor) -> Tensor:
    """Weights (size, count) of ``count`` pixels in ``size`` by way of ``THUMB``: areas where the photo ``shrinks``,
    else bilinear. length: ``count`` as a tensor, like ``shrinks``, so that an exported graph takes any photo."""
    step, pixel_L = length / THUMB, torch.arange(count, device=length.device)
    start_T1 = torch.arange(THUMB, device=length.device).unsqueeze(1) * step
    overlap_TL = (start_T1 + step).minimum(pixel_L + 1) - start_T1.maximum(pixel_L)
    centre_T1 = (start_T1 + 0.5 * step - 0.5).clamp(min=0).minimum(length - 1)
    weights_TL = torch.where(shrinks, overlap_TL * (THUMB / length), 1 - (centre_T1 - pixel_L).abs()).clamp(min=0)
    pool_ST = F.adaptive_avg_pool1d(torch.eye(THUMB, device=length.device), size).T
    return pool_ST @ weights_TL


class STNiCNN(nn.Module):
    """The three modules of the paper: ``coarse`` (A), ``localizer`` (B), ``parts`` (C)."""

    def __init__(self, config: STNiCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.coarse = ICNN(ICNNConfig())
        self.localizer = build_localizer(config.localizer, config.coarse_size)
        self.parts = PartNets()

    def locate(self, coarse_logits_B9hw: Tensor, sizes_B2: Tensor) -> Tensor:
        """Rough mask to theta_BP23 in the frame of each photo. sizes_B2: the photos' (height, width) in pixels."""
        with torch.autocast(coarse_logits_B9hw.device.type, enabled=False):  # bfloat16 is half a pixel coarse at 512
            theta_BP23 = self.localizer(coarse_logits_B9hw.float().softmax(1))
        if self.config.frame == "canvas":
            return compose(canvas_to_image(sizes_B2, self.config.canvas), theta_BP23)
        if self.config.window_margin == 0:
            # Windows of crop_size photo pixels: their scale depends on the photo's size, which the stretched photo
            # does not show, so it is predicted relative to that of a photo in which they fit the face layout.
            span_B1 = (sizes_B2.flip(-1).float() - 1).clamp(min=1)[:, None, :, None]
            nominal_BP21 = (self.config.crop_size - 1) / span_B1 / FACE_LAYOUT[:, 2].to(theta_BP23)[:, None, None]
            return torch.cat([theta_BP23[..., :2] * nominal_BP21, theta_BP23[..., 2:]], -1)
        return theta_BP23

    def label_crops(self, photos_BHW3: Tensor, theta_BP23: Tensor, sizes_B2: Tensor) -> list[Tensor]:
        """Crop photos (uint8) and label: six logits tensors (see ``PartNets.forward``)."""
        return self.parts(crop(photos_BHW3, theta_BP23, self.config.crop_size, sizes_B2))

    def paste(self, part_logits: list[Tensor], theta_BP23: Tensor, height: int, width: int) -> Tensor:
        """Part logits to canvas_B9HW of label probabilities on the photos' grid (see ``models.grid.paste``)."""
        probs = [logits.float().softmax(1) for logits in part_logits]
        return paste(probs, theta_BP23, height, width, self.config.paste)

    def paste_labels(self, part_logits: list[Tensor], theta_BP23: Tensor, height: int, width: int) -> Tensor:
        """The most probable labels_BHW (uint8) of ``paste``, computed in the windows alone."""
        probs = [logits.float().softmax(1) for logits in part_logits]
        return paste_labels(probs, theta_BP23, height, width, self.config.paste)

    def forward(self, photos_BHW3: Tensor) -> Tensor:
        """photos_BHW3: uint8, all of one size. Returns canvas_B9HW of label probabilities."""
        batch, height, width, _ = photos_BHW3.shape
        sizes_B2 = torch.tensor([[height, width]], device=photos_BHW3.device).expand(batch, 2)
        theta_BP23 = self.locate(self.coarse(whole_view(photos_BHW3, self.config.coarse_size)), sizes_B2)
        return self.paste(self.label_crops(photos_BHW3, theta_BP23, sizes_B2), theta_BP23, height, width)
