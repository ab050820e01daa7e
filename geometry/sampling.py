"""Crop and stretch: sampling photos and label maps (paper section 2.3). Coordinates: see ``geometry.theta``."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_points(theta_BP23: Tensor, size: int, sizes_B2: Tensor) -> Tensor:
    """Where ``size`` x ``size`` crops sample each photo: points_BPSS2 as (x, y) in its pixels, differentiable.

    Points as near to a pixel centre as rounding errors reach (1e-3 pixels at 1000) lie right on it.
    """
    ticks_S = torch.linspace(-1, 1, size, device=theta_BP23.device, dtype=theta_BP23.dtype)
    y_SS1, x_SS1 = (axis.unsqueeze(-1) for axis in torch.meshgrid(ticks_S, ticks_S, indexing="ij"))
    x_BP112, y_BP112, shift_BP112 = (column[:, :, None, None] for column in theta_BP23.unbind(-1))
    span_B1112 = (sizes_B2.flip(-1).to(theta_BP23.dtype) - 1).clamp(min=1)[:, None, None, None]
    points_BPSS2 = (x_BP112 * x_SS1 + y_BP112 * y_SS1 + shift_BP112 + 1) / 2 * span_B1112
    to_centre_BPSS2 = (points_BPSS2.round() - points_BPSS2).detach()
    near_BPSS2 = to_centre_BPSS2.abs() <= 8 * torch.finfo(theta_BP23.dtype).eps * span_B1112
    return torch.where(near_BPSS2, points_BPSS2 + to_centre_BPSS2, points_BPSS2)


def crop(
    photos_BHWC: Tensor,
    theta_BP23: Tensor,
    size: int,
    sizes_B2: Tensor | None = None,
    photo_B: Tensor | None = None,
) -> Tensor:
    """Cut windows out of photos, bilinear, zeros outside; differentiable in theta and in photos of floats.

    photos_BHWC: uint8, whose crops are scaled to [0, 1], or float. theta_BP23: in the frame of each photo.
    sizes_B2: the photos' own sizes where they are padded. photo_B: int64, the photo that each row of theta is of, where
    photos have several or none; sizes_B2 then has theta's rows too. Returns crops_BPCSS (channels last in memory),
    float.
    With an odd window of ``size`` pixels and an integer centre, the crop equals array slicing exactly (paper
    Fig. 7, 8). Only the pixels that the windows sample are read.
    """
    height, width = photos_BHWC.shape[1:3]
    if sizes_B2 is None:
        sizes_B2 = torch.tensor([[height, width]], device=theta_BP23.device).expand(len(theta_BP23), 2)
    if photo_B is None:
        photo_B = torch.arange(photos_BHWC.shape[0], device=theta_BP23.device)
    points_BPSS2 = sample_points(theta_BP23, size, sizes_B2)
    corner_BPSS2 = points_BPSS2.detach().floor()
    right_BPSS, below_BPSS = (points_BPSS2 - corner_BPSS2).unbind(-1)
    x_BPSS, y_BPSS = corner_BPSS2.nan_to_num(-2).clamp(-2, torch.sym_max(height, width)).long().unbind(-1)
    first_B111 = (photo_B * (height * width)).view(-1, 1, 1, 1)
    pixels_NC = photos_BHWC.flatten(0, 2)
    crops_BPSSC: Tensor | None = None
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = x_BPSS + dx, y_BPSS + dy
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        weight = (right_BPSS if dx else 1 - right_BPSS) * (below_BPSS if dy else 1 - below_BPSS)
        found_BPSSC = pixels_NC[torch.where(inside, first_B111 + y * width + x, 0)].to(theta_BP23.dtype)
        part_BPSSC = torch.where(inside, weight, 0).unsqueeze(-1) * found_BPSSC
        crops_BPSSC = part_BPSSC if crops_BPSSC is None else crops_BPSSC + part_BPSSC
    assert crops_BPSSC is not None
    crops_BPCSS = crops_BPSSC.permute(0, 1, 4, 2, 3)
    return crops_BPCSS / 255 if photos_BHWC.dtype == torch.uint8 else crops_BPCSS.to(photos_BHWC.dtype)


def crop_labels(labels_BHW: Tensor, theta_BP23: Tensor, size: int, sizes_B2: Tensor) -> Tensor:
    """The same windows out of label maps, nearest neighbour, 0 outside the photo.

    labels_BHW: uint8. Returns labels_BPSS, uint8.
    """
    return labels_at(labels_BHW, sample_points(theta_BP23.float(), size, sizes_B2), sizes_B2)


def labels_at(labels_BHW: Tensor, points_px: Tensor, sizes_B2: Tensor) -> Tensor:
    """Label (uint8) of the pixel nearest to each point; 0 outside the photo.

    points_px: (B, ..., 2) as (x, y) in pixels of the photo.
    """
    batch, _, width = labels_BHW.shape
    flat_BN2 = points_px.reshape(batch, -1, 2).round().long()
    x_BN, y_BN = flat_BN2.unbind(-1)
    inside_BN = (x_BN >= 0) & (y_BN >= 0) & (x_BN < sizes_B2[:, 1:]) & (y_BN < sizes_B2[:, :1])
    index_BN = torch.where(inside_BN, y_BN * width + x_BN, 0)
    found_BN = labels_BHW.reshape(batch, -1).gather(1, index_BN)
    return torch.where(inside_BN, found_BN, 0).reshape(points_px.shape[:-1])


def enlarge(logits_BKhw: Tensor, sizes_B2: Tensor) -> Iterator[Tensor]:
    """Logits of stretched photos, enlarged bilinearly to each photo's own size: logits_KHW (float32), one by one."""
    for logits_Khw, size in zip(logits_BKhw, sizes_B2.tolist(), strict=True):
        yield F.interpolate(logits_Khw[None].float(), size, mode="bilinear")[0]


