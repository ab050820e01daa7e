"""What is around a drawn head: background, light, a thing in front of it, and the camera."""

import math

import cv2
import numpy as np

from data.datasets.synthetic.canvas import WHITE, Canvas, mix, ribbon, smooth, xy
from data.datasets.synthetic.features import Plan

GRID = 64  # side of the maps that are enlarged to the photo
FRONT = 0.75  # depth of what is in front of the face


def noise_map(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)


def draw_background(face: Canvas, rng: np.random.Generator) -> None:
    """A slope or stripes between two colours, clouds, and shapes, out of focus."""
    side = len(face.photo)
    one, two = face.any_tone(rng), face.any_tone(rng)
    angle, frequency = rng.uniform(0, 2 * math.pi), rng.uniform(6, 28)
    axis = np.linspace(0, 1, GRID)
    across = axis * math.cos(angle) + axis[:, None] * math.sin(angle)
    share = 0.5 + 0.5 * (np.sin(across * frequency) if rng.random() < 0.2 else across)
    share = share + noise_map(rng, 6, GRID) * rng.uniform(0, 0.35) + noise_map(rng, 40, GRID) * rng.uniform(0, 0.12)
    small = mix(one, two, np.clip(share, 0, 1)[..., None]).astype(np.float32)
    photo = cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(0, 15)):
        radius, corners = rng.uniform(0.02, 0.2), rng.integers(3, 9)
        angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
        reach = radius * rng.uniform(0.5, 1.3, corners)
        shape = xy(reach * np.cos(angles), reach * np.sin(angles)) * rng.uniform(0.2, 1, 2)
        shape = rng.uniform(-0.05, 1.05, 2) + (smooth(shape) if rng.random() < 0.6 else shape)
        cv2.fillPoly(photo, [np.round(shape * side).astype(np.int32)], face.any_tone(rng).tolist(), cv2.LINE_AA)
    blur = 2 * round(side * rng.uniform(0, 0.05)) + 1
    face.photo[:] = cv2.GaussianBlur(np.clip(photo, 0, 255).astype(np.uint8), (blur, blur), 0)


def draw_light(face: Canvas, rng: np.random.Generator) -> None:
    """Light on the photo as on a ball of the head's size, a slope, and in some photos the edge of a shadow."""
    pose, axis = face.pose, np.linspace(0, 1, GRID)
    x, y = np.meshgrid(axis - pose.centre[0], axis - pose.centre[1])
    cos, sin = math.cos(pose.roll) / pose.scale, math.sin(pose.roll) / pose.scale
    ball = np.stack(((x * cos + y * sin) / 0.95, (y * cos - x * sin) / 1.35, np.zeros_like(x)))
    ball[2] = np.sqrt(np.clip(1 - ball[0] ** 2 - ball[1] ** 2, 0.02, 1))
    lamp = np.array((rng.normal(0, 0.55), rng.normal(-0.3, 0.4), 0.8))
    # no product of matrices, whose last digit may depend on where in the memory they lie
    facing = (lamp[:, None, None] * ball).sum(0) / np.sqrt((lamp**2).sum() * (ball**2).sum(0))
    gain = 1 + rng.uniform(0.1, 0.8) * (np.clip(facing, -0.2, 1) - 0.7)
    gain = gain * (1 + rng.uniform(-0.5, 0.5) * x + rng.uniform(-0.5, 0.5) * y)
    angle, offset, sharpness = rng.uniform((0, -0.25, 4), (2 * math.pi, 0.25, 60))
    edge = (x * math.cos(angle) + y * math.sin(angle) - offset) * sharpness
    shadow = rng.uniform(0.2, 0.55) * (rng.random() < 0.25)
    gain = gain * (1 - shadow / (1 + np.exp(-edge)))
    face.photo *= cv2.resize(gain, face.photo.shape[:2], interpolation=cv2.INTER_LINEAR)[..., None]


def draw_occluder(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    """A bar, or something as wide as a hand or a mask, that hides the mouth or an eye."""
    x = rng.integers(-1, 2) * plan.eye_x
    goal = (x, plan.eye_y if x else plan.mouth_y)
    turn, length = rng.uniform(0, math.pi), rng.uniform(0.3, 1.2)
    half_width = rng.uniform(0.05, 0.13) if rng.random() < 0.5 else rng.uniform(0.2, 0.4)
    along = length * np.array((math.cos(turn), math.sin(turn)))
    line = goal + rng.normal(0, 0.05, 2) + np.linspace(-1, 1, 8)[:, None] * along
    tone = face.any_tone(rng)
    shape = face.paint(smooth(ribbon(line, half_width)), colour=tone, label="background", plane=FRONT)
    streak = ribbon(line - (0, 0.3 * half_width), 0.15 * half_width)
    face.paint(streak, colour=mix(tone, WHITE, 0.6), alpha=0.4, soft=0.04, within=shape, plane=FRONT)


def photograph(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White balance, gamma, contrast, grey photos, blur, and grain, whose random numbers depend on the size."""
    size = len(photo)
    balance, gamma = rng.normal(1, 0.04, 3), math.exp(rng.normal(0, 0.22))
    low, high, blur = rng.uniform((0, 0.88, 0.002), (0.1, 1.05, 0.012))
    grey, soft = rng.random(2) < (0.06, 0.3)
    noise = rng.uniform(0, 4) if rng.random() < 0.8 else rng.uniform(4, 14)
    level = np.clip(np.arange(256)[:, None] / 255 * balance, 0, 1)
    table = np.clip((low + (high - low) * level**gamma) * 255, 0, 255).astype(np.uint8)
    photo = cv2.LUT(photo, table[None])
    if grey:
        photo = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if soft:
        photo = cv2.GaussianBlur(photo, (0, 0), blur * size)
    grain = rng.standard_normal((size, size), np.float32) * noise
    return np.clip(photo + grain[..., None], 0, 255).astype(np.uint8)
