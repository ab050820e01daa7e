"""Whole faces: drawn from a seed and an index, or from a name.

Photo and labels are filled from the same polygons. Random numbers are drawn in an order that does not depend on the
size, so that a face is the same at every size.
"""

import numpy as np

from data.datasets.synthetic.canvas import HAIRS, SKINS, Canvas, Pose, tone_at
from data.datasets.synthetic.features import Plan, draw_glasses, draw_head
from data.datasets.synthetic.scene import draw_background, draw_light, draw_occluder, photograph

COUNTS = {"train": 400, "val": 60, "test": 60}  # faces of each split, by default
SIZE = 192  # side of photo and labels in pixels, by default
SPLIT_STARTS = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # first face index of each split


def draw_face(seed: int, index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draws face ``index`` of the endless series ``seed``.

    seed, index: 0 or more. size: side in pixels.
    Returns photo, uint8 (size, size, 3) RGB, and labels, uint8 (size, size), HELEN's ids 0 to 10. The same
    arguments give the same arrays; another size gives the same face.
    """
    rng = np.random.default_rng((seed, index))
    face, plan = sample_head(rng, size)
    draw_background(face, rng)
    draw_head(face, rng, plan)
    draw_light(face, rng)
    if plan.glasses:
        draw_glasses(face, rng, plan)
    if plan.occluder:
        draw_occluder(face, rng, plan)
    photo, labels = face.finished()
    return photograph(photo, rng), labels


def sample_head(rng: np.random.Generator, size: int) -> tuple[Canvas, Plan]:
    """An empty canvas with a pose and colours, and what is drawn where."""
    pose = Pose(
        yaw=float(np.clip(rng.normal(0, 0.2), -0.44, 0.44)),
        pitch=float(np.clip(rng.normal(0, 0.11), -0.26, 0.26)),
        roll=rng.normal(0, 0.1) if rng.random() < 0.8 else rng.uniform(-0.6, 0.6),
        scale=rng.uniform(0.29, 0.45),
        centre=0.5 + np.clip(rng.normal(0, 0.05, 2), -0.13, 0.13),
        breadth=rng.uniform(0.9, 1.1),
        nose=rng.uniform(0.1, 0.26),
    )
    skin = tone_at(SKINS, rng.random()) + rng.uniform(-7, 7, 3)
    hair = rng.uniform(10, 230, 3) if rng.random() < 0.06 else tone_at(HAIRS, rng.random() ** 1.5)
    gape = max(0.0, rng.uniform(-0.25, 0.3))
    eye_x, eye_y, eye_half, mouth_y = rng.uniform((0.31, -0.13, 0.13, 0.53), (0.37, -0.06, 0.175, 0.62))
    features = rng.random(5) < (0.9, 0.4, 0.2, 0.25, 0.2)
    return Canvas(size, pose, skin, hair), Plan(eye_x, eye_y, eye_half, mouth_y, gape, *features)


def sample_names(split: str, count: int | None = None) -> list[str]:
    """Names of the first ``count`` faces of a split (default ``COUNTS[split]``), e.g. ``val_000007``.

    Splits of up to a million faces share none.
    """
    return [f"{split}_{i:06d}" for i in range(COUNTS[split] if count is None else count)]


def draw_named(name: str, seed: int = 0, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draws the face of a name from ``sample_names``; returns what ``draw_face`` returns."""
    split, _, number = name.partition("_")
    return draw_face(seed, SPLIT_STARTS[split] + int(number), size)
