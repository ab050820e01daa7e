"""What a drawn face is made with: colours, curves, and a canvas that paints photo and labels from the same polygons.

Shapes are polygons (N, 2) in face units: origin between eyes and mouth, x to the image's right, y down, chin near 1.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

from data.labels import HELEN

SHIFT = 4  # fractional bits of polygon coordinates


def palette(colours: str) -> np.ndarray:
    return np.array([list(bytes.fromhex(colour)) for colour in colours.split()], np.float64)


SKINS = palette("3a261e 5c3c2e 84583e ac7a5c d0a080 ecc4aa fae0d0")
HAIRS = palette("100e10 261b16 4a3020 764e2e b08652 debe86 8e3e1e 807e7e d6d4d0")
IRISES = palette("281810 54341e 785c30 5c7654 5882a8 809098")
BLACK, WHITE, RED = palette("000000 ffffff b22a3c")


def mix(one: np.ndarray, two: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    return one + (two - one) * share


def tone_at(colours: np.ndarray, at: float) -> np.ndarray:
    """Colour at position ``at`` in [0, 1] along a palette."""
    places = np.linspace(0, 1, len(colours))
    return np.array([np.interp(at, places, channel) for channel in colours.T])


def xy(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Points (..., 2) from their coordinates."""
    return np.stack(np.broadcast_arrays(x, y), -1)


def mirrored(right: ArrayLike) -> np.ndarray:
    """Closed outline from its right half, listed from top to bottom or from bottom to top."""
    right = np.asarray(right, np.float64)
    return np.concatenate((right, (right * (-1, 1))[::-1]))


def smooth(corners: ArrayLike) -> np.ndarray:
    """Closed outline with its corners cut three times (Chaikin's curve): (8 N, 2)."""
    points = np.asarray(corners, np.float64)
    for _ in range(3):
        after = np.roll(points, -1, 0)
        points = np.stack((0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after), 1).reshape(-1, 2)
    return points


def ellipse(centre: ArrayLike, half_width: float, half_height: float) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    return centre + xy(half_width * np.cos(angle), half_height * np.sin(angle))


