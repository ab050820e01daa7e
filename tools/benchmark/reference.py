"""The method as the paper's release runs it, step by step: what ours is compared with.

Contiguous layout; one network call for each of the six parts; every part pasted onto a whole canvas, nine of which
are compared. The canvas is the photo's own grid (the release's is 1024 x 1024, without whose padding this is faster).
Both see the same stretched photo, so that labels can differ through the steps compared alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.images import make_thumb
from data.labels import NINE
from models.loading import load_parser, read_weights
from models.stn_icnn.model import STNiCNN

Weights = dict[str, Tensor]

# network and whether its crop goes through mirrored, for each part
CALLS = (("brows", False), ("brows", True), ("eyes", False), ("eyes", True), ("nose", False), ("mouth", False))
ROWS, INTERLINKS = 4, 3
SMALLEST_SCALE = 1e-3


class Plain(NamedTuple):
    """Weights as plain tensors; ``frame`` holds the localizer and knows what its theta is relative to."""

    coarse: Weights
    parts: dict[str, Weights]
    frame: STNiCNN
    device: torch.device


def load_plain(paths: list[Path], device: torch.device) -> Plain:
    """The same checkpoints that ``models.loading.load_parser`` reads. Raises InputError."""
    frame = STNiCNN(load_parser(paths).config).eval()
    modules: dict[str, Weights] = {}
    for path in paths:
        modules.update(read_weights(path).modules)
    frame.localizer.load_state_dict(modules["localizer"])

    def under(prefix: str, state: Weights) -> Weights:
        held = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        return {name: value.detach().clone().float().contiguous().to(device) for name, value in held.items()}

    parts = {name: under(f"nets.{name}.", modules["parts"]) for name, _ in CALLS}
    return Plain(under("", modules["coarse"]), parts, frame.to(device), device)


def icnn(weights: Weights, image_B3HW: Tensor) -> Tensor:
    """An iCNN from image to logits_BLHW: four rows, three interlink layers, integration, head."""

    def conv(name: str, x: Tensor) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def block(name: str, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        mean, variance, gain, bias = (
            weights[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return activation(F.batch_norm(conv(f"{name}.conv", x), mean, variance, gain, bias))

    def enlarged(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[-2:], mode="nearest")

    rows = []
    for r in range(ROWS):
        image_B3HW = F.max_pool2d(image_B3HW, 3, 2, 1) if r else image_B3HW
        rows.append(block(f"inputs.{r}", image_B3HW, torch.tanh))
    for layer in range(INTERLINKS):
        before, rows = rows, []
        for r, row in enumerate(before):
            finer = [F.max_pool2d(before[r - 1], 3, 2, 1)] if r > 0 else []
            coarser = [enlarged(before[r + 1], row)] if r < ROWS - 1 else []
            mixed = block(f"interlinks.{layer}.mix.{r}", torch.cat([*finer, row, *coarser], 1), F.relu)
            rows.append(block(f"interlinks.{layer}.conv.{r}", mixed, F.relu))
    merged = rows[-1]
    for r in reversed(range(ROWS - 1)):
        merged = block(f"integrate.{r}", torch.cat([rows[r], enlarged(merged, rows[r])], 1), torch.tanh)
    return conv("head.2", conv("head.1", block("head.0", merged, torch.tanh)))


@torch.no_grad()
def parse(plain: Plain, photos: list[np.ndarray]) -> np.ndarray:
    """Decoded photos of one size, uint8 (H, W, 3), to labels (B, H, W) uint8."""
    config, device = plain.frame.config, plain.device
    height, width = photos[0].shape[:2]
    photos_B3HW = torch.stack([torch.from_numpy(photo).permute(2, 0, 1) for photo in photos]).to(device).float() / 255
    thumbs_BTT3 = torch.from_numpy(np.stack([make_thumb(photo) for photo in photos])).to(device)
    stretched_B3SS = F.adaptive_avg_pool2d(thumbs_BTT3.permute(0, 3, 1, 2).float() / 255, config.coarse_size)
    stretched_B3SS = stretched_B3SS.contiguous()
    logits_BKSS = icnn(plain.coarse, stretched_B3SS)
    sizes_B2 = torch.tensor([[height, width]], device=device).expand(len(photos), 2)
    theta_BP23 = plain.frame.locate(logits_BKSS, sizes_B2)
    shape = [len(photos), 3, config.crop_size, config.crop_size]
    crops = [
        F.grid_sample(photos_B3HW, F.affine_grid(theta_B23, shape, align_corners=True), align_corners=True)
        for theta_B23 in theta_BP23.unbind(1)
    ]
    probs = []
    for (network, mirrored), crop_B3PP in zip(CALLS, crops, strict=True):
        logits_BKPP = icnn(plain.parts[network], crop_B3PP.flip(-1) if mirrored else crop_B3PP)
        probs.append((logits_BKPP.flip(-1) if mirrored else logits_BKPP).softmax(1))
    return paste(probs, theta_BP23, height, width, config.paste).cpu().numpy()


def paste(probs: list[Tensor], theta_BP23: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Resample every part's foreground onto whole canvases by the inverse theta, multiply the backgrounds, compare."""
    canvas_BKHW = torch.zeros(len(theta_BP23), len(NINE), height, width, device=theta_BP23.device)
    canvas_BKHW[:, 0] = 1
    for part, labels in enumerate(NINE.part_ids):
        theta_B23 = theta_BP23[:, part]
        scale_B2 = torch.stack([theta_B23[:, 0, 0], theta_B23[:, 1, 1]], 1)
        scale_B2 = torch.where(scale_B2 < 0, -1.0, 1.0) * scale_B2.abs().clamp(min=SMALLEST_SCALE)
        inverse_B23 = torch.cat([torch.diag_embed(1 / scale_B2), (-theta_B23[:, :, 2] / scale_B2).unsqueeze(-1)], -1)
        grid_BHW2 = F.affine_grid(inverse_B23, [len(theta_B23), 1, height, width], align_corners=True)
        pasted_BKHW = F.grid_sample(probs[part][:, 1:], grid_BHW2, mode, "zeros", align_corners=True)
        canvas_BKHW[:, labels[0] : labels[-1] + 1] = pasted_BKHW
        canvas_BKHW[:, 0] *= 1 - pasted_BKHW.sum(1)
    return canvas_BKHW.argmax(1).byte()
