"""Pictures for people: colour maps, overlays, windows, contact sheets. All are RGB, uint8 (H, W, 3)."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from data.batch import Batch
from data.labels import NO_ID, NUM_PARTS, LabelSet
from geometry.theta import window_corners

LINE_WIDTH = 1 / 200  # of the photo's shorter side


def colour(label_map: np.ndarray, labels: LabelSet, published: bool = False) -> np.ndarray:
    """Paint a label map, integer (any shape), in the colours of its label set: uint8 (..., 3).

    Ignored pixels (255) are white. published: in those of the data set's own authors, where there are any. Raises
    ValueError for ids that the label set does not have.
    """
    known = label_map[label_map != NO_ID] if label_map.size and label_map.max() == NO_ID else label_map
    if known.size and (known.min() < 0 or known.max() >= len(labels)):
        raise ValueError(f"label ids {known.min()}..{known.max()} are not 0..{len(labels) - 1} ({labels.name})")
    return np.array(palette((labels.published if published else ()) or labels.colours, label_map), np.uint8)[label_map]


def palette(colours: Sequence[tuple[int, int, int]], label_map: np.ndarray) -> Sequence[tuple[int, int, int]]:
    """The colours, followed by white up to id 255 where a label map holds it."""
    ignores = label_map.size and label_map.max() == NO_ID
    return [*colours, *[(255, 255, 255)] * (NO_ID + 1 - len(colours))] if ignores else colours


def overlay(photo: np.ndarray, label_map: np.ndarray, labels: LabelSet, alpha: float = 0.5) -> np.ndarray:
    """Lay the labels' colours over the photo; background pixels stay as they are.

    photo: uint8 (H, W, 3). label_map: integer (H, W), ids of ``labels``. alpha: weight of the colour, 0 to 1.
    Raises ValueError for ids out of range.
    """
    picture, face = photo.copy(), label_map != 0
    blend = (1 - alpha) * photo[face] + alpha * colour(label_map[face], labels).astype(np.float32)
    picture[face] = np.rint(blend).astype(np.uint8)
    return picture


def draw_outlines(photo: np.ndarray, corners_N42: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Draw quadrangles (corners in pixels, x and y) on a copy of the photo, uint8 (H, W, 3): six in the colours of the
    parts, any other number in white. Those that are not finite are not drawn."""
    longest, shortest = max(photo.shape[:2]), min(photo.shape[:2])
    picture = np.ascontiguousarray(photo).copy()
    thickness = max(1, round(shortest * LINE_WIDTH))
    for n, corners_42 in enumerate(corners_N42):
        if not np.isfinite(corners_42).all():
            continue
        points_42 = np.rint(corners_42.clip(-8 * longest, 8 * longest)).astype(np.int32)
        in_colour = len(corners_N42) == NUM_PARTS and labels.part_ids
        rgb = labels.colours[labels.part_ids[n][0]] if in_colour else (255, 255, 255)
        cv2.polylines(picture, [points_42], isClosed=True, color=rgb, thickness=thickness)
    return picture


def _letterbox(picture: np.ndarray, size: int) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    top, left = (size - new_height) // 2, (size - new_width) // 2
    box = np.zeros((size, size, 3), np.uint8)
    box[top : top + new_height, left : left + new_width] = cv2.resize(
        picture, (new_width, new_height), interpolation=method
    )
    return box


def tile(pictures: Sequence[np.ndarray], columns: int, size: int) -> np.ndarray:
    """Set pictures of any sizes, row by row, into a sheet of square cells of ``size`` pixels.

    Each is scaled to fit its cell and centred on black; the last row is filled up with black.
    Returns uint8 (rows · size, columns · size, 3).
    """
    cells = [_letterbox(picture, size) for picture in pictures]
    cells += [np.zeros((size, size, 3), np.uint8)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)])


def legend(labels: LabelSet) -> np.ndarray:
    """One bar per label, filled with its colour and bearing its name: uint8 (K · 24, 132, 3)."""
    height, width = 24, 132
    colours_K3 = np.array(labels.colours, np.uint8)
    picture = np.repeat(colours_K3, height, axis=0)[:, None].repeat(width, axis=1)
    for index, name in enumerate(labels.words):
        ink = 0 if colours_K3[index] @ np.array((0.299, 0.587, 0.114)) > 110 else 255  # luma, ITU-R BT.601
        place = (6, index * height + 17)
        cv2.putText(picture, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (ink, ink, ink), 1, cv2.LINE_AA)
    return picture


def encode_labels(label_map: np.ndarray, labels: LabelSet) -> bytes:
    """A label map, uint8 (H, W), as a PNG whose palette are the label set's colours."""
    picture = Image.fromarray(label_map)
    picture.putpalette([channel for colour in palette(labels.colours, label_map) for channel in colour])
    return encode(picture, "PNG")


def encode_grey(ids_HW: np.ndarray) -> bytes:
    """Numbers, uint8 or uint16 (H, W), as a grey PNG of 8 or 16 bits."""
    return encode(Image.fromarray(ids_HW), "PNG")


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file. kind, options: as for Pillow's ``save``.

    Pillow, given a file, does not notice where the disk takes but a part of what it writes.
    """
    made = io.BytesIO()
    picture.save(made, kind, **options)
    return made.getvalue()


def face_pictures(batch: Batch, labels_BHW: Tensor, theta_BP23: Tensor | None = None) -> Iterator[np.ndarray]:
    """Each photo of a batch under its labels: uint8 (H, W, 3), of the photo's own size.

    labels_BHW: uint8, ids of the batch's label set, on the padded photos' grid. theta_BP23: windows to draw, in the
    frame of each photo.
    """
    for b, (height, width) in enumerate(batch.sizes_B2.tolist()):
        photo = batch.photos_BHW3[b, :height, :width].cpu().numpy()
        picture = overlay(photo, labels_BHW[b, :height, :width].cpu().numpy(), batch.labels)
        if theta_BP23 is not None:
            corners_P42 = window_corners(theta_BP23[b].double().cpu().numpy(), (height, width))
            picture = draw_outlines(picture, corners_P42, batch.labels)
        yield picture


def progress_picture(batch: Batch, labels_BHW: Tensor, theta_BP23: Tensor | None = None) -> np.ndarray:
    """Upper row: these labels, with their windows if given; lower row: the true labels. uint8 (H, W, 3).

    Arguments: see ``face_pictures``.
    """
    predicted = list(face_pictures(batch, labels_BHW, theta_BP23))
    true = list(face_pictures(batch, batch.labels_BHW))
    return tile(predicted + true, len(predicted), 192)
