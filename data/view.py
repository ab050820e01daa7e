"""A view is one look at a batch: as it is, or through one draw of the augmentation (paper section 3.1).

A view alone samples. An augmented face is never rendered at full size: a draw is an affine map from the augmented
photo to the cached one, and both looks of the method (the stretched whole and the six crops) sample the cached photo
through it, once. Everything runs on the batch's device, on whole batches.
"""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.batch import FRAME_SIDE, Batch
from data.images import THUMB
from data.labels import MIRROR_PARTS
from geometry.sampling import crop, crop_labels, labels_at, stretch
from geometry.theta import compose


@dataclass(frozen=True)
class Augmentation:
    """Ranges that are sampled, uniformly unless stated. Raises ValueError for values out of range.

    rotation: degrees, either way. shift: share of width and of height, either way. scale: smallest and largest size
    of the face relative to the photo (log-uniform). stretch: largest logarithm of width over height, either way, as
    for photos of other shapes that are stretched to a square; half of the faces keep their shape. noise: largest
    standard deviation of the Gaussian noise (photo in [0, 1]). tone: strength of the brightness, contrast, gamma and
    colour changes, in [0, 1]. blur: largest standard deviation of the Gaussian blur, in samples of each look; half of
    the faces stay sharp. mirror: probability of a mirrored face (sides swapped in labels and parts).
    subsets: apply 0, 1, 2, 3 or 4 of rotation, shift, scale and noise to each face, as the paper does; otherwise all
    four. folds: how often each face is seen in an epoch; 5 (the paper's) shows each face with every number of
    operations.
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    stretch: float = 0.0
    noise: float = 0.0
    tone: float = 0.0
    blur: float = 0.0
    mirror: float = 0.0
    subsets: bool = False
    folds: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] or self.folds not in (1, 5):
            raise ValueError(f"augmentation out of range: {self}")
        if any(getattr(self, f.name) < 0 for f in fields(self) if f.name not in ("scale", "folds")):
            raise ValueError(f"augmentation out of range: {self}")

    def view(self, batch: Batch) -> "View":
        """The batch through one draw. Each face's draw comes from its own key alone (``Batch.keys_B3``), so that it
        is the same for any batch size and any number of processes."""
        return View(batch, _draw(self, batch))


NO_AUGMENTATION = Augmentation()

# The paper prints a scale range of 0.2-1.2; at 0.2 a face of HELEN is 100 pixels high, so we read 0.8, which is
# also the released code's lower end.
PAPER_AUGMENTATION = Augmentation(rotation=15, shift=0.2, scale=(0.8, 1.2), noise=0.05, subsets=True, folds=5)

# For photos of other kinds than the training data's: turned, off-centre, of other sizes and shapes, dark, blurred.
WIDE_AUGMENTATION = Augmentation(
    rotation=30, shift=0.18, scale=(0.6, 1.4), stretch=0.5, noise=0.04, tone=1.0, blur=1.5, mirror=0.5
)


class Draw(NamedTuple):
    """One draw for a batch, on the batch's device.

    affine_B33: centred pixel coordinates of the augmented photo -> those of the cached one.
    mirrored_B: bool. noise_B: standard deviations; seeds_B: of the noise; both stay on the CPU.
    gain_B3, bias_B, gamma_B: photo ** gamma * gain + bias. blur_B: standard deviations in samples, on the CPU.
    """

    affine_B33: Tensor
    mirrored_B: Tensor
    noise_B: Tensor
    seeds_B: Tensor
    gain_B3: Tensor
    bias_B: Tensor
    gamma_B: Tensor
    blur_B: Tensor


class Parts(NamedTuple):
    """Where the six parts are in each photo of a view.

    centres_BP2: centroids (x, y), float32 pixels. extents_BP2: bounding boxes (width, height), float32 pixels.
    present_BP: bool; False where the face does not show the part, or its centre left the photo.
    """

    centres_BP2: Tensor
    extents_BP2: Tensor
    present_BP: Tensor


@dataclass(frozen=True)
class View:
    """One look at a batch. draw: the augmentation through which it is seen; None for the photos as they are."""

    batch: Batch
    draw: Draw | None = None

    @property
    def sizes_B2(self) -> Tensor:
        """(height, width) of the photos of this view, int64 pixels; of framed faces, of their squares."""
        sizes_B2 = self.batch.sizes_B2
        return sizes_B2 if self.batch.frames_B33 is None else torch.full_like(sizes_B2, FRAME_SIDE)

    @staticmethod
    def needs_photos(size: int) -> bool:
        """Whether ``photo(size)`` reads the full-resolution photos; smaller ones come from the cached 256 x 256."""
        return 2 * size > THUMB

    def photo(self, size: int) -> Tensor:
        """The photos stretched to a square, antialiased: images_B3SS, float in [0, 1]."""
        cached = not self.needs_photos(size)
        if self.draw is None:
            return self._stretched(size, cached) / 255
        # bilinear samples of twice as many pixels average over areas where the face keeps its size
        source_B3TT = self._stretched(2 * size, cached)
        grid_BSS2 = _grid(_normalised(self.draw.affine_B33, self._half_B2()), size)
        images_B3SS = F.grid_sample(source_B3TT, grid_BSS2, "bilinear", "zeros", align_corners=False)
        return _photometric(self.draw, images_B3SS[:, None] / 255)[:, 0]

    def label_map(self, size: int) -> Tensor:
        """The labels at the pixel centres of the stretched photo: labels_BSS, uint8."""
        half_B2 = self._half_B2()
        matrix_B33 = torch.eye(3, device=half_B2.device).expand(len(half_B2), 3, 3)
        if self.draw is not None:
            matrix_B33 = _normalised(self.draw.affine_B33, half_B2)
        points_BSS2 = (_grid(matrix_B33, size) + 1) * half_B2[:, None, None] - 0.5
        return self._mirrored(labels_at(self.batch.labels_BHW, points_BSS2, self.sizes_B2))

    def crops(self, theta_BP23: Tensor, size: int) -> Tensor:
        """The windows ``theta_BP23`` (in the frame of each photo of this view), bilinear: crops_BP3SS, float in [0, 1].

        Differentiable in theta (paper section 2.3).
        """
        batch = self.batch
        crops_BP3SS = crop(batch.photos_BHW3, self.source(theta_BP23), size, batch.sizes_B2, batch.photo_B)
        return crops_BP3SS if self.draw is None else _photometric(self.draw, crops_BP3SS)

    def crop_labels(self, theta_BP23: Tensor, size: int) -> Tensor:
        """The same windows of the label maps, nearest neighbour, 0 outside the photo: labels_BPSS, uint8."""
        source_BP23 = self.source(theta_BP23.detach())
        return self._mirrored(crop_labels(self.batch.labels_BHW, source_BP23, size, self.batch.sizes_B2))

    def parts(self) -> Parts:
        """Where the parts are in this view."""
        batch, draw = self.batch, self.draw
        if draw is None or not batch.labels.part_ids:
            return Parts(batch.centres_BP2, batch.extents_BP2, batch.present_BP)
        middle_B12 = (self.sizes_B2.flip(-1).float() - 1).unsqueeze(1) / 2
        inverse_B33 = torch.linalg.inv(draw.affine_B33)
        centred_BP2 = batch.centres_BP2 - middle_B12
        turned_BP2 = (centred_BP2[:, :, None] * inverse_B33[:, None, :2, :2]).sum(-1)
        centres_BP2 = turned_BP2 + inverse_B33[:, None, :2, 2] + middle_B12
        # a turned part is taken for an ellipse
        extents_BP2 = (batch.extents_BP2[:, :, None] * inverse_B33[:, None, :2, :2]).square().sum(-1).sqrt()
        inside_BP = ((centres_BP2 >= 0) & (centres_BP2 <= 2 * middle_B12)).all(-1)
        present_BP = batch.present_BP & inside_BP
        swap_BP = draw.mirrored_B[:, None]
        order = list(MIRROR_PARTS)
        return Parts(
            torch.where(swap_BP[..., None], centres_BP2[:, order], centres_BP2),
            torch.where(swap_BP[..., None], extents_BP2[:, order], extents_BP2),
            torch.where(swap_BP, present_BP[:, order], present_BP),
        )

    def jittered(self, theta_BP23: Tensor, amount: float) -> Tensor:
        """Windows as a localizer might miss them: moved by up to ``amount`` of their side, resized by up to as much."""
        if amount == 0:
            return theta_BP23
        keys, parts = self.batch.keys_B3.tolist(), theta_BP23.shape[1]
        offsets = np.stack([np.random.default_rng((*key, 1)).uniform(-1, 1, (parts, 3)) for key in keys])
        offsets_BP3 = torch.from_numpy(offsets).to(theta_BP23) * amount
        scale_BP2 = torch.diagonal(theta_BP23[..., :2], dim1=-2, dim2=-1)
        shift_BP2 = theta_BP23[..., 2] + 2 * scale_BP2 * offsets_BP3[..., :2]
        return torch.cat([theta_BP23[..., :2] * torch.exp(offsets_BP3[..., 2:, None]), shift_BP2.unsqueeze(-1)], -1)

    def source(self, theta_BP23: Tensor) -> Tensor:
        """Windows of this view as windows of the batch's photos."""
        if self.draw is not None:
            half_B2 = (self.sizes_B2.flip(-1).float() - 1).clamp(min=1) / 2
            theta_BP23 = compose(_normalised(self.draw.affine_B33, half_B2), theta_BP23)
        return theta_BP23 if self.batch.frames_B33 is None else compose(self.batch.frames_B33, theta_BP23)

    def _half_B2(self) -> Tensor:
        return self.sizes_B2.flip(-1).float() / 2

    def _stretched(self, side: int, cached: bool) -> Tensor:
        """The photos stretched to side x side, antialiased: (B, 3, side, side), float in [0, 255].

        cached: from the cached stretched photos, else from the photos.
        """
        if not cached and self.batch.frames_B33 is None:
            return stretch(self.batch.photos_BHW3, self.batch.sizes_B2, side)
        if not cached:
            return self._stretched_frames(side)
        thumbs_B3TT = self.batch.thumbs_BTT3.permute(0, 3, 1, 2).float()
        return thumbs_B3TT if side == THUMB else F.adaptive_avg_pool2d(thumbs_B3TT, side)

    def _stretched_frames(self, side: int) -> Tensor:
        """``_stretched`` of framed faces, out of the photos: the mean of as many samples as a pixel covers."""
        batch = self.batch
        assert batch.frames_B33 is not None
        assert batch.photo_B is not None
        images = []
        for frame_133, size_12, photo_1 in zip(
            batch.frames_B33.split(1), batch.sizes_B2.split(1), batch.photo_B.split(1), strict=True
        ):
            length = float((frame_133[0, :2, :2] * (size_12.flip(-1).T - 1)).square().sum(0).max().sqrt())
            count = max(1, min(8, math.ceil(length / side)))
            images.append(framed_images(batch.photos_BHW3, frame_133, size_12, photo_1, side, count) * 255)
        return torch.cat(images)

    def _mirrored(self, labels: Tensor) -> Tensor:
        """Labels (B, ...) with their sides swapped where the face is mirrored."""
        if self.draw is None:
            return labels
        lut = torch.tensor(self.batch.labels.mirror, dtype=torch.uint8, device=labels.device)
        mirrored_B = self.draw.mirrored_B.view(-1, *[1] * (labels.ndim - 1))
        return torch.where(mirrored_B, lut[labels.long()], labels)


