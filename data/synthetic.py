"""Embedded synthetic data set: faces drawn from random parameters, with exact masks.

Every shape is a polygon in face units (origin between eyes and mouth, x to the image's right, y down, chin at
about +1) that one projection takes to the photo: a head turned by yaw and pitch, rolled, scaled and moved. Photo
and labels are filled from the same polygons. Random numbers are drawn in an order that does not depend on the
size, so that a face is the same at every size.

Labels are HELEN's eleven (``data.labels.SYNTHETIC``). A pixel that is hidden by glasses, a hand or another thing
is background (hair where hair hides it); ears, neck and clothes are background, a beard is skin, and an eye or
mouth that is shut has no eye or inner mouth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike

from utils.errors import InputError

COUNTS = {"train": 400, "val": 60, "test": 60}  # faces of each split, unless told otherwise
SIZE = 192  # side of photo and labels in pixels, unless told otherwise
SPLIT_STARTS = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # first face index of each split
SPLIT_ROOM = 1_000_000  # most faces that a split can hold
SIZES = (16, 2048)  # smallest and largest side in pixels

BACKGROUND, SKIN, BROWS, EYES, NOSE, UPPER_LIP, INNER_MOUTH, LOWER_LIP, HAIR = 0, 1, (2, 3), (4, 5), 6, 7, 8, 9, 10


def _palette(colours: str) -> np.ndarray:
    return np.array([list(bytes.fromhex(colour)) for colour in colours.split()], np.float32)


_SKINS = _palette("3a261e 5c3c2e 84583e ac7a5c d0a080 ecc4aa fae0d0")
_HAIRS = _palette("100e10 261b16 4a3020 764e2e b08652 debe86 8e3e1e 807e7e d6d4d0")
_HAIR_CHANCES = (3, 3, 3, 2, 1.5, 1, 1, 0.8, 0.6)
_IRISES = _palette("281810 54341e 785c30 5c7654 5882a8 809098")
_BLACK, _WHITE = np.zeros(3, np.float32), np.full(3, 255, np.float32)

_Choice = TypeVar("_Choice")

_SHIFT = 4  # fractional bits of polygon coordinates
_GRID = 64  # side of the light map
_T = np.linspace(-1, 1, 25)  # parameter along eyelids and lips


@dataclass(frozen=True)
class _Face:
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


def draw_face(seed: int, index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draws face ``index`` of the endless series ``seed``.

    seed, index: 0 or more. size: side in pixels, 16 to 2048.
    Returns photo, uint8 (size, size, 3) RGB, and labels, uint8 (size, size), HELEN's ids 0 to 10. The same
    arguments give the same arrays; another size gives the same face.
    Raises InputError for arguments out of range.
    """
    if seed < 0 or index < 0:
        raise InputError(f"synthetic face seed {seed}, index {index}: both must be 0 or more")
    if not SIZES[0] <= size <= SIZES[1]:
        raise InputError(f"synthetic face size {size}: choose {SIZES[0]} to {SIZES[1]} pixels")
    rng = np.random.default_rng((seed, index))
    face = _pose(rng, size)
    brow_tone = _mix(face.hair, face.skin, rng.uniform(0, 0.5)) * rng.uniform(0.5, 1.1)
    eye_x, eye_y, eye_w = rng.uniform(0.31, 0.37), rng.uniform(-0.13, -0.06), rng.uniform(0.13, 0.175)
    mouth_open = _pick(rng, (0.0, rng.uniform(0.03, 0.12), rng.uniform(0.12, 0.36)), (0.45, 0.35, 0.2))
    mouth_y = rng.uniform(0.53, 0.62)

    _background(face, rng)
    style = _pick(rng, ("bald", "short", "medium", "long", "scarf"), (0.1, 0.34, 0.2, 0.3, 0.06))
    hatted = style != "scarf" and rng.random() < 0.1
    hair_tone = rng.uniform(20, 235, 3).astype(np.float32) if style == "scarf" else face.hair
    _body_and_back_hair(face, rng, style, hair_tone, hatted)
    _skin(face, rng, mouth_open)
    beard = style != "scarf" and rng.random() < 0.22
    if beard:
        _beard(face, rng, mouth_y, mouth_open)
    _sockets(face, rng, eye_x, eye_y, eye_w)
    _eyes(face, rng, eye_x, eye_y, eye_w)
    nose_y = _nose(face, rng, eye_y, min(mouth_y - 0.13, rng.uniform(0.33, 0.42)))
    lip_top = _mouth(face, rng, mouth_y, mouth_open)
    if beard or rng.random() < 0.08:
        _moustache(face, rng, nose_y, lip_top)
    _brows(face, rng, eye_x, eye_y, brow_tone)
    _front_hair(face, rng, style, hair_tone, hatted)
    _light(face, rng)
    _occluders(face, rng, eye_x, eye_y, mouth_y)
    step = len(face.labels) // size
    photo = cv2.resize(face.photo, (size, size), interpolation=cv2.INTER_AREA)
    return _camera(photo, rng), np.ascontiguousarray(face.labels[step // 2 :: step, step // 2 :: step])


def sample_names(split: str, count: int | None = None) -> list[str]:
    """Names of the first ``count`` faces of a split (default ``COUNTS[split]``), e.g. ``val_000007``.

    Splits never share a face. Raises InputError for an unknown split or a count outside 1 to 1,000,000.
    """
    if split not in SPLIT_STARTS:
        raise InputError(f"synthetic faces have no split {split!r}: choose one of {', '.join(SPLIT_STARTS)}")
    count = COUNTS[split] if count is None else count
    if not 1 <= count <= SPLIT_ROOM:
        raise InputError(f"{count} synthetic faces asked of split {split}: choose 1 to {SPLIT_ROOM}")
    return [f"{split}_{i:06d}" for i in range(count)]


def draw_named(name: str, seed: int = 0, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draws the face of a name from ``sample_names``; returns what ``draw_face`` returns.

    Raises InputError if the name is not of that form.
    """
    split, _, number = name.partition("_")
    if split not in SPLIT_STARTS or not (number.isascii() and number.isdigit() and len(number) == 6):
        raise InputError(f"no synthetic face is called {name!r}: names look like train_000000")
    return draw_face(seed, SPLIT_STARTS[split] + int(number), size)


# ---------------------------------------------------------------- geometry, colours, paint


def _pick(rng: np.random.Generator, choices: Sequence[_Choice], chances: Sequence[float]) -> _Choice:
    return choices[int(np.searchsorted(np.cumsum(chances), rng.random() * sum(chances), side="right"))]


def _mix(one: np.ndarray, two: np.ndarray, share: float) -> np.ndarray:
    return one + (two - one) * share


def _tone(palette: np.ndarray, at: float) -> np.ndarray:
    """Colour at position ``at`` in [0, 1] along a palette."""
    at = at * (len(palette) - 1)
    low = min(int(at), len(palette) - 2)
    return _mix(palette[low], palette[low + 1], at - low)


def _mirrored(right: ArrayLike) -> np.ndarray:
    """Closed outline from its right half (N, 2); points on the middle line (x = 0) are not doubled."""
    right = np.asarray(right, np.float64)
    return np.concatenate((right, (right[right[:, 0] != 0] * (-1, 1))[::-1]))


def _smooth(points: ArrayLike, per: int = 6) -> np.ndarray:
    """Closed Catmull-Rom curve through control points (N, 2): (N per, 2)."""
    p1 = np.asarray(points, np.float64)[:, None]
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(per) / per)[None, :, None]
    cubic = (3 * p1 - p0 - 3 * p2 + p3) * t**3 + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (p2 - p0) * t + 2 * p1
    return (cubic / 2).reshape(-1, 2)


def _ellipse(x: float, y: float, rx: float, ry: float, power: float = 2, count: int = 28) -> np.ndarray:
    angle = np.arange(count) * (2 * math.pi / count)
    cos, sin = np.cos(angle), np.sin(angle)
    bend = 2 / power
    return np.stack((x + rx * np.sign(cos) * np.abs(cos) ** bend, y + ry * np.sign(sin) * np.abs(sin) ** bend), 1)


def _ribbon(line: np.ndarray, half_width: ArrayLike) -> np.ndarray:
    """Polygon around a polyline (N, 2), ``half_width`` (scalar or (N,)) to each side."""
    along = np.gradient(line, axis=0)
    across = np.stack((-along[:, 1], along[:, 0]), 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
    across = across * np.broadcast_to(np.asarray(half_width, np.float64), len(line))[:, None]
    return np.concatenate((line + across, (line - across)[::-1]))


def _bezier(a: ArrayLike, b: ArrayLike, c: ArrayLike, count: int = 12) -> np.ndarray:
    """Quadratic curves between points (..., 2): (..., count, 2)."""
    t = np.linspace(0, 1, count)[:, None]
    a, b, c = (np.asarray(p, np.float64)[..., None, :] for p in (a, b, c))
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c


def _join(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    return np.stack(np.broadcast_arrays(x, y), -1)


def _place(face: _Face, points: ArrayLike, lift: float | np.ndarray = 0.0, flat: bool = False) -> np.ndarray:
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


def _pixels(points: np.ndarray, side: int) -> np.ndarray:
    return np.round((points * side - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _colour(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(float(min(max(c, 0), 255))) for c in colour)
    return red, green, blue


def _fill(
    face: _Face, *rings: np.ndarray, colour: np.ndarray | None = None, label: int | None = None, head: bool = False
) -> None:
    """Opaque polygon (several rings: even-odd) in photo sides, into photo (with a colour), labels and head mask."""
    if colour is not None:
        pixels = [_pixels(ring, len(face.photo)) for ring in rings]
        cv2.fillPoly(face.photo, pixels, _colour(colour), cv2.LINE_AA, _SHIFT)
    if label is not None:
        cv2.fillPoly(face.labels, [_pixels(ring, len(face.labels)) for ring in rings], (label,), 8, _SHIFT)
    if head:
        cv2.fillPoly(face.head, [_pixels(ring, len(face.head)) for ring in rings], (255,), 8, _SHIFT)


def _tint(
    face: _Face,
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
        pixels = [np.round(((p * side - low) * zoom - 0.5) * (1 << _SHIFT)).astype(np.int32) for p in polygons]
        cv2.fillPoly(mask, pixels, (255,), cv2.LINE_AA, _SHIFT)
        return mask

    mask = mask_of(rings)
    if sigma > 0.3:
        mask = cv2.GaussianBlur(mask, (0, 0), sigma / shrink, borderType=cv2.BORDER_REPLICATE)
    if within is not None:
        mask = cv2.min(mask, mask_of([within]))
    weight = cv2.resize(mask, (wide, tall), interpolation=cv2.INTER_LINEAR).astype(np.float32) * (alpha / 255)
    view = face.photo[low[1] : high[1], low[0] : high[0]]
    paint = np.empty_like(view)
    paint[:] = _colour(colour)
    view[:] = cv2.blendLinear(paint, view, weight, 1 - weight)


def _noise_map(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)


def _any_tone(face: _Face, rng: np.random.Generator) -> np.ndarray:
    """A colour of clothes and clutter: often one that a face also has."""
    kind = int(rng.integers(7))
    free = rng.uniform(0, 255, 3).astype(np.float32)
    if kind == 0:
        return _mix(face.skin, free, rng.uniform(0, 0.15))
    if kind == 1:
        return _tone(_SKINS, rng.random())
    if kind == 2:
        return _mix(_tone(_SKINS, rng.random()), np.array((176, 42, 60), np.float32), rng.uniform(0.2, 0.9))
    if kind == 3:
        return _mix(face.hair, free, rng.uniform(0, 0.15))
    if kind == 4:
        return np.full(3, rng.uniform(10, 250), np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    return free


# ---------------------------------------------------------------- the face, back to front


def _pose(rng: np.random.Generator, size: int) -> _Face:
    yaw = float(np.clip(rng.normal(0, 0.2), -0.44, 0.44))
    pitch = float(np.clip(rng.normal(0, 0.11), -0.26, 0.26))
    roll = float(rng.normal(0, 0.1)) if rng.random() < 0.8 else float(rng.uniform(-0.6, 0.6))
    skin = _tone(_SKINS, rng.random()) + rng.uniform(-7, 7, 3).astype(np.float32)
    dyed = rng.random() < 0.06
    hair = rng.uniform(10, 230, 3).astype(np.float32) if dyed else _pick(rng, list(_HAIRS), _HAIR_CHANCES)
    side = max(size, min(size * 2, 384))
    step = 5 if size <= 512 else 3  # fillPoly also fills the pixels that an edge touches: fine pixels, small error
    return _Face(
        np.zeros((side, side, 3), np.uint8),
        np.zeros((size * step, size * step), np.uint8),
        np.zeros((side, side), np.uint8),
        yaw,
        pitch,
        roll,
        rng.uniform(0.29, 0.45),
        (
            0.5 + float(np.clip(rng.normal(0, 0.05), -0.13, 0.13)),
            0.52 + float(np.clip(rng.normal(0, 0.045), -0.11, 0.11)),
        ),
        rng.uniform(0.9, 1.1),
        np.clip(skin, 24, 252),
        np.clip(hair + rng.uniform(-8, 8, 3).astype(np.float32), 4, 245),
    )


def _background(face: _Face, rng: np.random.Generator) -> None:
    side = len(face.photo)
    half = side // 2
    one, two = _any_tone(face, rng), _any_tone(face, rng)
    angle, frequency, kind = rng.uniform(0, 2 * math.pi), rng.uniform(3, 14), rng.random()
    axis = (np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID
    across = axis[None] * math.cos(angle) + axis[:, None] * math.sin(angle)
    share = 0.5 + 0.5 * np.sin(across * frequency * 2) if kind < 0.2 else np.clip(across * 0.5 + 0.5, 0, 1)
    share = share + _noise_map(rng, 6, _GRID) * rng.uniform(0, 0.35)
    share = share + _noise_map(rng, 40, _GRID) * rng.uniform(0, 0.22) * (rng.random() < 0.5)
    small = one + (two - one) * np.clip(share, 0, 1)[..., None]
    cv2.resize(np.clip(small, 0, 255).astype(np.uint8), (side, side), face.photo, interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(0, 15))):
        x, y = rng.uniform(-0.05, 1.05, 2)
        radius, count, shape = rng.uniform(0.02, 0.2), int(rng.integers(3, 9)), rng.random()
        around = np.sort(rng.uniform(0, 2 * math.pi, count))
        reach = radius * rng.uniform(0.5, 1.3, count)
        ends, bend = rng.uniform(-0.3, 0.3, (2, 2)), rng.uniform(-0.1, 0.1, 2)
        blob = np.stack((x + reach * np.cos(around), y + reach * np.sin(around)), 1)
        if shape < 0.3:
            blob = _smooth(blob)
        elif shape < 0.5:
            blob = _ellipse(x, y, radius, radius * reach[0] / radius)
        elif shape < 0.75:
            at = np.array((x, y))
            blob = _ribbon(_bezier(at + ends[0], at + bend, at + ends[1]), radius * 0.15)
        _fill(face, blob, colour=_any_tone(face, rng))
    sigma = rng.uniform(0, 0.02) * side * (rng.random() < 0.7)
    if sigma > 1.5:
        blurred = cv2.resize(face.photo, (half, half), interpolation=cv2.INTER_AREA)
        blurred = cv2.GaussianBlur(blurred, (0, 0), sigma / 2)
        cv2.resize(blurred, (side, side), face.photo, interpolation=cv2.INTER_LINEAR)


def _strands(face: _Face, rng: np.random.Generator, lines: np.ndarray, tone: np.ndarray, bound: np.ndarray) -> None:
    """Fine lines (N, K, 2) of lighter and darker hair, inside the polygon ``bound`` (both in photo sides)."""
    contrast = rng.uniform(0.5, 1.1)
    side = len(face.photo)
    low = np.clip(np.floor(bound.min(0) * side), 0, side - 1).astype(int)
    high = np.clip(np.ceil(bound.max(0) * side) + 1, 1, side).astype(int)
    if (high <= low).any():
        return
    view = face.photo[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(view.shape[:2], np.uint8)
    offset = (low * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(mask, [_pixels(bound, side) - offset], (255,), cv2.LINE_8, _SHIFT)
    copy = view.copy()
    curves = _pixels(lines, side) - offset
    thick = max(1, round(side * face.scale * 0.013))
    for i, gain in enumerate((-0.4, -0.18, 0.25)):
        shade = tone * (1 + contrast * gain) + max(0, 60 * contrast * gain)
        cv2.polylines(copy, list(curves[i::3]), False, _colour(shade), thick, cv2.LINE_AA, _SHIFT)
    cv2.copyTo(copy, mask, view)


def _body_and_back_hair(face: _Face, rng: np.random.Generator, style: str, tone: np.ndarray, hatted: bool) -> None:
    volume = rng.uniform(0.0, 0.16) * (not hatted)
    length = {"bald": 0.0, "short": 0.05, "medium": rng.uniform(0.3, 0.9), "long": rng.uniform(1.0, 1.8)}.get(
        style, 1.3
    )
    wave = rng.uniform(-0.04, 0.04, 15) * (style in ("medium", "long"))
    spread = rng.uniform(0.85, 1.1)
    cloth, collar = _any_tone(face, rng), rng.uniform(0.25, 0.5)
    if style in ("medium", "long", "scarf"):
        right = [(0.5, -1.12), (0.84, -0.75), (0.93, -0.25), (0.94 * spread, 0.2), (0.9 * spread, length * 0.7)]
        right = [(x + volume, y - volume) for x, y in [*right, (0.75 * spread, length)]]
        points = _mirrored([(0, -1.2 - volume), *right, (0.2, length)])
        points[:, 0] += wave
        back = _place(face, _smooth(points), -0.25, flat=True)
        label = BACKGROUND if style == "scarf" else HAIR
        _fill(face, back, colour=tone * 0.75, label=label, head=True)
        if style != "scarf":
            roots = rng.uniform(-0.95, 0.95, 54)
            ends = roots * spread + rng.normal(0, 0.08, 54)
            curves = _bezier(_join(roots * 0.7, -1.1), _join(roots * 1.4, -0.3), _join(ends, length + 0.1), 8)
            lines = _place(face, curves, -0.25, flat=True)
            _strands(face, rng, lines, tone * 0.75, back)
    neck = _mirrored([(0.4, 0.3), (0.42, 0.95), (0.5, 1.25), (0.9, 1.6), (0.9, 2.5)])
    _fill(face, _place(face, neck, -0.15, flat=True), colour=face.skin * 0.86, label=BACKGROUND, head=True)
    _tint(face, _place(face, _ellipse(0, 0.95, 0.45, 0.25), -0.15, True), colour=face.skin * 0.45, alpha=0.6, soft=0.07)
    body = _mirrored([(0, 1.3 + collar), (collar, 1.3), (1.0, 1.5), (1.55, 1.85), (1.8, 4.5)])
    _fill(face, _place(face, _smooth(body), -0.15, flat=True), colour=cloth, label=BACKGROUND)
    for sign in (-1, 1):
        x, y = 0.75 * sign, -0.02
        _fill(
            face,
            _place(face, _ellipse(x, y, 0.11, 0.21), -0.1, True),
            colour=face.skin * 0.92,
            label=BACKGROUND,
            head=True,
        )
        ear = _place(face, _ellipse(x + 0.02 * sign, y, 0.055, 0.13), -0.1, True)
        _tint(face, ear, colour=face.skin * 0.5, alpha=0.5, soft=0.02)


def _outline(jaw: float, chin: float) -> np.ndarray:
    right = [(0, -0.92), (0.4, -0.84), (0.65, -0.5), (0.72, -0.05), (0.7, 0.3)]
    right += [(0.62 * jaw, 0.62), (0.42 * jaw, 0.87), (0.19 * jaw, 1.0), (0, 1.03)]
    return _smooth(_mirrored([(x, y + chin * max(0.0, y)) for x, y in right]))


def _skin(face: _Face, rng: np.random.Generator, mouth_open: float) -> None:
    outline = _outline(rng.uniform(0.86, 1.1), rng.uniform(-0.06, 0.08) + mouth_open * 0.45)
    shape = _place(face, outline, flat=True)
    _fill(face, shape, colour=face.skin, label=SKIN, head=True)
    shadow, bright = face.skin * 0.55, _mix(face.skin, _WHITE, 0.5)
    rim = rng.uniform(0.25, 0.6)
    inner = _place(face, outline * (0.86, 0.9), flat=True)
    _tint(face, shape, inner, colour=shadow, alpha=rim, soft=0.07, within=shape)
    flush = _mix(face.skin, np.array((210, 60, 60), np.float32), 0.35)
    blush, shine = rng.uniform(0, 0.5), rng.uniform(0.05, 0.4)
    for sign in (-1, 1):
        _tint(
            face,
            _place(face, _ellipse(0.4 * sign, 0.27, 0.15, 0.11)),
            colour=flush,
            alpha=blush,
            soft=0.07,
            within=shape,
        )
        _tint(face, _place(face, _ellipse(0.36 * sign, 0.16, 0.12, 0.06)), colour=bright, alpha=shine * 0.6, soft=0.05)
    _tint(face, _place(face, _ellipse(rng.uniform(-0.1, 0.1), -0.55, 0.3, 0.12)), colour=bright, alpha=shine, soft=0.1)
    _tint(face, _place(face, _ellipse(0, 0.87, 0.12, 0.07)), colour=bright, alpha=shine * 0.7, soft=0.04)
    _tint(face, _place(face, _ellipse(0, 0.76, 0.16, 0.025)), colour=shadow, alpha=rng.uniform(0.1, 0.5), soft=0.025)
    age = max(0.0, rng.uniform(-0.6, 0.7))
    for sign in (-1, 1):
        fold = _bezier((0.16 * sign, 0.3), (0.28 * sign, 0.38), (0.34 * sign, 0.56))
        _tint(face, _place(face, _ribbon(fold, 0.014)), colour=shadow, alpha=0.15 + age, soft=0.014)
    for y in (-0.62, -0.54, -0.46):
        crease = _bezier((-0.32, y), (rng.uniform(-0.1, 0.1), y - 0.05), (0.32, y))
        if age > 0.3:
            _tint(face, _place(face, _ribbon(crease, 0.007)), colour=shadow, alpha=age * 0.7, soft=0.008)
    spots = rng.uniform((-0.55, -0.65), (0.55, 0.9), (int(rng.integers(0, 14)), 2))
    sizes = rng.uniform(0.006, 0.018, len(spots))
    if rng.random() < 0.4 and len(spots):
        dots = [_place(face, _ellipse(x, y, r, r, count=8)) for (x, y), r in zip(spots, sizes, strict=True)]
        _tint(face, *dots, colour=shadow, alpha=0.6)


def _beard(face: _Face, rng: np.random.Generator, mouth_y: float, mouth_open: float) -> None:
    top, full, alpha = rng.uniform(0.2, 0.5), rng.random() < 0.6, rng.uniform(0.3, 0.9)
    low = 1.0 + 0.45 * mouth_open + rng.uniform(0, 0.2)
    if full:
        points = [(0, low + 0.03), (0.2, low), (0.44, 0.92), (0.64, 0.65), (0.7, top - 0.15), (0.6, top + 0.15)]
        points += [(0.36, mouth_y - 0.02), (0.2, mouth_y - 0.17), (0, mouth_y - 0.14)]
    else:
        points = [(0, low), (0.2, low - 0.06), (0.27, mouth_y + 0.1), (0, mouth_y + 0.08)]
    shape = _place(face, _smooth(_mirrored(points)), flat=full)
    tone = face.hair * 0.85
    _tint(face, shape, colour=tone, alpha=alpha, soft=0.035)
    starts = rng.uniform((-0.62, 0.4), (0.62, 1.05), (70, 2))
    if alpha > 0.5:
        lines = _place(face, _bezier(starts, starts + (0, 0.05), starts * (0.9, 1) + (0, 0.12), 4), flat=full)
        _strands(face, rng, lines, tone, shape)


def _sockets(face: _Face, rng: np.random.Generator, eye_x: float, eye_y: float, eye_w: float) -> None:
    depth, makeup = rng.uniform(0.1, 0.45), rng.random() < 0.2
    shade = rng.uniform(20, 200, 3).astype(np.float32) if makeup else face.skin * 0.5
    bag = rng.uniform(0, 0.4)
    for sign in (-1, 1):
        x = eye_x * sign
        _tint(face, _place(face, _ellipse(x, eye_y - 0.06, eye_w * 1.05, 0.075)), colour=shade, alpha=depth, soft=0.035)
        bow = _bezier((x - eye_w * 0.9, eye_y + 0.06), (x, eye_y + 0.15), (x + eye_w * 0.9, eye_y + 0.06))
        _tint(face, _place(face, _ribbon(bow, 0.013)), colour=face.skin * 0.5, alpha=bag, soft=0.016)


def _eyes(face: _Face, rng: np.random.Generator, eye_x: float, eye_y: float, eye_w: float) -> None:
    upper, lower, tilt = rng.uniform(0.04, 0.1), rng.uniform(0.025, 0.05), rng.uniform(-0.03, 0.04)
    state = rng.random()
    shut = (state < 0.09, state < 0.06 or 0.09 <= state < 0.11)  # both, or one
    if 0.11 <= state < 0.2:
        upper, lower = upper * 0.35, lower * 0.5
    look = np.clip(rng.normal(0, 0.25, 2), -0.5, 0.5) * (1, 0.4)
    iris = _tone(_IRISES, rng.random()) * rng.uniform(0.7, 1.2)
    radius, pupil = eye_w * rng.uniform(0.42, 0.52), rng.uniform(0.3, 0.6)
    white = _mix(np.array((238, 234, 230), np.float32), face.skin, rng.uniform(0.03, 0.4)) * rng.uniform(0.75, 1.0)
    lash, crease = rng.uniform(0.006, 0.024), rng.uniform(0, 0.7)
    glint = rng.uniform(-0.4, 0.4, 2)
    dark = _mix(face.skin * 0.25, _BLACK, rng.uniform(0, 0.8))
    for part, sign in enumerate((-1, 1)):
        x = eye_x * sign
        peak = 1 - np.abs(_T) ** rng.uniform(1.8, 2.6)
        slant = -tilt * _T * sign
        wobble = rng.uniform(0.92, 1.08)
        edge_x = x + _T * eye_w
        if shut[part]:
            line = np.stack((edge_x, eye_y + slant + lower * 0.9 * peak), 1)
            _tint(face, _place(face, _ribbon(line, 0.022)), colour=face.skin * 0.45, alpha=0.5, soft=0.02)
            _fill(face, _place(face, _ribbon(line, lash * 0.6 + 0.004)), colour=dark)
            continue
        top = np.stack((edge_x, eye_y + slant - upper * wobble * peak), 1)
        bottom = np.stack((edge_x, eye_y + slant + lower * wobble * peak), 1)
        opening = _place(face, np.concatenate((top, bottom[::-1])))
        _fill(face, opening, colour=white, label=EYES[part])
        mid = (x + look[0] * eye_w, eye_y - (upper - lower) * 0.5 + look[1] * upper)
        disc = _place(face, _ellipse(*mid, radius, radius, count=20))
        _tint(face, disc, colour=iris * 0.55, alpha=1, within=opening)
        _tint(
            face,
            _place(face, _ellipse(*mid, radius * 0.82, radius * 0.82, count=18)),
            colour=iris,
            alpha=1,
            within=opening,
        )
        small = _place(face, _ellipse(*mid, radius * pupil, radius * pupil, count=14))
        _tint(face, small, colour=_BLACK + 8, alpha=1, within=opening)
        spark = _ellipse(
            mid[0] + glint[0] * radius, mid[1] + (glint[1] - 0.2) * radius, radius * 0.2, radius * 0.2, count=10
        )
        _tint(face, _place(face, spark), colour=_WHITE, alpha=0.85, within=opening)
        lid = _place(face, _ribbon(top, 0.016))
        _tint(face, lid, colour=_BLACK, alpha=0.45, soft=0.012, within=opening)
        taper = 0.35 + 0.65 * np.clip((_T * sign + 1) / 2, 0, 1)
        _tint(face, _place(face, _ribbon(top - (0, lash * 0.5), lash * 0.5 * taper)), colour=dark, alpha=0.95)
        _tint(face, _place(face, _ribbon(bottom + (0, 0.006), 0.005)), colour=face.skin * 0.4, alpha=0.5, soft=0.004)
        fold = np.stack((edge_x, top[:, 1] - 0.03 - 0.012 * peak), 1)
        _tint(face, _place(face, _ribbon(fold, 0.006)), colour=face.skin * 0.4, alpha=crease, soft=0.007)


def _nose(face: _Face, rng: np.random.Generator, eye_y: float, end: float) -> float:
    """Returns y of the nose's lower end."""
    top = eye_y + rng.uniform(-0.06, 0.06)
    bridge, wing = rng.uniform(0.045, 0.075), rng.uniform(0.13, 0.2)
    tall = end - top
    right = [(bridge, top), (bridge * 1.05, top + 0.35 * tall), (wing * 0.68, top + 0.66 * tall)]
    right += [(wing, top + 0.82 * tall), (wing * 0.9, end - 0.02), (wing * 0.45, end), (0, end + 0.02)]
    high = rng.uniform(0.1, 0.26)

    def put(shape: np.ndarray) -> np.ndarray:
        rise = np.clip((shape[:, 1] - top) / tall, 0, 1)
        ridge = 1 - 0.8 * np.clip(np.abs(shape[:, 0]) / wing, 0, 1)
        return _place(face, shape, high * rise * ridge)

    whole = put(_smooth(_mirrored(right)))
    _fill(face, whole, label=NOSE)
    shadow, bright = face.skin * 0.42, _mix(face.skin, _WHITE, 0.55)
    strength, lit = rng.uniform(0.12, 0.5), float(_pick(rng, (-1, 1), (1, 1)))
    for sign in (-1, 1):
        flank = _bezier(
            (bridge * 1.2 * sign, top - 0.05),
            (bridge * 0.8 * sign, top + 0.4 * tall),
            (wing * 0.8 * sign, top + 0.75 * tall),
        )
        _tint(
            face, put(_ribbon(flank, 0.026)), colour=shadow, alpha=strength * (0.5 if sign == lit else 1.1), soft=0.025
        )
        curl = _bezier(
            (wing * 0.85 * sign, top + 0.7 * tall),
            (wing * 1.25 * sign, top + 0.86 * tall),
            (wing * 0.75 * sign, end),
            8,
        )
        _tint(face, put(_ribbon(curl, 0.009)), colour=shadow, alpha=0.25 + strength, soft=0.009)
        hole = _ellipse(wing * 0.48 * sign, end - 0.022, wing * 0.26, 0.02 - 0.03 * min(face.pitch, 0.3), count=14)
        _tint(face, put(hole), colour=shadow * 0.4, alpha=rng.uniform(0.5, 0.95), soft=0.006)
    _tint(face, put(_ellipse(0, end + 0.03, wing * 0.8, 0.03)), colour=shadow, alpha=strength, soft=0.022)
    gleam = rng.uniform(0.1, 0.55)
    _tint(
        face, put(_ellipse(0.012 * lit, top + 0.42 * tall, 0.018, 0.3 * tall)), colour=bright, alpha=gleam, soft=0.018
    )
    _tint(face, put(_ellipse(0.015 * lit, top + 0.8 * tall, 0.04, 0.035)), colour=bright, alpha=gleam, soft=0.022)
    return end


def _mouth(face: _Face, rng: np.random.Generator, y: float, gape: float) -> float:
    """Returns y of the upper lip's upper edge. ``gape`` 0: shut."""
    half = rng.uniform(0.2, 0.31) * (1 - 0.35 * gape)
    smile, skew = rng.uniform(-0.03, 0.09), rng.normal(0, 0.012)
    over, under, cupid = rng.uniform(0.025, 0.085), rng.uniform(0.04, 0.11), rng.uniform(0, 0.4)
    x = _T * half
    hump = np.clip(1 - _T**2, 0, 1)
    hole = np.clip(1 - (_T / 0.9) ** 2, 0, 1) ** 0.7
    base = y + smile * (0.5 - np.abs(_T) ** 1.7) + skew * _T + 0.012 * np.cos(_T * 5) * hump
    roof, floor = base - 0.25 * gape * hole, base + 0.75 * gape * hole
    lift = np.clip(1 - (_T / 0.93) ** 2, 0, 1) ** 0.8
    top = roof - over * lift**0.8 * (1 - cupid * np.exp(-((_T / 0.16) ** 2)))
    bottom = floor + under * lift**0.75
    kind = rng.random()
    red = np.array((178, 62, 72), np.float32)
    tone = _mix(face.skin, red, rng.uniform(0.06, 0.5))
    if kind < 0.2:
        tone = rng.uniform((90, 0, 20), (230, 60, 110)).astype(np.float32)
    elif kind < 0.3:
        tone = face.skin * rng.uniform(0.6, 0.95)
    tone = tone * rng.uniform(0.8, 1.02)

    def band(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return _place(face, np.concatenate((np.stack((x, one), 1), np.stack((x, two), 1)[::-1])), 0.03)

    upper, lower, inner = band(top, roof), band(floor, bottom), band(roof, floor)
    dark = face.skin * 0.3
    _tint(face, band(bottom, bottom + 0.025), colour=dark, alpha=rng.uniform(0.1, 0.4), soft=0.02)
    _fill(face, upper, colour=tone * rng.uniform(0.75, 0.97), label=UPPER_LIP)
    _fill(face, lower, colour=tone, label=LOWER_LIP)
    edge = np.stack((x, (floor + bottom) / 2), 1)[7:18]
    gloss = rng.uniform(0.05, 0.45)
    _tint(
        face,
        _place(face, _ribbon(edge, under * 0.16), 0.03),
        colour=_mix(tone, _WHITE, 0.6),
        alpha=gloss,
        soft=0.015,
        within=lower,
    )
    _tint(face, band(bottom - under * 0.3, bottom), colour=tone * 0.55, alpha=0.4, soft=0.012, within=lower)
    cavity = rng.uniform(0.15, 0.5) * np.array((150, 50, 50), np.float32)
    has_teeth, drop, has_tongue = rng.random() < 0.75, rng.uniform(0.03, 0.085), rng.random() < 0.6
    ivory = _mix(np.array((246, 240, 226), np.float32), face.skin, rng.uniform(0, 0.2)) * rng.uniform(0.75, 1)
    pink = _mix(np.array((190, 88, 88), np.float32), tone, rng.uniform(0, 0.6))
    grin = gape < 0.1 and rng.random() < 0.6
    if gape > 0:
        _fill(face, inner, colour=cavity, label=INNER_MOUTH)
        if has_tongue:
            tongue = _ellipse(0, floor[12] + 0.01, half * 0.6, 0.4 * gape)
            _tint(face, _place(face, tongue, 0.03), colour=pink, alpha=1, soft=0.008, within=inner)
        if has_teeth or grin:
            ends = roof + (gape if grin else drop) * np.clip(1 - (_T / 0.95) ** 2, 0, 1) ** 0.4
            row = band(roof, np.minimum(ends, floor))
            _tint(face, row, colour=ivory, alpha=1, within=inner)
            gaps = np.linspace(-0.7, 0.7, 9) * half
            slits = [_place(face, _ribbon(np.array(((at, y - 0.2), (at, y + 0.3))), 0.003), 0.03) for at in gaps]
            _tint(face, *slits, colour=ivory * 0.6, alpha=0.5, within=row)
        _tint(face, band(roof - 0.01, roof + 0.014), colour=_BLACK, alpha=0.4, soft=0.012, within=inner)
    else:
        line = np.stack((x, base), 1)
        _tint(
            face, _place(face, _ribbon(line, 0.009), 0.03), colour=tone * 0.3, alpha=rng.uniform(0.5, 0.95), soft=0.004
        )
    for at in (0, -1):
        _tint(face, _place(face, _ellipse(x[at], base[at], 0.022, 0.016), 0.03), colour=dark, alpha=0.45, soft=0.012)
    return float(top.min())


def _moustache(face: _Face, rng: np.random.Generator, nose_y: float, lip_top: float) -> None:
    low = lip_top + rng.uniform(-0.02, 0.035)
    wide, alpha = rng.uniform(0.16, 0.3), rng.uniform(0.45, 0.95)
    high = nose_y + 0.03
    points = [(0, high), (wide * 0.6, (high + low) / 2 - 0.02), (wide, low + 0.05), (wide * 0.5, low + 0.02), (0, low)]
    shape = _place(face, _smooth(_mirrored(points)), 0.04)
    _tint(face, shape, colour=face.hair * 0.8, alpha=alpha, soft=0.01)
    if alpha > 0.6:
        _fill(face, shape, label=SKIN)
        starts = rng.uniform(-wide, wide, 40)
        lines = _bezier(_join(starts, high), _join(starts, low - 0.02), _join(starts * 1.3, low + 0.04), 4)
        _strands(face, rng, _place(face, lines, 0.04), face.hair * 0.8, shape)


def _brows(face: _Face, rng: np.random.Generator, eye_x: float, eye_y: float, tone: np.ndarray) -> None:
    gap, arch, thick = rng.uniform(0.13, 0.24), rng.uniform(0.01, 0.08), rng.uniform(0.014, 0.05)
    mood, density, soft = rng.uniform(-0.05, 0.05), rng.uniform(0.45, 1.0), rng.uniform(0.002, 0.014)
    inner, outer = eye_x - rng.uniform(0.14, 0.22), eye_x + rng.uniform(0.15, 0.24)
    t = np.linspace(0, 1, 16)
    for part, sign in enumerate((-1, 1)):
        raise_ = rng.normal(0, 0.014)
        x = (inner + (outer - inner) * t) * sign
        y = eye_y - gap - raise_ + mood * (0.5 - t) - arch * np.sin(math.pi * t**1.4)
        body = thick * (0.35 + 0.65 * np.sin(math.pi * np.clip(t * 0.75 + 0.22, 0, 1)))
        line = np.stack((x, y), 1)
        shape = _place(face, _ribbon(line, body))
        _fill(face, shape, label=BROWS[part])
        _tint(face, shape, colour=tone, alpha=density, soft=soft)
        roots = rng.integers(0, 14, 26)
        hairs = np.stack(
            (line[roots] + _join(0, body[roots] * 0.9), line[roots + 2] - _join(0, body[roots + 2] * 0.6)), 1
        )
        _strands(face, rng, _place(face, hairs), tone, shape)


def _front_hair(face: _Face, rng: np.random.Generator, style: str, tone: np.ndarray, hatted: bool) -> None:
    kind = "low" if rng.random() < 0.16 else "high"
    line = rng.uniform(-0.42, -0.16) if kind == "low" else rng.uniform(-0.78, -0.55)
    volume, part = rng.uniform(0.0, 0.2) * (not hatted), rng.uniform(-0.5, 0.5)
    temple = rng.uniform(-0.25, 0.1) if style == "short" else rng.uniform(0.1, 0.5)
    jitter = rng.uniform(-0.05, 0.05, 9)
    hat_tone, brim = _any_tone(face, rng), rng.uniform(-0.62, -0.4)
    roots, curl = rng.uniform(-0.95, 0.95, 90), rng.uniform(-0.25, 0.25)
    locks = int(rng.integers(2, 7)) if rng.random() < 0.3 else 0
    lock_roots, lock_ends = rng.uniform(-0.6, 0.6, locks), rng.uniform(-0.45, 0.1, locks)
    lock_leans, lock_widths = rng.uniform(-0.2, 0.2, locks), rng.uniform(0.02, 0.07, locks)
    swept, sweep_side, sweep_low = rng.random() < 0.07, float(_pick(rng, (-1, 1), (1, 1))), rng.uniform(0.0, 0.6)
    label = BACKGROUND if style == "scarf" else HAIR
    if style != "bald":
        outer = [
            (-0.77, temple),
            (-0.84, -0.45),
            (-0.66, -0.95 - volume),
            (-0.3, -1.16 - volume),
            (0.05, -1.2 - volume),
        ]
        outer += [(0.36, -1.14 - volume), (0.68, -0.93 - volume), (0.84, -0.45), (0.77, temple)]
        xs = np.array((0.64, 0.52, 0.3, 0.1, -0.1, -0.3, -0.52, -0.64))
        ys = line + jitter[:8] + 0.35 * np.abs(xs) ** 2 - 0.12 * np.exp(-(((xs - part) / 0.2) ** 2)) * (kind == "high")
        ys[[0, -1]] = np.maximum(ys[[0, -1]], temple - 0.3)
        front = [(0.69, temple - 0.1), *zip(xs, ys, strict=True), (-0.69, temple - 0.1)]
        rim = _smooth(np.array(outer + front), 5)
        cut = 5 * len(outer)
        cap = np.concatenate((_place(face, rim[:cut], 0, True), _place(face, rim[cut:])))
        _fill(face, cap, colour=tone, label=label, head=True)
        if style != "scarf":
            crown = _join(part * 0.6 + roots * 0.15, -1.15 - volume)
            curves = _bezier(crown, _join(roots * 0.8 + curl * 0.3, -0.95), _join(roots, -0.2 + jitter[8]), 8)
            lines = _place(face, curves)
            _strands(face, rng, lines, tone, cap)
            shine = _ribbon(_bezier((-0.5, -0.85), (0, -1.1), (0.5, -0.85)), 0.05)
            _tint(face, _place(face, shine), colour=_mix(tone, _WHITE, 0.6), alpha=0.3, soft=0.05, within=cap)
            for root, end, lean, wide in zip(lock_roots, lock_ends, lock_leans, lock_widths, strict=True):
                _lock(face, rng, tone, ((root, line - 0.1), (root + lean, line), (root + lean, end)), wide)
            if swept:
                way = ((part * 0.5, line - 0.2), (0.3 * sweep_side, line + 0.1), (0.62 * sweep_side, sweep_low))
                _lock(face, rng, tone, way, 0.17)
    if hatted:
        right = [(0.4, brim - 0.06), (0.86, brim + 0.1), (0.95, -0.8), (0.6, -1.3), (0, -1.45)]
        hat = _mirrored(right[::-1])
        _fill(face, _place(face, _smooth(hat), 0.05, flat=True), colour=hat_tone, label=BACKGROUND, head=True)
        band = _ribbon(_bezier((-0.87, brim + 0.1), (0, brim - 0.12), (0.87, brim + 0.1)), 0.07)
        _fill(face, _place(face, band, 0.05, flat=True), colour=hat_tone * 0.7, label=BACKGROUND, head=True)


def _lock(face: _Face, rng: np.random.Generator, tone: np.ndarray, way: Sequence[ArrayLike], wide: float) -> None:
    line = _bezier(way[0], way[1], way[2])
    shape = _place(face, _ribbon(line, wide * np.sin(np.linspace(0.5, math.pi, len(line)))), 0.05)
    _tint(face, shape, colour=face.skin * 0.3, alpha=0.35, soft=0.025)
    _fill(face, shape, colour=tone * 0.95, label=HAIR, head=True)
    lines = _place(face, line + _join(np.linspace(-0.8, 0.8, 7) * wide, 0)[:, None], 0.05)
    _strands(face, rng, lines, tone, shape)


def _light(face: _Face, rng: np.random.Generator) -> None:
    """Shades the head as a ball under a lamp, the whole photo by a slope, and casts a shadow edge now and then."""
    axis = (np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID
    x, y = np.meshgrid(axis - face.centre[0], axis - face.centre[1])
    cos, sin = math.cos(face.roll) / face.scale, math.sin(face.roll) / face.scale
    nx, ny = (x * cos + y * sin) / 0.95, (y * cos - x * sin) / 1.35
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0.02, 1))
    lamp = np.array((rng.normal(0, 0.55), rng.normal(-0.3, 0.4), 0.8))
    lamp /= np.linalg.norm(lamp)
    strength = rng.uniform(0.1, 0.8)
    ball = 1 + strength * (np.clip(nx * lamp[0] + ny * lamp[1] + nz * lamp[2], -0.2, 1) - 0.7)
    slope = 1 + rng.uniform(-0.5, 0.5) * x + rng.uniform(-0.5, 0.5) * y
    angle, offset, hard = rng.uniform(0, 2 * math.pi), rng.uniform(-0.25, 0.25), rng.uniform(4, 60)
    cast = 1 - rng.uniform(0.2, 0.55) / (
        1 + np.exp(-np.clip((x * math.cos(angle) + y * math.sin(angle) - offset) * hard, -30, 30))
    )
    if rng.random() < 0.25:
        slope = slope * cast
    side = (len(face.photo),) * 2
    gains = [
        cv2.resize(np.repeat(gain[..., None], 3, 2).astype(np.float32), side, interpolation=cv2.INTER_LINEAR)
        for gain in (ball * slope, slope)
    ]
    cv2.copyTo(gains[0], face.head, gains[1])
    cv2.multiply(face.photo, gains[1], face.photo, dtype=cv2.CV_8U)


def _occluders(face: _Face, rng: np.random.Generator, eye_x: float, eye_y: float, mouth_y: float) -> None:
    glasses = _pick(rng, ("none", "clear", "sun"), (0.74, 0.2, 0.06))
    if glasses != "none":
        _glasses(face, rng, eye_x, eye_y, dark=glasses == "sun")
    thing = _pick(rng, ("none", "hand", "mask", "bar"), (0.82, 0.08, 0.04, 0.06))
    goal = _pick(rng, ((0.0, mouth_y), (eye_x, eye_y), (-eye_x, eye_y)), (2, 1, 1))
    if thing == "hand":
        _hand(face, rng, goal)
    elif thing == "mask":
        tone, top = _any_tone(face, rng), rng.uniform(0.08, 0.28)
        points = [(0, top), (0.35, top + 0.07), (0.68, 0.25), (0.64, 0.62), (0.4, 0.95), (0, 1.1)]
        shape = _place(face, _smooth(_mirrored(points)), 0.08)
        _fill(face, shape, colour=tone, label=BACKGROUND)
        for y in (0.4, 0.58, 0.76):
            crease = _place(face, _ribbon(_bezier((-0.55, y), (0, y + 0.08), (0.55, y)), 0.012), 0.08)
            _tint(face, crease, colour=tone * 0.5, alpha=0.5, soft=0.012, within=shape)
    elif thing == "bar":
        turn, wide, tone = rng.uniform(0, math.pi), rng.uniform(0.05, 0.13), _any_tone(face, rng)
        step = np.array((math.cos(turn), math.sin(turn))) * rng.uniform(0.3, 1.2)
        line = np.array(goal) + rng.normal(0, 0.05, 2) + np.linspace(-1, 1, 12)[:, None] * step
        shape = _place(face, _ribbon(line, wide), 0.15, flat=True)
        _fill(face, shape, colour=tone, label=BACKGROUND)
        streak = _place(face, _ribbon(line + (0, -wide * 0.3), wide * 0.15), 0.15, flat=True)
        _tint(face, streak, colour=_mix(tone, _WHITE, 0.6), alpha=0.4, soft=0.015)


def _glasses(face: _Face, rng: np.random.Generator, eye_x: float, eye_y: float, dark: bool) -> None:
    wide, tall, power = rng.uniform(0.19, 0.27), rng.uniform(0.12, 0.2), rng.uniform(2, 4)
    thick = rng.uniform(0.01, 0.04)
    frame, tone = _any_tone(face, rng) * rng.uniform(0.2, 1), rng.uniform(0, 70, 3).astype(np.float32)
    glare, shade = rng.uniform(0, 0.35), rng.uniform(0.02, 0.15)
    lift, y = 0.1, eye_y + 0.02
    wide = min(wide, eye_x - 0.05)
    for sign in (-1, 1):
        x = eye_x * sign * 1.03
        lens = _place(face, _ellipse(x, y, wide, tall, power), lift)
        rim = _place(face, _ellipse(x, y, wide + thick, tall + thick, power), lift)
        if dark:
            _fill(face, lens, colour=tone, label=BACKGROUND)
        else:
            _tint(face, lens, colour=tone, alpha=shade)
        streak = _ribbon(np.array(((x - wide, y + tall), (x + wide * 0.3, y - tall))), wide * 0.22)
        _tint(face, _place(face, streak, lift), colour=_WHITE, alpha=glare, soft=0.01, within=lens)
        _fill(face, rim, lens, colour=frame, label=BACKGROUND)
        arm = np.array(((x + wide * sign, y - 0.04), (0.76 * sign, y - 0.06)))
        ends = np.concatenate((_place(face, arm[:1], lift), _place(face, arm[1:], flat=True)))
        _fill(face, _ribbon(ends, thick * 0.7 * face.scale), colour=frame, label=BACKGROUND)
    hole = eye_x * 1.03 - wide
    bridge = _ribbon(_bezier((-hole, y - 0.02), (0, y - 0.07), (hole, y - 0.02)), thick * 0.6)
    _fill(face, _place(face, bridge, lift), colour=frame, label=BACKGROUND)


def _hand(face: _Face, rng: np.random.Generator, goal: tuple[float, float]) -> None:
    tone = face.skin * rng.uniform(0.85, 1.1) if rng.random() < 0.75 else _tone(_SKINS, rng.random())
    turn = rng.uniform(0.2, math.pi - 0.2)  # the hand comes from below
    toward = -np.array((math.cos(turn), math.sin(turn)))
    across = np.array((-toward[1], toward[0]))
    fingers, wide = int(rng.integers(2, 5)), rng.uniform(0.07, 0.1)
    tip = np.array(goal) + rng.normal(0, 0.06, 2)
    palm = tip - toward * 0.75
    blob = _smooth(_mirrored([(0.3, 0.2), (0.38, -0.3), (0.2, -1.6)]))
    blob = palm + blob[:, :1] * across + blob[:, 1:] * toward
    shape = _place(face, blob, 0.2, flat=True)
    _fill(face, shape, colour=tone * 0.93, label=BACKGROUND)
    for i in range(fingers):
        side = (i - (fingers - 1) / 2) * wide * 2.05
        end = tip + across * side * 1.1 + toward * rng.uniform(0.02, 0.2)
        line = _bezier(palm + across * side, palm + across * side * 1.2 + toward * 0.4, end, 16)
        body = wide * np.sqrt(np.clip(np.concatenate((np.ones(13), (0.85, 0.5, 0.05))), 0, 1))
        finger = _place(face, _ribbon(line, body), 0.2, flat=True)
        _tint(face, finger, colour=_BLACK, alpha=0.4, soft=0.02)
        _fill(face, finger, colour=tone, label=BACKGROUND)
        inner = _place(face, _ribbon(line, body * 0.55), 0.2, flat=True)
        _tint(face, finger, inner, colour=tone * 0.55, alpha=0.5, soft=0.025, within=finger)
        x, y = end - toward * 0.055
        nail = _place(face, _ellipse(x, y, wide * 0.5, wide * 0.6, count=14), 0.2, flat=True)
        _tint(face, nail, colour=_mix(tone, np.array((250, 200, 200), np.float32), 0.5), alpha=0.8)


def _camera(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grain, white balance, gamma, contrast, grey photos, blur, JPEG. The size-dependent noise is drawn last."""
    size = len(photo)
    balance = rng.normal(1, 0.04, 3)
    gamma, low, high = math.exp(rng.normal(0, 0.22)), rng.uniform(0, 0.1), rng.uniform(0.88, 1.05)
    texture = _noise_map(rng, 96, size) * rng.uniform(0, 0.03)
    grey, blur = rng.random() < 0.06, rng.uniform(0.002, 0.012) * (rng.random() < 0.3)
    noise = rng.uniform(0, 4) if rng.random() < 0.8 else rng.uniform(4, 14)
    quality = int(rng.integers(25, 95)) if rng.random() < 0.6 else 0
    level = np.arange(256)[:, None] / 255 * balance
    table = (low + (high - low) * np.clip(level, 0, 1) ** gamma) * 255
    photo = cv2.LUT(photo, np.clip(table, 0, 255).astype(np.uint8)[None])
    if grey:
        photo = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if blur * size > 0.3:
        photo = cv2.GaussianBlur(photo, (0, 0), blur * size)
    grain = rng.standard_normal((size, size), np.float32) * np.float32(noise)
    factor = photo * (1 + texture)[..., None] + grain[..., None]
    photo = np.clip(factor, 0, 255).astype(np.uint8)
    if quality:
        packed = cv2.imencode(".jpg", photo[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
        photo = cv2.cvtColor(np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    return photo
