"""A view is one look at a batch: as it is, or through one draw of the augmentation (paper section 3.1).

A view alone samples. An augmented face is never rendered at full size: a draw is an affine map from the augmented
photo to the cached one, and both looks of the method (the stretched whole and the six crops) sample the cached photo
through it, once. What is random is drawn on the CPU from the batch before it moved, and goes to the device in one copy;
all sampling runs there, on whole batches, and waits for nothing.
"""

import math
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.batch import FRAME_SIDE, Batch
from data.images import IMAGE_SIDE
from data.labels import MIRROR_PARTS, NO_ID
from geometry.sampling import crop, crop_labels, labels_at, stretch
from geometry.theta import compose
from utils.runtime import constant

AROUND = ("hair", "hat", "neck", "cloth")  # labels that go on beyond a photo's edges
NOISE = 2**22  # values of ``_noise``, a power of two


@dataclass(frozen=True)
class Augmentation:
    """Ranges that are sampled, uniformly unless stated. Raises ValueError for values out of range.

    rotation: degrees, either way. shift: share of width and of height, either way. scale: smallest and largest size
    of the face relative to the photo (log-uniform). stretch: largest logarithm of width over height, either way, as
    for photos of other shapes that are stretched to a square; half of the faces keep their shape. noise: largest
    standard deviation of the Gaussian noise (photo in [0, 1]). tone: strength of the brightness, contrast, gamma and
    colour changes, in [0, 1]. blur: largest standard deviation of the Gaussian blur, in samples of each look; half of
    the faces stay sharp. mirror: probability of a mirrored face (sides swapped in labels and parts). camera:
    probability of a photo with fewer pixels, blur, noise and JPEG artefacts (see ``data.camera``), drawn where photos
    are loaded, so that a soft photo is soft in every look. around: probability that the photo goes on beyond its edges,
    mirrored, where it is black otherwise: as the background there, or as hair, hat, neck and clothes (``AROUND``).
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
    camera: float = 0.0
    around: float = 0.0
    subsets: bool = False
    folds: int = 1

    def __post_init__(self) -> None:
        amounts = [float(getattr(self, f.name)) for f in fields(self) if f.name not in ("scale", "folds")]
        sound = 0 < self.scale[0] <= self.scale[1] < math.inf and self.folds in (1, 5)
        if (
            not sound
            or not all(0 <= amount < math.inf for amount in amounts)
            or max(self.tone, self.mirror, self.camera, self.around) > 1
        ):
            raise ValueError(f"augmentation out of range: {self}")

    def view(self, batch: Batch) -> "View":
        """The batch through one draw. Each face's draw comes from its own key alone (``Batch.keys_B3``), so that it
        is the same for any batch size and any number of processes."""
        return View(batch, _draw(self, batch.host))


NO_AUGMENTATION = Augmentation()

# The paper prints a scale range of 0.2-1.2; at 0.2 a face of HELEN is 100 pixels high, so we read 0.8, which is
# also the released code's lower end.
PAPER_AUGMENTATION = Augmentation(rotation=15, shift=0.2, scale=(0.8, 1.2), noise=0.05, subsets=True, folds=5)

# For photos of other kinds than the training data's: turned, off-centre, of other sizes and shapes, dark, blurred.
WIDE_AUGMENTATION = Augmentation(
    rotation=30, shift=0.18, scale=(0.6, 1.4), stretch=0.5, noise=0.04, tone=1.0, blur=1.5, mirror=0.5, camera=0.5
)


class Draw(NamedTuple):
    """One draw for a batch, on the CPU, or what has been sent of it to the batch's device.

    affine_B33: centred pixel coordinates of the augmented photo -> those of the cached one; photo_B33 and theta_B33 are
    the same in coordinates from edge to edge, and between the outermost pixel centres. kernels_BK: weights of the blur.
    mirrored_B: 1 or 0. noise_B: standard deviations; seeds_B: where each face's noise begins in ``_noise``.
    gain_B3, bias_B, gamma_B: photo ** gamma * gain + bias. around_B: 1 or 0, whether it continues beyond its edges.
    blur_B: standard deviations in samples.
    """

    affine_B33: Tensor
    photo_B33: Tensor
    theta_B33: Tensor
    kernels_BK: Tensor
    mirrored_B: Tensor
    noise_B: Tensor
    seeds_B: Tensor
    gain_B3: Tensor
    bias_B: Tensor
    gamma_B: Tensor
    around_B: Tensor
    blur_B: Tensor


class Parts(NamedTuple):
    """Where the six parts are in each photo of a view, on the CPU.

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
    def host(self) -> "View":
        """The same view of the batch as it was on the CPU."""
        return View(self.batch.host, self.draw)

    def send(self, *values: Tensor) -> list[Tensor]:
        """Small tensors (B, ...) of the CPU on the batch's device: as floats in one copy that nothing waits for. Where
        the batch lies on the CPU they stay what they are."""
        device = self.batch.sizes_B2.device
        if device.type == "cpu":
            return list(values)
        rows_BN = [value.flatten(1) if value.ndim > 1 else value[:, None] for value in values]
        packed_BN = torch.cat([row_BN.float() for row_BN in rows_BN], 1).pin_memory().to(device, non_blocking=True)
        moved = packed_BN.split([row_BN.shape[1] for row_BN in rows_BN], 1)
        return [row_BN.view(value.shape) for row_BN, value in zip(moved, values, strict=True)]

    @cached_property
    def _sent(self) -> Draw:
        assert self.draw is not None
        return Draw(*self.send(*self.draw))

    @property
    def sizes_B2(self) -> Tensor:
        """(height, width) of the photos of this view, int64 pixels; of framed faces, of their squares."""
        sizes_B2 = self.batch.sizes_B2
        return sizes_B2 if self.batch.frames_B33 is None else torch.full_like(sizes_B2, FRAME_SIDE)

    @staticmethod
    def needs_photos(size: int) -> bool:
        """Whether ``photo(size)`` reads the full-resolution photos; smaller ones come from the cached 256 x 256."""
        return 2 * size > IMAGE_SIDE

    def photo(self, size: int) -> Tensor:
        """The photos stretched to a square, antialiased: images_B3SS, float in [0, 1]."""
        cached = not self.needs_photos(size)
        if self.draw is None:
            return self._stretched(size, cached) / 255
        grid_BSS2 = self._inside(_grid(self._sent.photo_B33, size))
        # bilinear samples of twice as many pixels average over areas where the face keeps its size; of a photo that has
        # not so many they would blur
        sides = [2 * size if cached or min(own) >= 2 * size else size for own in self.host.sizes_B2.tolist()]
        alike = len(sides) if len(set(sides)) == 1 else 1
        images = [
            F.grid_sample(
                self._stretched(sides[b], cached, slice(b, b + alike)),
                grid_BSS2[b : b + alike],
                "bilinear",
                "zeros",
                align_corners=False,
            )
            for b in range(0, len(sides), alike)
        ]
        return self._photometric(torch.cat(images)[:, None] / 255)[:, 0]

    def label_map(self, size: int) -> Tensor:
        """The labels at the pixel centres of the stretched photo: labels_BSS, uint8."""
        half_B2 = self.sizes_B2.flip(-1).float() / 2
        if self.draw is None:
            matrix_B33 = torch.eye(3, device=half_B2.device).expand(len(half_B2), 3, 3)
        else:
            matrix_B33 = self._sent.photo_B33
        grid_BSS2 = _grid(matrix_B33, size)
        inside_BSS2 = self._inside(grid_BSS2)
        points_BSS2 = (inside_BSS2 + 1) * half_B2[:, None, None] - 0.5
        labels_BSS = labels_at(self.batch.labels_BHW, points_BSS2, self.sizes_B2)
        if inside_BSS2 is not grid_BSS2:
            kept = tuple(k if name in AROUND else 0 for k, name in enumerate(self.batch.labels.names))
            ids_256 = (*kept, *range(len(kept), NO_ID + 1))  # ignored pixels stay so
            lut = constant(ids_256, torch.uint8, half_B2.device)
            labels_BSS = torch.where((grid_BSS2.abs() > 1).any(-1), lut[labels_BSS.long()], labels_BSS)
        return self._mirrored(labels_BSS)

    def _inside(self, grid_BSS2: Tensor) -> Tensor:
        """Points beyond the edges (-1 and 1) of photos that go on there, mirrored into them."""
        if self.draw is None or not self.draw.around_B.any():
            return grid_BSS2
        mirrored_BSS2 = (((grid_BSS2 - 1).remainder(4) - 2).abs() - 1).clamp(-0.996, 0.996)  # no seam of black
        return torch.where((self._sent.around_B > 0).view(-1, 1, 1, 1), mirrored_BSS2, grid_BSS2)

    def crops(self, theta_BP23: Tensor, size: int) -> Tensor:
        """The windows ``theta_BP23`` (in the frame of each photo of this view), bilinear: crops_BP3SS, float in [0, 1].

        Differentiable in theta (paper section 2.3).
        """
        batch = self.batch
        crops_BP3SS = crop(batch.photos_BHW3, self.source(theta_BP23), size, batch.sizes_B2, batch.photo_B)
        return crops_BP3SS if self.draw is None else self._photometric(crops_BP3SS)

    def crop_labels(self, theta_BP23: Tensor, size: int) -> Tensor:
        """The same windows of the label maps, nearest neighbour, 0 outside the photo: labels_BPSS, uint8."""
        source_BP23 = self.source(theta_BP23.detach())
        return self._mirrored(crop_labels(self.batch.labels_BHW, source_BP23, size, self.batch.sizes_B2))

    def parts(self) -> Parts:
        """Where the parts are in this view, on the CPU."""
        batch, draw = self.batch.host, self.draw
        if draw is None:
            return Parts(batch.centres_BP2, batch.extents_BP2, batch.present_BP)
        middle_B12 = (self.host.sizes_B2.flip(-1).float() - 1).unsqueeze(1) / 2
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
        offsets_BP3 = self.send(torch.from_numpy(offsets).to(theta_BP23.dtype))[0] * amount
        scale_BP2 = torch.diagonal(theta_BP23[..., :2], dim1=-2, dim2=-1)
        shift_BP2 = theta_BP23[..., 2] + 2 * scale_BP2 * offsets_BP3[..., :2]
        return torch.cat([theta_BP23[..., :2] * torch.exp(offsets_BP3[..., 2:, None]), shift_BP2.unsqueeze(-1)], -1)

    def source(self, theta_BP23: Tensor) -> Tensor:
        """Windows of this view as windows of the batch's photos."""
        if self.draw is not None:
            theta_BP23 = compose(self._sent.theta_B33, theta_BP23)
        return theta_BP23 if self.batch.frames_B33 is None else compose(self.batch.frames_B33, theta_BP23)

    def _stretched(self, side: int, cached: bool, faces: slice = slice(None)) -> Tensor:
        """The photos of some faces stretched to side x side, antialiased: (B, 3, side, side), float in [0, 255].

        cached: from the cached stretched photos, else from the photos.
        """
        batch = self.batch
        if not cached and batch.frames_B33 is not None:
            return self._stretched_frames(side)
        if not cached:
            photos_BHW3 = batch.photos_BHW3[faces]
            full = bool((batch.host.sizes_B2[faces] == torch.tensor(photos_BHW3.shape[1:3])).all())
            return stretch(photos_BHW3, batch.sizes_B2[faces], side, full)
        images_256_B3SS = batch.images_256_BSS3.permute(0, 3, 1, 2).float()
        return images_256_B3SS if side == IMAGE_SIDE else F.adaptive_avg_pool2d(images_256_B3SS, side)

    def _stretched_frames(self, side: int) -> Tensor:
        """``_stretched`` of framed faces, out of the photos: the mean of as many samples as a pixel covers."""
        batch = self.batch
        assert batch.frames_B33 is not None
        assert batch.photo_B is not None
        assert batch.host.frames_B33 is not None
        sides_B2 = (batch.host.frames_B33[:, :2, :2] * (batch.host.sizes_B2.flip(-1)[:, :, None] - 1)).norm(dim=1)
        counts = [max(1, min(8, math.ceil(length / side))) for length in sides_B2.amax(1).tolist()]
        images, first = [], 0
        for count, alike in groupby(counts):
            faces = slice(first, first := first + len(list(alike)))
            framed = batch.frames_B33[faces], batch.sizes_B2[faces], batch.photo_B[faces]
            images.append(framed_images(batch.photos_BHW3, *framed, side, count) * 255)
        return torch.cat(images)

    def _photometric(self, images_BN3SS: Tensor) -> Tensor:
        """Blur, tone and noise on (B, N, 3, S, S) in [0, 1]; on the photo only, as the paper has it."""
        draw, sent, shape = self.draw, self._sent, (-1, 1, 1, 1, 1)
        assert draw is not None
        images = _blur(images_BN3SS, sent.kernels_BK) if draw.blur_B.any() else images_BN3SS
        images = images.clamp(1e-4, 1)
        if (draw.gamma_B != 1).any() or (draw.gain_B3 != 1).any() or draw.bias_B.any():
            images = images ** sent.gamma_B.view(shape)
            images = images * sent.gain_B3[:, None, :, None, None] + sent.bias_B.view(shape)
        if draw.noise_B.any():
            count = images[0].numel()
            places_BN = sent.seeds_B.long()[:, None] + torch.arange(count, device=images.device)
            noise = _noise(images.device)[places_BN & (NOISE - 1)].view(images.shape)
            images = torch.addcmul(images, noise, sent.noise_B.view(shape))
        return images.clamp(0, 1)

    def _mirrored(self, labels: Tensor) -> Tensor:
        """Labels (B, ...) with their sides swapped where the face is mirrored."""
        if self.draw is None or not self.draw.mirrored_B.any():
            return labels
        lut = constant(self.batch.labels.mirror_256, torch.uint8, labels.device)
        mirrored_B = (self._sent.mirrored_B > 0).view(-1, *[1] * (labels.ndim - 1))
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
    sizes_B2 = batch.sizes_B2
    gain_B3, bias_B, gamma_B, blur_B, stretch, around = torch.stack(tone[:3], 1), *tone[3:]
    wide, high = scale * torch.exp(stretch / 2), scale * torch.exp(-stretch / 2)
    cos, sin, flip = torch.cos(angle), torch.sin(angle), 1 - 2 * mirrored
    dx, dy = shift_x * sizes_B2[:, 1] / wide, shift_y * sizes_B2[:, 0] / high
    # augmented = (wide, high) * rotate(source) + shift, mirrored last; this is its inverse
    affine_B33 = torch.zeros(len(angle), 3, 3, dtype=torch.float64)
    affine_B33[:, 0, 0], affine_B33[:, 0, 1] = cos / wide * flip, sin / high
    affine_B33[:, 1, 0], affine_B33[:, 1, 1] = -sin / wide * flip, cos / high
    affine_B33[:, 0, 2], affine_B33[:, 1, 2] = -(cos * dx + sin * dy), sin * dx - cos * dy
    affine_B33[:, 2, 2] = 1
    sides_B2, affine_B33 = View(batch).sizes_B2.flip(-1).float(), affine_B33.float()
    photo_B33 = _normalised(affine_B33, sides_B2 / 2)
    theta_B33 = _normalised(affine_B33, (sides_B2 - 1).clamp(min=1) / 2)
    noise_B, seeds_B, gain_B3, bias_B, gamma_B, blur_B = (
        values.float() for values in (noise, seeds, gain_B3, bias_B, gamma_B, blur_B)
    )
    geometry = affine_B33, photo_B33, theta_B33, _blur_kernels(blur_B), mirrored.bool()
    return Draw(*geometry, noise_B, seeds_B, gain_B3, bias_B, gamma_B, around.bool(), blur_B)


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
    seed = float(rng.integers(2**31) % NOISE)
    contrast = np.exp(a.tone * rng.uniform(-0.5, 0.5))
    gain = contrast * np.exp(a.tone * rng.uniform(-0.15, 0.15, 3))
    bias = 0.5 * (1 - contrast) + a.tone * rng.uniform(-0.15, 0.15)
    gamma = np.exp(a.tone * rng.uniform(-0.7, 0.7))
    blur = max(0.0, rng.uniform(-a.blur, a.blur))
    stretch = rng.uniform(-a.stretch, a.stretch) * (rng.random() < 0.5)
    around = float(rng.random() < a.around)
    return (angle, *shift, scale, mirrored, noise, seed, *gain, bias, gamma, blur, stretch, around)


