"""Hair of a drawn face: behind and in front of it, brows, beard and moustache."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike

from data.datasets.synthetic.canvas import (
    BACKGROUND,
    BROWS,
    HAIR,
    SHIFT,
    SKIN,
    WHITE,
    Canvas,
    any_tone,
    bezier,
    ellipse,
    fill,
    join,
    mirrored,
    mix,
    pick,
    place,
    ribbon,
    smooth_curve,
    tint,
    to_pixels,
    to_rgb,
)


def draw_strands(
    face: Canvas, rng: np.random.Generator, lines: np.ndarray, tone: np.ndarray, bound: np.ndarray
) -> None:
    """Fine lines (N, K, 2) of lighter and darker hair, inside the polygon ``bound`` (both in photo sides)."""
    contrast = rng.uniform(0.5, 1.1)
    side = len(face.photo)
    low = np.clip(np.floor(bound.min(0) * side), 0, side - 1).astype(int)
    high = np.clip(np.ceil(bound.max(0) * side) + 1, 1, side).astype(int)
    if (high <= low).any():
        return
    view = face.photo[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(view.shape[:2], np.uint8)
    offset = (low * (1 << SHIFT)).astype(np.int32)
    cv2.fillPoly(mask, [to_pixels(bound, side) - offset], (255,), cv2.LINE_8, SHIFT)
    copy = view.copy()
    curves = to_pixels(lines, side) - offset
    thick = max(1, round(side * face.scale * 0.013))
    for i, gain in enumerate((-0.4, -0.18, 0.25)):
        shade = tone * (1 + contrast * gain) + max(0, 60 * contrast * gain)
        cv2.polylines(copy, list(curves[i::3]), False, to_rgb(shade), thick, cv2.LINE_AA, SHIFT)
    cv2.copyTo(copy, mask, view)


def draw_body_and_back_hair(face: Canvas, rng: np.random.Generator, style: str, tone: np.ndarray, hatted: bool) -> None:
    volume = rng.uniform(0.0, 0.16) * (not hatted)
    length = {"bald": 0.0, "short": 0.05, "medium": rng.uniform(0.3, 0.9), "long": rng.uniform(1.0, 1.8)}.get(
        style, 1.3
    )
    wave = rng.uniform(-0.04, 0.04, 15) * (style in ("medium", "long"))
    spread = rng.uniform(0.85, 1.1)
    cloth, collar = any_tone(face, rng), rng.uniform(0.25, 0.5)
    if style in ("medium", "long", "scarf"):
        right = [(0.5, -1.12), (0.84, -0.75), (0.93, -0.25), (0.94 * spread, 0.2), (0.9 * spread, length * 0.7)]
        right = [(x + volume, y - volume) for x, y in [*right, (0.75 * spread, length)]]
        points = mirrored([(0, -1.2 - volume), *right, (0.2, length)])
        points[:, 0] += wave
        back = place(face, smooth_curve(points), -0.25, flat=True)
        label = BACKGROUND if style == "scarf" else HAIR
        fill(face, back, colour=tone * 0.75, label=label, head=True)
        if style != "scarf":
            roots = rng.uniform(-0.95, 0.95, 54)
            ends = roots * spread + rng.normal(0, 0.08, 54)
            curves = bezier(join(roots * 0.7, -1.1), join(roots * 1.4, -0.3), join(ends, length + 0.1), 8)
            lines = place(face, curves, -0.25, flat=True)
            draw_strands(face, rng, lines, tone * 0.75, back)
    neck = mirrored([(0.4, 0.3), (0.42, 0.95), (0.5, 1.25), (0.9, 1.6), (0.9, 2.5)])
    fill(face, place(face, neck, -0.15, flat=True), colour=face.skin * 0.86, label=BACKGROUND, head=True)
    tint(face, place(face, ellipse(0, 0.95, 0.45, 0.25), -0.15, True), colour=face.skin * 0.45, alpha=0.6, soft=0.07)
    body = mirrored([(0, 1.3 + collar), (collar, 1.3), (1.0, 1.5), (1.55, 1.85), (1.8, 4.5)])
    fill(face, place(face, smooth_curve(body), -0.15, flat=True), colour=cloth, label=BACKGROUND)
    for sign in (-1, 1):
        x, y = 0.75 * sign, -0.02
        fill(
            face,
            place(face, ellipse(x, y, 0.11, 0.21), -0.1, True),
            colour=face.skin * 0.92,
            label=BACKGROUND,
            head=True,
        )
        ear = place(face, ellipse(x + 0.02 * sign, y, 0.055, 0.13), -0.1, True)
        tint(face, ear, colour=face.skin * 0.5, alpha=0.5, soft=0.02)


def draw_beard(face: Canvas, rng: np.random.Generator, mouth_y: float, mouth_open: float) -> None:
    top, full, alpha = rng.uniform(0.2, 0.5), rng.random() < 0.6, rng.uniform(0.3, 0.9)
    low = 1.0 + 0.45 * mouth_open + rng.uniform(0, 0.2)
    if full:
        points = [(0, low + 0.03), (0.2, low), (0.44, 0.92), (0.64, 0.65), (0.7, top - 0.15), (0.6, top + 0.15)]
        points += [(0.36, mouth_y - 0.02), (0.2, mouth_y - 0.17), (0, mouth_y - 0.14)]
    else:
        points = [(0, low), (0.2, low - 0.06), (0.27, mouth_y + 0.1), (0, mouth_y + 0.08)]
    shape = place(face, smooth_curve(mirrored(points)), flat=full)
    tone = face.hair * 0.85
    tint(face, shape, colour=tone, alpha=alpha, soft=0.035)
    starts = rng.uniform((-0.62, 0.4), (0.62, 1.05), (70, 2))
    if alpha > 0.5:
        lines = place(face, bezier(starts, starts + (0, 0.05), starts * (0.9, 1) + (0, 0.12), 4), flat=full)
        draw_strands(face, rng, lines, tone, shape)


def draw_moustache(face: Canvas, rng: np.random.Generator, nose_y: float, lip_top: float) -> None:
    low = lip_top + rng.uniform(-0.02, 0.035)
    wide, alpha = rng.uniform(0.16, 0.3), rng.uniform(0.45, 0.95)
    high = nose_y + 0.03
    points = [(0, high), (wide * 0.6, (high + low) / 2 - 0.02), (wide, low + 0.05), (wide * 0.5, low + 0.02), (0, low)]
    shape = place(face, smooth_curve(mirrored(points)), 0.04)
    tint(face, shape, colour=face.hair * 0.8, alpha=alpha, soft=0.01)
    if alpha > 0.6:
        fill(face, shape, label=SKIN)
        starts = rng.uniform(-wide, wide, 40)
        lines = bezier(join(starts, high), join(starts, low - 0.02), join(starts * 1.3, low + 0.04), 4)
        draw_strands(face, rng, place(face, lines, 0.04), face.hair * 0.8, shape)


def draw_brows(face: Canvas, rng: np.random.Generator, eye_x: float, eye_y: float, tone: np.ndarray) -> None:
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
        shape = place(face, ribbon(line, body))
        fill(face, shape, label=BROWS[part])
        tint(face, shape, colour=tone, alpha=density, soft=soft)
        roots = rng.integers(0, 14, 26)
        hairs = np.stack(
            (line[roots] + join(0, body[roots] * 0.9), line[roots + 2] - join(0, body[roots + 2] * 0.6)), 1
        )
        draw_strands(face, rng, place(face, hairs), tone, shape)


def draw_front_hair(face: Canvas, rng: np.random.Generator, style: str, tone: np.ndarray, hatted: bool) -> None:
    kind = "low" if rng.random() < 0.16 else "high"
    line = rng.uniform(-0.42, -0.16) if kind == "low" else rng.uniform(-0.78, -0.55)
    volume, part = rng.uniform(0.0, 0.2) * (not hatted), rng.uniform(-0.5, 0.5)
    temple = rng.uniform(-0.25, 0.1) if style == "short" else rng.uniform(0.1, 0.5)
    jitter = rng.uniform(-0.05, 0.05, 9)
    hat_tone, brim = any_tone(face, rng), rng.uniform(-0.62, -0.4)
    roots, curl = rng.uniform(-0.95, 0.95, 90), rng.uniform(-0.25, 0.25)
    locks = int(rng.integers(2, 7)) if rng.random() < 0.3 else 0
    lock_roots, lock_ends = rng.uniform(-0.6, 0.6, locks), rng.uniform(-0.45, 0.1, locks)
    lock_leans, lock_widths = rng.uniform(-0.2, 0.2, locks), rng.uniform(0.02, 0.07, locks)
    swept, sweep_side, sweep_low = rng.random() < 0.07, float(pick(rng, (-1, 1), (1, 1))), rng.uniform(0.0, 0.6)
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
        rim = smooth_curve(np.array(outer + front), 5)
        cut = 5 * len(outer)
        cap = np.concatenate((place(face, rim[:cut], 0, True), place(face, rim[cut:])))
        fill(face, cap, colour=tone, label=label, head=True)
        if style != "scarf":
            crown = join(part * 0.6 + roots * 0.15, -1.15 - volume)
            curves = bezier(crown, join(roots * 0.8 + curl * 0.3, -0.95), join(roots, -0.2 + jitter[8]), 8)
            lines = place(face, curves)
            draw_strands(face, rng, lines, tone, cap)
            shine = ribbon(bezier((-0.5, -0.85), (0, -1.1), (0.5, -0.85)), 0.05)
            tint(face, place(face, shine), colour=mix(tone, WHITE, 0.6), alpha=0.3, soft=0.05, within=cap)
            for root, end, lean, wide in zip(lock_roots, lock_ends, lock_leans, lock_widths, strict=True):
                draw_lock(face, rng, tone, ((root, line - 0.1), (root + lean, line), (root + lean, end)), wide)
            if swept:
                way = ((part * 0.5, line - 0.2), (0.3 * sweep_side, line + 0.1), (0.62 * sweep_side, sweep_low))
                draw_lock(face, rng, tone, way, 0.17)
    if hatted:
        right = [(0.4, brim - 0.06), (0.86, brim + 0.1), (0.95, -0.8), (0.6, -1.3), (0, -1.45)]
        hat = mirrored(right[::-1])
        fill(face, place(face, smooth_curve(hat), 0.05, flat=True), colour=hat_tone, label=BACKGROUND, head=True)
        band = ribbon(bezier((-0.87, brim + 0.1), (0, brim - 0.12), (0.87, brim + 0.1)), 0.07)
        fill(face, place(face, band, 0.05, flat=True), colour=hat_tone * 0.7, label=BACKGROUND, head=True)


def draw_lock(face: Canvas, rng: np.random.Generator, tone: np.ndarray, way: Sequence[ArrayLike], wide: float) -> None:
    line = bezier(way[0], way[1], way[2])
    shape = place(face, ribbon(line, wide * np.sin(np.linspace(0.5, math.pi, len(line)))), 0.05)
    tint(face, shape, colour=face.skin * 0.3, alpha=0.35, soft=0.025)
    fill(face, shape, colour=tone * 0.95, label=HAIR, head=True)
    lines = place(face, line + join(np.linspace(-0.8, 0.8, 7) * wide, 0)[:, None], 0.05)
    draw_strands(face, rng, lines, tone, shape)
