"""The method as the paper's release runs it, step by step: what ours is measured beside.

Contiguous layout; one network call for each of the six parts; every part pasted onto a whole canvas, nine of which
are compared; for training, the photo and its eleven masks decoded and augmented as PIL pictures for each sample.
The canvas is the photo's own grid (the release's at 1024 x 1024; smaller photos are not charged for its padding).
Both see the same stretched photo, so that labels can differ through the steps compared alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.images import make_thumb
from data.labels import HELEN, NINE
from data.listing import Sample
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


def icnn(weights: Weights, image_B3HW: Tensor, training: bool = False) -> Tensor:
    """An iCNN from image to logits_BLHW: four rows, three interlink layers, integration, head."""

    def conv(name: str, x: Tensor) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def block(name: str, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        mean, variance, gain, bias = (
            weights[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return activation(F.batch_norm(conv(f"{name}.conv", x), mean, variance, gain, bias, training))

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
def parse(plain: Plain, photos: list[np.ndarray], mark: Callable[[str], None] = lambda step: None) -> np.ndarray:
    """Decoded photos of one size, uint8 (H, W, 3), to labels (B, H, W) uint8. mark: called at the end of each step."""
    config, device = plain.frame.config, plain.device
    height, width = photos[0].shape[:2]
    photos_B3HW = torch.stack([torch.from_numpy(photo).permute(2, 0, 1) for photo in photos]).to(device).float() / 255
    thumbs_BTT3 = torch.from_numpy(np.stack([make_thumb(photo) for photo in photos])).to(device)
    stretched_B3SS = F.adaptive_avg_pool2d(thumbs_BTT3.permute(0, 3, 1, 2).float() / 255, config.coarse_size)
    stretched_B3SS = stretched_B3SS.contiguous()
    mark("prepare")
    logits_BKSS = icnn(plain.coarse, stretched_B3SS)
    mark("coarse")
    sizes_B2 = torch.tensor([[height, width]], device=device).expand(len(photos), 2)
    theta_BP23 = plain.frame.locate(logits_BKSS, sizes_B2)
    mark("localize")
    shape = [len(photos), 3, config.crop_size, config.crop_size]
    with _exact_products():
        crops = [
            F.grid_sample(photos_B3HW, F.affine_grid(theta_B23, shape, align_corners=True), align_corners=True)
            for theta_B23 in theta_BP23.unbind(1)
        ]
    mark("crop")
    probs = []
    for (network, mirrored), crop_B3PP in zip(CALLS, crops, strict=True):
        logits_BKPP = icnn(plain.parts[network], crop_B3PP.flip(-1) if mirrored else crop_B3PP)
        probs.append((logits_BKPP.flip(-1) if mirrored else logits_BKPP).softmax(1))
    mark("parts")
    labels_BHW = paste(probs, theta_BP23, height, width, config.paste)
    found = labels_BHW.cpu().numpy()
    mark("paste")
    return found


def paste(probs: list[Tensor], theta_BP23: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Resample every part's foreground onto whole canvases by the inverse theta, multiply the backgrounds, compare."""
    canvas_BKHW = torch.zeros(len(theta_BP23), len(NINE), height, width, device=theta_BP23.device)
    canvas_BKHW[:, 0] = 1
    for part, labels in enumerate(NINE.part_ids):
        theta_B23 = theta_BP23[:, part]
        scale_B2 = torch.stack([theta_B23[:, 0, 0], theta_B23[:, 1, 1]], 1)
        scale_B2 = torch.where(scale_B2 < 0, -1.0, 1.0) * scale_B2.abs().clamp(min=SMALLEST_SCALE)
        inverse_B23 = torch.cat([torch.diag_embed(1 / scale_B2), (-theta_B23[:, :, 2] / scale_B2).unsqueeze(-1)], -1)
        with _exact_products():
            grid_BHW2 = F.affine_grid(inverse_B23, [len(theta_B23), 1, height, width], align_corners=True)
        pasted_BKHW = F.grid_sample(probs[part][:, 1:], grid_BHW2, mode, "zeros", align_corners=True)
        canvas_BKHW[:, labels[0] : labels[-1] + 1] = pasted_BKHW
        canvas_BKHW[:, 0] *= 1 - pasted_BKHW.sum(1)
    return canvas_BKHW.argmax(1).byte()


@contextmanager
def _exact_products() -> Iterator[None]:
    """affine_grid is a matrix product; in TF32 it would miss by half a pixel."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


class Files(Dataset):
    """HELEN's files, each face five times: with 0, 1, 2, 3 and 4 of rotation, shift, scale and noise.

    ``files[i]``: (image_3SS float in [0, 1], labels_SS int64 of the nine labels).
    """

    def __init__(self, samples: list[Sample], size: int, seed: int = 0) -> None:
        self.samples, self.size, self.seed = samples, size, seed
        self.lut = HELEN.map_to(NINE)

    def __len__(self) -> int:
        return 5 * len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample, rng = self.samples[index // 5], np.random.default_rng((self.seed, index))
        chosen = rng.permutation(4)[: index % 5]
        pictures = [Image.open(sample.photo).convert("RGB"), *(Image.open(mask).convert("L") for mask in sample.masks)]
        width, height = pictures[0].size
        if 0 in chosen:
            angle = rng.uniform(-15, 15)
            pictures = [picture.rotate(angle, Image.Resampling.BILINEAR) for picture in pictures]
        if 1 in chosen:
            dx, dy = rng.uniform(-0.2, 0.2, 2) * (width, height)
            pictures = [_affine(picture, (1, 0, dx, 0, 1, dy)) for picture in pictures]
        if 2 in chosen:
            zoom = 1 / rng.uniform(0.8, 1.2)
            x, y = (1 - zoom) * width / 2, (1 - zoom) * height / 2
            pictures = [_affine(picture, (zoom, 0, x, 0, zoom, y)) for picture in pictures]
        photo_HW3 = np.asarray(pictures[0], np.float32) / 255
        if 3 in chosen:
            photo_HW3 = (photo_HW3 + rng.normal(0, rng.uniform(0, 0.05), photo_HW3.shape)).clip(0, 1)
        labels_HW = self.lut[np.stack([np.asarray(mask) for mask in pictures[1:]]).argmax(0)]
        image_13HW = torch.from_numpy(photo_HW3.astype(np.float32)).permute(2, 0, 1)[None]
        labels_11HW = torch.from_numpy(labels_HW)[None, None].float()
        image_13SS = F.interpolate(image_13HW, (self.size, self.size), mode="bilinear", align_corners=False)
        labels_11SS = F.interpolate(labels_11HW, (self.size, self.size), mode="nearest")
        return image_13SS[0], labels_11SS[0, 0].long()


def _affine(picture: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def load_batches(samples: list[Sample], size: int, batch_size: int, workers: int) -> DataLoader:
    """One shuffled epoch, the last incomplete batch left out."""
    return DataLoader(Files(samples, size), batch_size, shuffle=True, num_workers=workers, drop_last=True)


def stage1_step(plain: Plain) -> Callable[[Tensor, Tensor], None]:
    """A function that does one optimisation step of the coarse network on (images, labels)."""
    weights = {name: value.clone() for name, value in plain.coarse.items()}
    learned = [value.requires_grad_() for name, value in weights.items() if name.endswith(("weight", "bias"))]
    optimizer = torch.optim.Adam(learned, lr=1e-4)

    def step(images_B3SS: Tensor, labels_BSS: Tensor) -> None:
        logits_BKSS = icnn(weights, images_B3SS.to(plain.device), training=True)
        loss = F.cross_entropy(logits_BKSS, labels_BSS.to(plain.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