def _normalised(affine_B33: Tensor, half_B2: Tensor) -> Tensor:
    """The affine in coordinates divided by ``half_B2`` (x, y)."""
    ones_B1 = torch.ones_like(half_B2[:, :1])
    half_B3 = torch.cat([half_B2, ones_B1], 1)
    return affine_B33 * half_B3[:, None, :] / half_B3[:, :, None]


def _grid(matrix_B33: Tensor, size: int) -> Tensor:
    """Sampling points of size x size pixel centres, align_corners=False: (B, size, size, 2).

    Elementwise, as all geometry here: matrix products would lose digits under autocast and TF32.
    """
    x_SS1, y_SS1 = _ticks(size, matrix_B33.device)
    x_B112, y_B112, shift_B112 = (column[:, None, None] for column in matrix_B33[:, :2].unbind(-1))
    return x_B112 * x_SS1 + y_B112 * y_SS1 + shift_B112


@cache
def _ticks(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of size x size pixel centres, from edge to edge: two of (size, size, 1)."""
    with torch.inference_mode(False):
        ticks_S = (2 * torch.arange(size, device=device) + 1) / size - 1
        y_SS, x_SS = torch.meshgrid(ticks_S, ticks_S, indexing="ij")
        return x_SS.unsqueeze(-1), y_SS.unsqueeze(-1)


@cache
def _noise(device: torch.device) -> Tensor:
    """Normally distributed values, the same on any device; each face takes those from its own place on."""
    with torch.inference_mode(False):
        return torch.randn(NOISE, generator=torch.Generator().manual_seed(0)).to(device)


def _blur_kernels(sigma_B: Tensor) -> Tensor:
    """Nine weights of a Gaussian of each standard deviation (samples; 0: no blur): (B, 9)."""
    weights_BK = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma_B[:, None].clamp(min=1e-3)) ** 2)
    return weights_BK / weights_BK.sum(1, keepdim=True)


def _blur(images_BN3SS: Tensor, kernels_BK: Tensor) -> Tensor:
    """Blur of each face by its own weights."""
    batch, *rest, height, width = images_BN3SS.shape
    planes = images_BN3SS.reshape(batch, -1, height, width).transpose(0, 1)  # a face is a channel of its own
    planes = F.conv2d(F.pad(planes, (4, 4, 0, 0), "replicate"), kernels_BK[:, None, None], groups=batch)
    planes = F.conv2d(F.pad(planes, (0, 0, 4, 4), "replicate"), kernels_BK[:, None, :, None], groups=batch)
    return planes.transpose(0, 1).reshape(batch, *rest, height, width)
