"""Crop and stretch: sampling photos and label maps (paper section 2.3). Coordinates: see ``geometry.theta``."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_points(theta_BP23: Tensor, size: int, sizes_B2: Tensor) -> Tensor:
    """Where ``size`` x ``size`` crops sample each photo: points_BPSS2 as (x, y) in its pixels, differentiable."""
    ticks_S = torch.linspace(-1, 1, size, device=theta_BP23.device, dtype=theta_BP23.dtype)
    y_SS1, x_SS1 = (axis.unsqueeze(-1) for axis in torch.meshgrid(ticks_S, ticks_S, indexing="ij"))
    x_BP112, y_BP112, shift_BP112 = (column[:, :, None, None] for column in theta_BP23.unbind(-1))
    return (x_BP112 * x_SS1 + y_BP112 * y_SS1 + shift_BP112 + 1) / 2 * _spans(sizes_B2, theta_BP23)


def _spans(sizes_B2: Tensor, like: Tensor) -> Tensor:
    """Pixels from each photo's first pixel centre to its last, (x, y): spans_B1112."""
    return (sizes_B2.flip(-1).to(like.dtype) - 1).clamp(min=1)[:, None, None, None]


def _snapped(points_BPSS2: Tensor, sizes_B2: Tensor) -> Tensor:
    """Points as near to a pixel centre as rounding errors reach (1e-3 pixels at 1000) lie right on it."""
    to_centre_BPSS2 = (points_BPSS2.round() - points_BPSS2).detach()
    errors_B1112 = 8 * torch.finfo(points_BPSS2.dtype).eps * _spans(sizes_B2, points_BPSS2)
    return torch.where(to_centre_BPSS2.abs() <= errors_B1112, points_BPSS2 + to_centre_BPSS2, points_BPSS2)


def by_grid(images_BCHW: Tensor, points_BXY2: Tensor, mode: str) -> Tensor:
    """Samples (B, C, X, Y) of images (uint8 or float) at points in their pixels, zeros outside, by torch's own kernel.

    The sampling of CUDA devices: a kernel in place of dozens. It reads whole images as floats, and rounding errors
    of a point may move it by 1e-4 pixels.
    """
    height, width = images_BCHW.shape[-2:]
    # its two values without a copy from the host
    half_2 = torch.linspace(width / 2, height / 2, 2, device=points_BXY2.device, dtype=points_BXY2.dtype)
    grid_BXY2 = (points_BXY2 + 0.5) / half_2 - 1
    return F.grid_sample(images_BCHW.to(grid_BXY2.dtype), grid_BXY2, mode, "zeros", align_corners=False)


def crop(
    photos_BHWC: Tensor, theta_BP23: Tensor, size: int, sizes_B2: Tensor | None = None, photo_B: Tensor | None = None
) -> Tensor:
    """Cut windows out of photos, bilinear, zeros outside; differentiable in theta and in photos of floats.

    photos_BHWC: uint8, whose crops are scaled to [0, 1], or float. theta_BP23: in the frame of each photo.
    sizes_B2: the photos' own sizes where they are padded. photo_B: int64, the photo that each row of theta is of, where
    photos have several or none; sizes_B2 then has theta's rows too. Returns crops_BPCSS (channels last in memory),
    float.
    With an odd window of ``size`` pixels and an integer centre, the crop equals array slicing exactly (paper
    Fig. 7, 8). Only the pixels that the windows sample are read, but see ``by_grid``.
    """
    height, width = photos_BHWC.shape[1:3]
    if sizes_B2 is None:
        sizes_B2 = torch.tensor([[height, width]], device=theta_BP23.device).expand(len(theta_BP23), 2)
    points_BPSS2 = sample_points(theta_BP23, size, sizes_B2)
    if photos_BHWC.is_cuda and photo_B is None:
        crops_BCPXS = by_grid(photos_BHWC.permute(0, 3, 1, 2), points_BPSS2.flatten(1, 2), "bilinear")
        crops_BPCSS = crops_BCPXS.unflatten(2, (-1, size)).transpose(1, 2)
        return crops_BPCSS / 255 if photos_BHWC.dtype == torch.uint8 else crops_BPCSS.to(photos_BHWC.dtype)
    if photo_B is None:
        photo_B = torch.arange(photos_BHWC.shape[0], device=theta_BP23.device)
    points_BPSS2 = _snapped(points_BPSS2, sizes_B2)
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
    if labels_BHW.is_cuda:  # the padding is 0 too
        found_B1N1 = by_grid(labels_BHW[:, None], points_px.reshape(batch, -1, 1, 2), "nearest")
        return found_B1N1.byte().reshape(points_px.shape[:-1])
    flat_BN2 = points_px.reshape(batch, -1, 2).round().long()
    x_BN, y_BN = flat_BN2.unbind(-1)
    inside_BN = (x_BN >= 0) & (y_BN >= 0) & (x_BN < sizes_B2[:, 1:]) & (y_BN < sizes_B2[:, :1])
    index_BN = torch.where(inside_BN, y_BN * width + x_BN, 0)
    found_BN = labels_BHW.reshape(batch, -1).gather(1, index_BN)
    return torch.where(inside_BN, found_BN, 0).reshape(points_px.shape[:-1])


