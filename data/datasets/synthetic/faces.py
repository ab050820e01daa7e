"""Whole faces: drawn from a seed and an index, or from a name.

Photo and labels are filled from the same polygons. Random numbers are drawn in an order that does not depend on the
size, so that a face is the same at every size.
"""

import cv2
import numpy as np

from data.datasets.synthetic.canvas import mix, pick
from data.datasets.synthetic.features import draw_eyes, draw_mouth, draw_nose, draw_skin, draw_sockets
from data.datasets.synthetic.hair import (
    draw_beard,
    draw_body_and_back_hair,
    draw_brows,
    draw_front_hair,
    draw_moustache,
)
from data.datasets.synthetic.scene import draw_background, draw_light, draw_occluders, photograph, pose_face
from utils.errors import InputError

COUNTS = {"train": 400, "val": 60, "test": 60}  # faces of each split, by default
SIZE = 192  # side of photo and labels in pixels, by default
SPLIT_STARTS = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # first face index of each split
SPLIT_ROOM = 1_000_000  # most faces that a split can hold
SIZES = (16, 2048)  # smallest and largest side in pixels


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
    face = pose_face(rng, size)
    brow_tone = mix(face.hair, face.skin, rng.uniform(0, 0.5)) * rng.uniform(0.5, 1.1)
    eye_x, eye_y, eye_w = rng.uniform(0.31, 0.37), rng.uniform(-0.13, -0.06), rng.uniform(0.13, 0.175)
    mouth_open = pick(rng, (0.0, rng.uniform(0.03, 0.12), rng.uniform(0.12, 0.36)), (0.45, 0.35, 0.2))
    mouth_y = rng.uniform(0.53, 0.62)

    draw_background(face, rng)
    style = pick(rng, ("bald", "short", "medium", "long", "scarf"), (0.1, 0.34, 0.2, 0.3, 0.06))
    hatted = style != "scarf" and rng.random() < 0.1
    hair_tone = rng.uniform(20, 235, 3).astype(np.float32) if style == "scarf" else face.hair
    draw_body_and_back_hair(face, rng, style, hair_tone, hatted)
    draw_skin(face, rng, mouth_open)
    beard = style != "scarf" and rng.random() < 0.22
    if beard:
        draw_beard(face, rng, mouth_y, mouth_open)
    draw_sockets(face, rng, eye_x, eye_y, eye_w)
    draw_eyes(face, rng, eye_x, eye_y, eye_w)
    nose_y = draw_nose(face, rng, eye_y, min(mouth_y - 0.13, rng.uniform(0.33, 0.42)))
    lip_top = draw_mouth(face, rng, mouth_y, mouth_open)
    if beard or rng.random() < 0.08:
        draw_moustache(face, rng, nose_y, lip_top)
    draw_brows(face, rng, eye_x, eye_y, brow_tone)
    draw_front_hair(face, rng, style, hair_tone, hatted)
    draw_light(face, rng)
    draw_occluders(face, rng, eye_x, eye_y, mouth_y)
    step = len(face.labels) // size
    photo = cv2.resize(face.photo, (size, size), interpolation=cv2.INTER_AREA)
    return photograph(photo, rng), np.ascontiguousarray(face.labels[step // 2 :: step, step // 2 :: step])


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