def bezier(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> np.ndarray:
    """Quadratic curves from ``a`` towards ``b`` to ``c``, each (..., 2): (..., 10, 2)."""
    a, b, c = (np.asarray(point, np.float64)[..., None, :] for point in (a, b, c))
    t = np.linspace(0, 1, 10)[:, None]
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c


def ribbon(lines: np.ndarray, half_width: ArrayLike) -> np.ndarray:
    """Outlines of lines (..., N, 2) that are ``half_width`` (scalar or (N,)) wide to each side."""
    along = np.gradient(lines, axis=-2)
    across = xy(-along[..., 1], along[..., 0]) / (np.linalg.norm(along, axis=-1, keepdims=True) + 1e-9)
    across *= np.reshape(half_width, (-1, 1))
    return np.concatenate((lines + across, (lines - across)[..., ::-1, :]), -2)


@dataclass(frozen=True)
class Pose:
    """How a head is turned (radians), its size (photo sides per face unit), its place (photo sides), how broad it is,
    and how high its nose."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    centre: np.ndarray
    breadth: float
    nose: float

    def place(self, points: np.ndarray, plane: float | None) -> np.ndarray:
        """Face units to photo sides. plane: depth of the points; None: on the face's curved front."""
        x, y = points[:, 0] * self.breadth, points[:, 1]
        z = np.full(len(points), plane)
        if plane is None:
            z = 0.6 * np.sqrt(np.clip(1 - (x / 1.02) ** 2 - (y / 1.5) ** 2, 0.03, 1))
            z += self.nose * np.exp(-((x / 0.11) ** 2)) * np.interp(y, (-0.15, 0.34, 0.46), (0, 1, 0))
        z = z - 0.4  # the axis of the neck
        x, z = x * math.cos(self.yaw) + z * math.sin(self.yaw), z * math.cos(self.yaw) - x * math.sin(self.yaw)
        y = y * math.cos(self.pitch) - z * math.sin(self.pitch)
        cos, sin = math.cos(self.roll) * self.scale, math.sin(self.roll) * self.scale
        return xy(self.centre[0] + x * cos - y * sin, self.centre[1] + x * sin + y * cos)


class Canvas:
    """Photo and labels of one face, both larger than asked for: the photo is shrunk over areas; of the labels, the
    middle one of each pixel's is kept, and there are many, because ``fillPoly`` also fills the pixels on the edge."""

    def __init__(self, size: int, pose: Pose, skin: np.ndarray, hair: np.ndarray) -> None:
        self.size, self.pose, self.skin, self.hair = size, pose, skin, hair
        side = max(size, min(2 * size, 384))
        self.step = 5 if size <= 512 else 3
        self.photo = np.zeros((side, side, 3), np.float32)
        self.labels = np.zeros((self.step * size, self.step * size), np.uint8)

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """Photo, uint8 (size, size, 3), and labels, uint8 (size, size)."""
        photo = cv2.resize(self.photo, (self.size, self.size), interpolation=cv2.INTER_AREA)
        middle = np.s_[self.step // 2 :: self.step]
        return np.clip(photo, 0, 255).astype(np.uint8), np.ascontiguousarray(self.labels[middle, middle])

    def any_tone(self, rng: np.random.Generator) -> np.ndarray:
        """A colour of clothes and clutter: often close to one that the face has."""
        free = rng.uniform(0, 255, 3)
        close = (self.skin, self.hair, mix(self.skin, RED, 0.5), free)[rng.integers(4)]
        return mix(close, free, rng.uniform(0, 0.3))

    def paint(
        self,
        *outlines: np.ndarray,
        colour: np.ndarray | None = None,
        alpha: float = 1.0,
        soft: float = 0.0,
        label: str | None = None,
        within: np.ndarray | None = None,
        plane: float | None = None,
    ) -> np.ndarray:
        """Paints what lies within an odd number of outlines, each (N, 2) in face units; returns its mask on the photo.

        colour: RGB, 0 to 255; alpha: its share. soft: how far the colour's edge fades, in face units. label: the
        shape's, by name. within: mask of an earlier shape that bounds the colour. plane: see ``Pose.place``.
        """
        ends = np.cumsum([len(outline) for outline in outlines])
        placed = np.split(self.pose.place(np.concatenate(outlines), plane), ends[:-1])
        if label is not None:
            cv2.fillPoly(self.labels, _pixels(placed, len(self.labels)), (HELEN.names.index(label),), cv2.LINE_8, SHIFT)
        mask = np.zeros(self.photo.shape[:2], np.uint8)
        cv2.fillPoly(mask, _pixels(placed, len(mask)), (255,), cv2.LINE_AA, SHIFT)
        if colour is not None and mask.any():
            reach = round(soft * self.pose.scale * len(mask))
            left, top, width, height = cv2.boundingRect(mask)
            rows = slice(max(0, top - reach), top + height + reach)
            columns = slice(max(0, left - reach), left + width + reach)
            # of bytes, bit for bit the same in any thread, which stackBlur is not
            share = cv2.GaussianBlur(mask[rows, columns], (2 * reach + 1, 2 * reach + 1), 0)
            if within is not None:
                share = np.minimum(share, within[rows, columns])
            view, weight = self.photo[rows, columns], (share * (alpha / 255)).astype(np.float32)[..., None]
            view += weight * (np.asarray(colour, np.float32) - view)
        return mask

    def strands(self, lines: np.ndarray, colour: np.ndarray, within: np.ndarray) -> None:
        """Hairs along lines (..., N, 2), some darker and some lighter than the colour."""
        for k, gain in enumerate((0.6, 0.8, 1.25)):
            hairs = ribbon(lines[k::3], 0.006)
            self.paint(*hairs, colour=colour * gain + 20 * (gain > 1), alpha=0.7, within=within)


def _pixels(placed: list[np.ndarray], side: int) -> list[np.ndarray]:
    return [np.round((points * side - 0.5) * (1 << SHIFT)).astype(np.int32) for points in placed]