def framed_images(
    photos_BHW3: Tensor, frames_F33: Tensor, sizes_F2: Tensor, photo_F: Tensor, side: int, count: int
) -> Tensor:
    """Framed faces (see ``Batch``) out of their photos: images_F3SS, float in [0, 1]; each pixel is the mean of count x
    count samples."""
    # from edge to edge of the square: its outermost pixel centres lie at 1 - 1 / FRAME_SIDE
    reach = (1 - 1 / (side * count)) / (1 - 1 / FRAME_SIDE)
    theta_F123 = compose(frames_F33, torch.eye(2, 3, device=frames_F33.device)[None, None] * reach)
    return F.avg_pool2d(crop(photos_BHW3, theta_F123, side * count, sizes_F2, photo_F)[:, 0], count)


def _draw(augmentation: Augmentation, batch: Batch) -> Draw:
    columns = [_draw_one(augmentation, key) for key in batch.keys_B3.tolist()]
    angle, shift_x, shift_y, scale, mirrored, noise, seeds, *tone = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*columns, strict=True)
    )
    sizes_B2 = batch.sizes_B2.cpu()
    gain_B3, bias_B, gamma_B, blur_B, stretch = torch.stack(tone[:3], 1), *tone[3:]
    wide, high = scale * torch.exp(stretch / 2), scale * torch.exp(-stretch / 2)
    cos, sin, flip = torch.cos(angle), torch.sin(angle), 1 - 2 * mirrored
    dx, dy = shift_x * sizes_B2[:, 1] / wide, shift_y * sizes_B2[:, 0] / high
    # augmented = (wide, high) * rotate(source) + shift, mirrored last; this is its inverse
    affine_B33 = torch.zeros(len(angle), 3, 3, dtype=torch.float64)
    affine_B33[:, 0, 0], affine_B33[:, 0, 1] = cos / wide * flip, sin / high
    affine_B33[:, 1, 0], affine_B33[:, 1, 1] = -sin / wide * flip, cos / high
    affine_B33[:, 0, 2], affine_B33[:, 1, 2] = -(cos * dx + sin * dy), sin * dx - cos * dy
    affine_B33[:, 2, 2] = 1
    device = batch.sizes_B2.device
    return Draw(
        affine_B33.float().to(device),
        mirrored.bool().to(device),
        noise.float(),
        seeds.long(),
        gain_B3.float().to(device),
        bias_B.float().to(device),
        gamma_B.float().to(device),
        blur_B.float(),
    )


