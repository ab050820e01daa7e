"""Colours, curves and paint: what every part of a drawn face is made with.

Shapes are polygons in face units (origin between eyes and mouth, x to the image's right, y down, chin at about +1)
that ``place`` takes to the photo: a head turned by yaw and pitch, rolled, scaled and moved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike

BACKGROUND, SKIN, BROWS, EYES, NOSE, UPPER_LIP, INNER_MOUTH, LOWER_LIP, HAIR = 0, 1, (2, 3), (4, 5), 6, 7, 8, 9, 10


def palette(colours: str) -> np.ndarray:
    return np.array([list(bytes.fromhex(colour)) for colour in colours.split()], np.float32)


SKINS = palette("3a261e 5c3c2e 84583e ac7a5c d0a080 ecc4aa fae0d0")
HAIRS = palette("100e10 261b16 4a3020 764e2e b08652 debe86 8e3e1e 807e7e d6d4d0")
HAIR_CHANCES = (3, 3, 3, 2, 1.5, 1, 1, 0.8, 0.6)
IRISES = palette("281810 54341e 785c30 5c7654 5882a8 809098")
BLACK, WHITE = np.zeros(3, np.float32), np.full(3, 255, np.float32)
Choice = TypeVar("Choice")
SHIFT = 4  # fractional bits of polygon coordinates
GRID = 64  # side of the light map
ALONG = np.linspace(-1, 1, 25)  # parameter along eyelids and lips


@dataclass(frozen=True)
class Canvas:
    """One face being drawn: canvas and pose.

    photo: uint8 (S, S, 3); labels: uint8, square, of a whole odd number of pixels to each pixel
    of the face asked for, the middle one of which is kept;
    head: uint8 (S, S), 255 where the head is, which the light shades.
    """

    photo: np.ndarray
    labels: np.ndarray
    head: np.ndarray
    yaw: float  # radians
    pitch: float  # radians
    roll: float  # radians
    scale: float  # photo sides per face unit
    centre: tuple[float, float]  # photo sides
    width: float  # breadth of the head
    skin: np.ndarray
    hair: np.ndarray


def pick(rng: np.random.Generator, choices: Sequence[Choice], chances: Sequence[float]) -> Choice:
    return choices[int(np.searchsorted(np.cumsum(chances), rng.random() * sum(chances), side="right"))]


def mix(one: np.ndarray, two: np.ndarray, share: float) -> np.ndarray:
    return one + (two - one) * share


def tone_at(palette: np.ndarray, at: float) -> np.ndarray:
    """Colour at position ``at`` in [0, 1] along a palette."""
    at = at * (len(palette) - 1)
    low = min(int(at), len(palette) - 2)
    return mix(palette[low], palette[low + 1], at - low)


def mirrored(right: ArrayLike) -> np.ndarray:
    """Closed outline from its right half (N, 2); points on the middle line (x = 0) are not doubled."""
    right = np.asarray(right, np.float64)
    return np.concatenate((right, (right[right[:, 0] != 0] * (-1, 1))[::-1]))


def smooth_curve(points: ArrayLike, per: int = 6) -> np.ndarray:
    """Closed Catmull-Rom curve through control points (N, 2): (N per, 2)."""
    p1 = np.asarray(points, np.float64)[:, None]
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(per) / per)[None, :, None]
    cubic = (3 * p1 - p0 - 3 * p2 + p3) * t**3 + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (p2 - p0) * t + 2 * p1
    return (cubic / 2).reshape(-1, 2)


def ellipse(x: float, y: float, rx: float, ry: float, power: float = 2, count: int = 28) -> np.ndarray:
    angle = np.arange(count) * (2 * math.pi / count)
    cos, sin = np.cos(angle), np.sin(angle)
    bend = 2 / power
    return np.stack((x + rx * np.sign(cos) * np.abs(cos) ** bend, y + ry * np.sign(sin) * np.abs(sin) ** bend), 1)


def ribbon(line: np.ndarray, half_width: ArrayLike) -> np.ndarray:
    """Polygon around a polyline (N, 2), ``half_width`` (scalar or (N,)) to each side."""
    along = np.gradient(line, axis=0)
    across = np.stack((-along[:, 1], along[:, 0]), 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
    across = across * np.broadcast_to(np.asarray(half_width, np.float64), len(line))[:, None]
    return np.concatenate((line + across, (line - across)[::-1]))


def bezier(a: ArrayLike, b: ArrayLike, c: ArrayLike, count: int = 12) -> np.ndarray:
    """Quadratic curves between points (..., 2): (..., count, 2)."""
    t = np.linspace(0, 1, count)[:, None]
    a, b, c = (np.asarray(p, np.float64)[..., None, :] for p in (a, b, c))
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c


def join(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    return np.stack(np.broadcast_arrays(x, y), -1)


def place(face: Canvas, points: ArrayLike, lift: float | np.ndarray = 0.0, flat: bool = False) -> np.ndarray:
    """Face units (..., 2) to photo sides (..., 2). ``lift``: height above the face's curved front; ``flat``: on the
    head's outline plane instead of on that front."""
    points = np.asarray(points, np.float64)
    x, y = points[..., 0] * face.width, points[..., 1]
    z = 0.1 if flat else 0.6 * np.sqrt(np.clip(1 - (x / 1.02) ** 2 - (y / 1.5) ** 2, 0.03, 1))
    z = z + lift - 0.4
    x, z = x * math.cos(face.yaw) + z * math.sin(face.yaw), z * math.cos(face.yaw) - x * math.sin(face.yaw)
    y = y * math.cos(face.pitch) - z * math.sin(face.pitch)
    cos, sin = math.cos(face.roll) * face.scale, math.sin(face.roll) * face.scale
    return np.stack((face.centre[0] + x * cos - y * sin, face.centre[1] + x * sin + y * cos), -1)