def enlarged_labels(logits_BKhw: Tensor, sizes_B2: Tensor, height: int, width: int) -> Tensor:
    """The most probable label at each pixel of photos that share a height x width grid: labels_BHW (uint8), 0 in the
    padding."""
    labels_BHW = torch.zeros(len(logits_BKhw), height, width, dtype=torch.uint8, device=logits_BKhw.device)
    for labels_HW, logits_KHW in zip(labels_BHW, enlarge(logits_BKhw, sizes_B2), strict=True):
        labels_HW[: logits_KHW.shape[1], : logits_KHW.shape[2]] = logits_KHW.argmax(0).byte()
    return labels_BHW


def stretch(photos_BHW3: Tensor, sizes_B2: Tensor, side: int) -> Tensor:
    """Photos (uint8, padded) stretched to side x side each, antialiased: (B, 3, side, side), float32 in [0, 255]."""
    height, width = photos_BHW3.shape[1:3]
    if height == width and height % side == 0 and bool((sizes_B2 == height).all()):  # areas of whole pixels
        return F.avg_pool2d(photos_BHW3.permute(0, 3, 1, 2).float(), height // side)
    images = []
    for photo_HW3, size_2 in zip(photos_BHW3, sizes_B2, strict=True):
        rows_SH, columns_SW = (
            stretch_weights(count, length, side, length >= side)
            for count, length in zip((height, width), size_2, strict=True)
        )
        images.append(stretch_by(photo_HW3.unsqueeze(0), rows_SH, columns_SW))
    return torch.cat(images)


def stretch_alike(photos_BHW3: Tensor, side: int) -> Tensor:
    """``stretch`` of photos of one size, all at once; fit to be exported for any size."""
    counts = photos_BHW3.shape[1:3]
    lengths_2 = torch.tensor(counts, device=photos_BHW3.device)
    rows_SH, columns_SW = (
        stretch_weights(count, length, side, length >= side) for count, length in zip(counts, lengths_2, strict=True)
    )
    return stretch_by(photos_BHW3, rows_SH, columns_SW)


def stretch_by(photos_BHW3: Tensor, rows_SH: Tensor, columns_SW: Tensor) -> Tensor:
    """Two products with each axis' weights (see ``stretch_weights``): (B, 3, S, S), float32."""
    with torch.autocast(photos_BHW3.device.type, enabled=False):
        by_rows_BSW3 = (rows_SH @ photos_BHW3.float().flatten(2)).unflatten(2, (-1, 3))
        return (columns_SW @ by_rows_BSW3).permute(0, 3, 1, 2)


def stretch_weights(count: int, length: Tensor, side: int, shrinks: Tensor) -> Tensor:
    """Weights (side, count) of a row's ``count`` pixels, of which ``length`` are the photo's, in ``side`` samples:
    areas where the row ``shrinks``, else bilinear. length, shrinks: tensors, so that an exported graph takes photos
    of any size."""
    step, pixel_L = length / side, torch.arange(count, device=length.device)
    start_S1 = torch.arange(side, device=length.device).unsqueeze(1) * step
    end_SL = (start_S1 + step).minimum(pixel_L + 1).minimum(length)
    overlap_SL = end_SL - start_S1.maximum(pixel_L)
    centre_S1 = (start_S1 + 0.5 * step - 0.5).clamp(min=0).minimum(length - 1)
    return torch.where(shrinks, overlap_SL * (side / length), 1 - (centre_S1 - pixel_L).abs()).clamp(min=0)