def _draw_one(augmentation: Augmentation, key: list[int]) -> tuple[float, ...]:
    a = augmentation
    rng = np.random.default_rng(key)
    apply = np.ones(4, bool)
    if a.subsets:  # the third key runs through the numbers of operations, see ``training_batches``
        apply = np.isin(np.arange(4), rng.permutation(4)[: key[2] % 5])
    angle = np.deg2rad(rng.uniform(-a.rotation, a.rotation)) * apply[0]
    shift = rng.uniform(-a.shift, a.shift, 2) * apply[1]
    scale = np.exp(rng.uniform(*np.log(a.scale)) * apply[2])
    noise = rng.uniform(0, a.noise) * apply[3]
    mirrored = float(rng.random() < a.mirror)
    seed = float(rng.integers(2**31))
    contrast = np.exp(a.tone * rng.uniform(-0.5, 0.5))
    gain = contrast * np.exp(a.tone * rng.uniform(-0.15, 0.15, 3))
    bias = 0.5 * (1 - contrast) + a.tone * rng.uniform(-0.15, 0.15)
    gamma = np.exp(a.tone * rng.uniform(-0.7, 0.7))
    blur = max(0.0, rng.uniform(-a.blur, a.blur))
    stretch = rng.uniform(-a.stretch, a.stretch) * (rng.random() < 0.5)
    return (angle, *shift, scale, mirrored, noise, seed, *gain, bias, gamma, blur, stretch)