def enlarge(logits_BKhw: Tensor, sizes_B2: Tensor) -> Iterator[Tensor]:
    """Logits of stretched photos, enlarged bilinearly to each photo's own size: logits_KHW (float32), one by one."""
    for logits_Khw, size in zip(logits_BKhw, sizes_B2.tolist(), strict=True):
        planes_1Khw = logits_Khw[None].float().contiguous()  # channels last, what follows were slow on a CPU
        yield F.interpolate(planes_1Khw, size, mode="bilinear")[0]


def enlarged_labels(logits_BKhw: Tensor, sizes_B2: Tensor, height: int, width: int) -> Tensor:
    """The most probable label at each pixel of photos that share a height x width grid: labels_BHW (uint8), 0 in the
    padding."""
    labels_BHW = torch.zeros(len(logits_BKhw), height, width, dtype=torch.uint8, device=logits_BKhw.device)
    for labels_HW, logits_KHW in zip(labels_BHW, enlarge(logits_BKhw, sizes_B2), strict=True):
        labels_HW[: logits_KHW.shape[1], : logits_KHW.shape[2]] = most_probable(logits_KHW, 0)
    return labels_BHW


def most_probable(scores: Tensor, dim: int) -> Tensor:
    """The labels with the largest scores along a dimension, uint8. On a CPU, max finds them five times as fast as
    argmax does."""
    return scores.max(dim).indices.byte()


def stretch(photos_BHW3: Tensor, sizes_B2: Tensor, side: int, full: bool | None = None) -> Tensor:
    """Photos (uint8, padded) stretched to side x side each, antialiased: (B, 3, side, side), float32 in [0, 255].

    full: whether no photo is padded; None: look, which waits for the device.
    """
    height, width = photos_BHW3.shape[1:3]
    if full is None:
        full = bool((sizes_B2 == sizes_B2.new_tensor([height, width])).all())
    if full and height == width and height % side == 0:  # areas of whole pixels
        photos_B3HW = photos_BHW3.permute(0, 3, 1, 2).float()
        return photos_B3HW if height == side else F.avg_pool2d(photos_B3HW, height // side)
    images = []
    alike = len(photos_BHW3) if full else 1  # so many share their weights
    for photos_XHW3, size_2 in zip(photos_BHW3.split(alike), sizes_B2[::alike], strict=True):
        rows_SH, columns_SW = (
            stretch_weights(count, length, side, length >= side)
            for count, length in zip((height, width), size_2, strict=True)
        )
        images.append(stretch_by(photos_XHW3, rows_SH, columns_SW))
    return torch.cat(images)


def stretch_by(photos_BHW3: Tensor, rows_SH: Tensor, columns_SW: Tensor) -> Tensor:
    """Two products with each axis' weights (see ``stretch_weights``): (B, 3, S, S), float32."""
    with torch.autocast(photos_BHW3.device.type, enabled=False):
        by_rows_BSW3 = (rows_SH @ photos_BHW3.float().flatten(2)).unflatten(2, (-1, 3))
        return by_rows_BSW3.permute(0, 3, 1, 2) @ columns_SW.T


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
