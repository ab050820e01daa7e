"""Pictures without faces: backgrounds by formula, and the photos of scikit-image that show no person."""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import skimage.data

Canvas = Callable[[np.random.Generator, int, int], np.ndarray]  # generator, height, width -> uint8 (H, W, 3), RGB
PICTURES = (  # of scikit-image, all in its package; not astronaut, camera and coins, which show faces
    "brick",
    "cat",
    "cell",
    "checkerboard",
    "clock",
    "coffee",
    "colorwheel",
    "grass",
    "gravel",
    "horse",
    "hubble_deep_field",
    "immunohistochemistry",
    "logo",
    "microaneurysms",
    "moon",
    "page",
    "retina",
    "rocket",
    "shepp_logan_phantom",
    "text",
)


def flat(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One colour."""
    return np.full((height, width, 3), _colours(rng, 1)[0], np.uint8)


def gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """From one colour to another, along any direction."""
    along_HW = _along(rng, height, width)
    share_HW1 = ((along_HW - along_HW.min()) / np.ptp(along_HW))[..., None]
    return _pixels(_mixed(_colours(rng, 2), share_HW1))


def clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Colours that change slowly, as of a blurred wall."""
    return _pixels(_mixed(_colours(rng, 2), _field(rng, height, width, 4)) + 12 * _field(rng, height, width, 9, 3))


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A colour under grain."""
    return _pixels(_colours(rng, 1) + rng.uniform(10, 70) * rng.standard_normal((height, width, 3)))


def bushes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of all scales, the coarse stronger than the fine."""
    shares = [_field(rng, height, width, 2**octave) / 2 ** (0.7 * (octave - 2)) for octave in range(2, 9)]
    share_HW1 = np.sum(shares, 0)
    share_HW1 = np.clip(0.5 + 0.7 * (share_HW1 - share_HW1.mean()), 0, 1)
    return _pixels(_mixed(_colours(rng, 2), share_HW1) + 20 * (_field(rng, height, width, 6, 3) - 0.5))


def stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Stripes along any direction, straight or wavy, with sharp or soft edges."""
    wave_HW = _along(rng, height, width) + rng.uniform(0, 120) * _field(rng, height, width, 5)[..., 0]
    share_HW1 = np.sin(2 * np.pi / rng.uniform(12, 120) * wave_HW)[..., None]
    return _pixels(_mixed(_colours(rng, 2), np.clip(0.5 + rng.uniform(0.5, 8) * share_HW1, 0, 1)))


def tiles(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A wall of tiles of several colours, with joints."""
    side = int(rng.integers(24, 140))
    rows, columns = -(-height // side), -(-width // (2 * side)) + 1
    base_3, joint_3 = _colours(rng, 2)
    tints = base_3 + rng.uniform(5, 60) * rng.standard_normal((rows, columns, 3))
    y_H1, x_W = np.arange(height)[:, None], np.arange(width)
    moved_HW = x_W + (y_H1 // side) % 2 * side * int(rng.integers(2))
    wall_HW3 = tints[y_H1 // side, moved_HW // (2 * side)]
    gap = max(2, side // 16)
    wall_HW3[(y_H1 % side < gap) | (moved_HW % (2 * side) < gap)] = joint_3
    return _pixels(wall_HW3 + 4 * rng.standard_normal((height, width, 1)))


def leaves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Ellipses and boxes of all sizes, one over the other."""
    picture_HW3 = flat(rng, height, width)
    for colour_3 in _colours(rng, 700):
        axes = (12 * rng.pareto(1.5, 2) + 6).clip(max=220)
        place, degrees = rng.uniform(0, (width, height)), float(rng.uniform(0, 180))
        ink = colour_3.tolist()
        if rng.random() < 0.5:
            cv2.ellipse(picture_HW3, (place.tolist(), (2 * axes).tolist(), degrees), ink, -1, cv2.LINE_AA)
        else:
            corners_42 = cv2.boxPoints((place.tolist(), (2 * axes).tolist(), degrees))
            cv2.fillPoly(picture_HW3, [np.rint(corners_42).astype(np.int32)], ink, cv2.LINE_AA)
    return picture_HW3


def writing(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Lines of letters and signs."""
    picture_HW3 = flat(rng, height, width)
    ink = _colours(rng, 1)[0].tolist()
    size = float(rng.uniform(0.4, 2.5))
    for y in range(0, height + int(40 * size), int(36 * size)):
        text = "".join(map(chr, rng.integers(32, 127, 4 * width // int(40 * size))))
        cv2.putText(picture_HW3, text, (int(10 * size), y), int(rng.integers(4)), size, ink, int(size) + 1, cv2.LINE_AA)
    return picture_HW3


SMOOTH: dict[str, Canvas] = {"flat": flat, "gradient": gradient, "clouds": clouds}
BUSY: dict[str, Canvas] = {
    "noise": noise,
    "bushes": bushes,
    "stripes": stripes,
    "tiles": tiles,
    "leaves": leaves,
    "writing": writing,
}


def faceless(count: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """So many pictures without a face, with what they are: first those of scikit-image, then drawn ones of each kind
    in turn, 360 to 1280 pixels wide and high."""
    for name in PICTURES[:count]:
        yield name, picture(name)
    kinds = list({**SMOOTH, **BUSY}.items())
    for k in range(count - len(PICTURES)):
        rng = np.random.default_rng((seed, k))
        name, draw = kinds[k % len(kinds)]
        yield name, draw(rng, *map(int, rng.integers(360, 1281, 2)))


def picture(name: str) -> np.ndarray:
    """One of ``PICTURES`` as uint8 (H, W, 3), RGB."""
    pixels = getattr(skimage.data, name)()
    if pixels.dtype != np.uint8:  # 0 to 1, as truth values or floats
        pixels = np.rint(255 * pixels.astype(np.float64)).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., :3])


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3), 0 to 255: any brightness, mostly dull."""
    return np.clip(rng.uniform(10, 245, (count, 1)) + 40 * rng.standard_normal((count, 3)), 0, 255)


def _mixed(colours_23: np.ndarray, share_HW1: np.ndarray) -> np.ndarray:
    """(H, W, 3): the first colour where the share is 0, the second where it is 1."""
    return colours_23[0] + share_HW1 * (colours_23[1] - colours_23[0])


def _along(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W): how far each pixel lies along a direction that is drawn, pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle) * np.arange(width) + np.sin(angle) * np.arange(height)[:, None]


def _field(rng: np.random.Generator, height: int, width: int, cells: int, channels: int = 1) -> np.ndarray:
    """Random numbers on a grid of cells x cells, enlarged smoothly: (H, W, channels), about 0 to 1."""
    coarse = rng.random((cells, cells, channels)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


def _pixels(values_HW3: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values_HW3), 0, 255).astype(np.uint8)