def to_pixels(points: np.ndarray, side: int) -> np.ndarray:
    return np.round((points * side - 0.5) * (1 << SHIFT)).astype(np.int32)


def to_rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(float(min(max(c, 0), 255))) for c in colour)
    return red, green, blue


def fill(
    face: Canvas, *rings: np.ndarray, colour: np.ndarray | None = None, label: int | None = None, head: bool = False
) -> None:
    """Opaque polygon (several rings: even-odd) in photo sides, into photo (with a colour), labels and head mask."""
    if colour is not None:
        pixels = [to_pixels(ring, len(face.photo)) for ring in rings]
        cv2.fillPoly(face.photo, pixels, to_rgb(colour), cv2.LINE_AA, SHIFT)
    if label is not None:
        cv2.fillPoly(face.labels, [to_pixels(ring, len(face.labels)) for ring in rings], (label,), 8, SHIFT)
    if head:
        cv2.fillPoly(face.head, [to_pixels(ring, len(face.head)) for ring in rings], (255,), 8, SHIFT)


def tint(
    face: Canvas,
    *rings: np.ndarray,
    colour: np.ndarray,
    alpha: float,
    soft: float = 0.0,
    within: np.ndarray | None = None,
) -> None:
    """Translucent polygon; ``soft``: blur of its edge in face units; ``within``: polygon that bounds the paint."""
    side = len(face.photo)
    sigma = soft * face.scale * side
    both = np.concatenate(rings) * side
    low = np.clip(np.floor(both.min(0) - 2.5 * sigma - 2), 0, side).astype(int)
    high = np.clip(np.ceil(both.max(0) + 2.5 * sigma + 2), 0, side).astype(int)
    wide, tall = (int(n) for n in high - low)
    if wide < 1 or tall < 1:
        return
    shrink = max(1.0, sigma / 2)  # blur a small mask, then enlarge it
    shape = (math.ceil(tall / shrink), math.ceil(wide / shrink))
    zoom = np.array((shape[1] / wide, shape[0] / tall))

    def mask_of(polygons) -> np.ndarray:
        mask = np.zeros(shape, np.uint8)
        pixels = [np.round(((p * side - low) * zoom - 0.5) * (1 << SHIFT)).astype(np.int32) for p in polygons]
        cv2.fillPoly(mask, pixels, (255,), cv2.LINE_AA, SHIFT)
        return mask

    mask = mask_of(rings)
    if sigma > 0.3:
        mask = cv2.GaussianBlur(mask, (0, 0), sigma / shrink, borderType=cv2.BORDER_REPLICATE)
    if within is not None:
        mask = cv2.min(mask, mask_of([within]))
    weight = cv2.resize(mask, (wide, tall), interpolation=cv2.INTER_LINEAR).astype(np.float32) * (alpha / 255)
    view = face.photo[low[1] : high[1], low[0] : high[0]]
    paint = np.empty_like(view)
    paint[:] = to_rgb(colour)
    view[:] = cv2.blendLinear(paint, view, weight, 1 - weight)


def noise_map(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)


def any_tone(face: Canvas, rng: np.random.Generator) -> np.ndarray:
    """A colour of clothes and clutter: often one that a face also has."""
    kind = int(rng.integers(7))
    free = rng.uniform(0, 255, 3).astype(np.float32)
    if kind == 0:
        return mix(face.skin, free, rng.uniform(0, 0.15))
    if kind == 1:
        return tone_at(SKINS, rng.random())
    if kind == 2:
        return mix(tone_at(SKINS, rng.random()), np.array((176, 42, 60), np.float32), rng.uniform(0.2, 0.9))
    if kind == 3:
        return mix(face.hair, free, rng.uniform(0, 0.15))
    if kind == 4:
        return np.full(3, rng.uniform(10, 250), np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    return free
