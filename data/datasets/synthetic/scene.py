"""What is around a drawn face: its pose, the background, light, things in front of it, and the camera."""

import math

import cv2
import numpy as np

from data.datasets.synthetic.canvas import (
    BACKGROUND,
    BLACK,
    GRID,
    HAIR_CHANCES,
    HAIRS,
    SKINS,
    WHITE,
    Canvas,
    any_tone,
    bezier,
    ellipse,
    fill,
    mirrored,
    mix,
    noise_map,
    pick,
    place,
    ribbon,
    smooth_curve,
    tint,
    tone_at,
)


def pose_face(rng: np.random.Generator, size: int) -> Canvas:
    yaw = float(np.clip(rng.normal(0, 0.2), -0.44, 0.44))
    pitch = float(np.clip(rng.normal(0, 0.11), -0.26, 0.26))
    roll = float(rng.normal(0, 0.1)) if rng.random() < 0.8 else float(rng.uniform(-0.6, 0.6))
    skin = tone_at(SKINS, rng.random()) + rng.uniform(-7, 7, 3).astype(np.float32)
    dyed = rng.random() < 0.06
    hair = rng.uniform(10, 230, 3).astype(np.float32) if dyed else pick(rng, list(HAIRS), HAIR_CHANCES)
    side = max(size, min(size * 2, 384))
    step = 5 if size <= 512 else 3  # fillPoly also fills the pixels that an edge touches: fine pixels, small error
    return Canvas(
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


def draw_background(face: Canvas, rng: np.random.Generator) -> None:
    side = len(face.photo)
    half = side // 2
    one, two = any_tone(face, rng), any_tone(face, rng)
    angle, frequency, kind = rng.uniform(0, 2 * math.pi), rng.uniform(3, 14), rng.random()
    axis = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    across = axis[None] * math.cos(angle) + axis[:, None] * math.sin(angle)
    share = 0.5 + 0.5 * np.sin(across * frequency * 2) if kind < 0.2 else np.clip(across * 0.5 + 0.5, 0, 1)
    share = share + noise_map(rng, 6, GRID) * rng.uniform(0, 0.35)
    share = share + noise_map(rng, 40, GRID) * rng.uniform(0, 0.22) * (rng.random() < 0.5)
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
            blob = smooth_curve(blob)
        elif shape < 0.5:
            blob = ellipse(x, y, radius, radius * reach[0] / radius)
        elif shape < 0.75:
            at = np.array((x, y))
            blob = ribbon(bezier(at + ends[0], at + bend, at + ends[1]), radius * 0.15)
        fill(face, blob, colour=any_tone(face, rng))
    sigma = rng.uniform(0, 0.02) * side * (rng.random() < 0.7)
    if sigma > 1.5:
        blurred = cv2.resize(face.photo, (half, half), interpolation=cv2.INTER_AREA)
        blurred = cv2.GaussianBlur(blurred, (0, 0), sigma / 2)
        cv2.resize(blurred, (side, side), face.photo, interpolation=cv2.INTER_LINEAR)


def draw_light(face: Canvas, rng: np.random.Generator) -> None:
    """Shades the head as a ball under a lamp, the whole photo by a slope, and casts a shadow edge now and then."""
    axis = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
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


def draw_occluders(face: Canvas, rng: np.random.Generator, eye_x: float, eye_y: float, mouth_y: float) -> None:
    glasses = pick(rng, ("none", "clear", "sun"), (0.74, 0.2, 0.06))
    if glasses != "none":
        draw_glasses(face, rng, eye_x, eye_y, dark=glasses == "sun")
    thing = pick(rng, ("none", "hand", "mask", "bar"), (0.82, 0.08, 0.04, 0.06))
    goal = pick(rng, ((0.0, mouth_y), (eye_x, eye_y), (-eye_x, eye_y)), (2, 1, 1))
    if thing == "hand":
        draw_hand(face, rng, goal)
    elif thing == "mask":
        tone, top = any_tone(face, rng), rng.uniform(0.08, 0.28)
        points = [(0, top), (0.35, top + 0.07), (0.68, 0.25), (0.64, 0.62), (0.4, 0.95), (0, 1.1)]
        shape = place(face, smooth_curve(mirrored(points)), 0.08)
        fill(face, shape, colour=tone, label=BACKGROUND)
        for y in (0.4, 0.58, 0.76):
            crease = place(face, ribbon(bezier((-0.55, y), (0, y + 0.08), (0.55, y)), 0.012), 0.08)
            tint(face, crease, colour=tone * 0.5, alpha=0.5, soft=0.012, within=shape)
    elif thing == "bar":
        turn, wide, tone = rng.uniform(0, math.pi), rng.uniform(0.05, 0.13), any_tone(face, rng)
        step = np.array((math.cos(turn), math.sin(turn))) * rng.uniform(0.3, 1.2)
        line = np.array(goal) + rng.normal(0, 0.05, 2) + np.linspace(-1, 1, 12)[:, None] * step
        shape = place(face, ribbon(line, wide), 0.15, flat=True)
        fill(face, shape, colour=tone, label=BACKGROUND)
        streak = place(face, ribbon(line + (0, -wide * 0.3), wide * 0.15), 0.15, flat=True)
        tint(face, streak, colour=mix(tone, WHITE, 0.6), alpha=0.4, soft=0.015)


def draw_glasses(face: Canvas, rng: np.random.Generator, eye_x: float, eye_y: float, dark: bool) -> None:
    wide, tall, power = rng.uniform(0.19, 0.27), rng.uniform(0.12, 0.2), rng.uniform(2, 4)
    thick = rng.uniform(0.01, 0.04)
    frame, tone = any_tone(face, rng) * rng.uniform(0.2, 1), rng.uniform(0, 70, 3).astype(np.float32)
    glare, shade = rng.uniform(0, 0.35), rng.uniform(0.02, 0.15)
    lift, y = 0.1, eye_y + 0.02
    wide = min(wide, eye_x - 0.05)
    for sign in (-1, 1):
        x = eye_x * sign * 1.03
        lens = place(face, ellipse(x, y, wide, tall, power), lift)
        rim = place(face, ellipse(x, y, wide + thick, tall + thick, power), lift)
        if dark:
            fill(face, lens, colour=tone, label=BACKGROUND)
        else:
            tint(face, lens, colour=tone, alpha=shade)
        streak = ribbon(np.array(((x - wide, y + tall), (x + wide * 0.3, y - tall))), wide * 0.22)
        tint(face, place(face, streak, lift), colour=WHITE, alpha=glare, soft=0.01, within=lens)
        fill(face, rim, lens, colour=frame, label=BACKGROUND)
        arm = np.array(((x + wide * sign, y - 0.04), (0.76 * sign, y - 0.06)))
        ends = np.concatenate((place(face, arm[:1], lift), place(face, arm[1:], flat=True)))
        fill(face, ribbon(ends, thick * 0.7 * face.scale), colour=frame, label=BACKGROUND)
    hole = eye_x * 1.03 - wide
    bridge = ribbon(bezier((-hole, y - 0.02), (0, y - 0.07), (hole, y - 0.02)), thick * 0.6)
    fill(face, place(face, bridge, lift), colour=frame, label=BACKGROUND)


def draw_hand(face: Canvas, rng: np.random.Generator, goal: tuple[float, float]) -> None:
    tone = face.skin * rng.uniform(0.85, 1.1) if rng.random() < 0.75 else tone_at(SKINS, rng.random())
    turn = rng.uniform(0.2, math.pi - 0.2)  # the hand comes from below
    toward = -np.array((math.cos(turn), math.sin(turn)))
    across = np.array((-toward[1], toward[0]))
    fingers, wide = int(rng.integers(2, 5)), rng.uniform(0.07, 0.1)
    tip = np.array(goal) + rng.normal(0, 0.06, 2)
    palm = tip - toward * 0.75
    blob = smooth_curve(mirrored([(0.3, 0.2), (0.38, -0.3), (0.2, -1.6)]))
    blob = palm + blob[:, :1] * across + blob[:, 1:] * toward
    shape = place(face, blob, 0.2, flat=True)
    fill(face, shape, colour=tone * 0.93, label=BACKGROUND)
    for i in range(fingers):
        side = (i - (fingers - 1) / 2) * wide * 2.05
        end = tip + across * side * 1.1 + toward * rng.uniform(0.02, 0.2)
        line = bezier(palm + across * side, palm + across * side * 1.2 + toward * 0.4, end, 16)
        body = wide * np.sqrt(np.clip(np.concatenate((np.ones(13), (0.85, 0.5, 0.05))), 0, 1))
        finger = place(face, ribbon(line, body), 0.2, flat=True)
        tint(face, finger, colour=BLACK, alpha=0.4, soft=0.02)
        fill(face, finger, colour=tone, label=BACKGROUND)
        inner = place(face, ribbon(line, body * 0.55), 0.2, flat=True)
        tint(face, finger, inner, colour=tone * 0.55, alpha=0.5, soft=0.025, within=finger)
        x, y = end - toward * 0.055
        nail = place(face, ellipse(x, y, wide * 0.5, wide * 0.6, count=14), 0.2, flat=True)
        tint(face, nail, colour=mix(tone, np.array((250, 200, 200), np.float32), 0.5), alpha=0.8)


def photograph(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grain, white balance, gamma, contrast, grey photos, blur, JPEG. The size-dependent noise is drawn last."""
    size = len(photo)
    balance = rng.normal(1, 0.04, 3)
    gamma, low, high = math.exp(rng.normal(0, 0.22)), rng.uniform(0, 0.1), rng.uniform(0.88, 1.05)
    texture = noise_map(rng, 96, size) * rng.uniform(0, 0.03)
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