def _normalised(affine_B33: Tensor, half_B2: Tensor) -> Tensor:
    """The affine in coordinates divided by ``half_B2`` (x, y)."""
    ones_B1 = torch.ones_like(half_B2[:, :1])
    half_B3 = torch.cat([half_B2, ones_B1], 1)
    return affine_B33 * half_B3[:, None, :] / half_B3[:, :, None]


def _grid(matrix_B33: Tensor, size: int) -> Tensor:
    """Sampling points of size x size pixel centres, align_corners=False: (B, size, size, 2).

    Elementwise, as all geometry here: matrix products would lose digits under autocast and TF32.
    """
    ticks_S = (2 * torch.arange(size, device=matrix_B33.device) + 1) / size - 1
    y_SS1, x_SS1 = (axis.unsqueeze(-1) for axis in torch.meshgrid(ticks_S, ticks_S, indexing="ij"))
    x_B112, y_B112, shift_B112 = (column[:, None, None] for column in matrix_B33[:, :2].unbind(-1))
    return x_B112 * x_SS1 + y_B112 * y_SS1 + shift_B112


def _blur(images_BN3SS: Tensor, sigma_B: Tensor) -> Tensor:
    """Gaussian blur of each face by its own standard deviation (samples; 0 changes nothing)."""
    taps_K = torch.arange(-4, 5, device=sigma_B.device)
    kernel_BK = torch.exp(-0.5 * (taps_K / sigma_B[:, None].clamp(min=1e-3)) ** 2)
    kernel_BK = kernel_BK / kernel_BK.sum(1, keepdim=True)
    batch, *rest, height, width = images_BN3SS.shape
    planes = images_BN3SS.reshape(batch, -1, height, width).transpose(0, 1)  # a face is a channel of its own
    planes = F.conv2d(F.pad(planes, (4, 4, 0, 0), "replicate"), kernel_BK[:, None, None], groups=batch)
    planes = F.conv2d(F.pad(planes, (0, 0, 4, 4), "replicate"), kernel_BK[:, None, :, None], groups=batch)
    return planes.transpose(0, 1).reshape(batch, *rest, height, width)


def _photometric(draw: Draw, images_BN3SS: Tensor) -> Tensor:
    """Blur, tone and noise on (B, N, 3, S, S) in [0, 1]; on the photo only, as the paper has it."""
    shape = (-1, 1, 1, 1, 1)
    images = _blur(images_BN3SS, draw.blur_B.to(images_BN3SS.device)) if draw.blur_B.any() else images_BN3SS
    images = images.clamp(1e-4, 1) ** draw.gamma_B.view(shape)
    images = images * draw.gain_B3[:, None, :, None, None] + draw.bias_B.view(shape)
    for b, (sigma, seed) in enumerate(zip(draw.noise_B.tolist(), draw.seeds_B.tolist(), strict=True)):
        if sigma > 0:
            generator = torch.Generator(images.device).manual_seed(seed)
            images[b] += sigma * torch.randn(images[b].shape, generator=generator, device=images.device)
    return images.clamp(0, 1)
