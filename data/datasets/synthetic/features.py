"""The parts of a drawn head, from the back to the front."""

import math
from typing import NamedTuple

import numpy as np

from data.datasets.synthetic.canvas import (
    BLACK,
    IRISES,
    RED,
    WHITE,
    Canvas,
    bezier,
    ellipse,
    mirrored,
    mix,
    ribbon,
    smooth,
    tone_at,
    xy,
)

BACK, BODY, OUTLINE = -0.15, -0.05, 0.1  # depths of the hair behind, of neck and ears, and of the head's outline
SKULL = np.array([(0.88, -0.62), (0.74, -1.02), (0.42, -1.22), (0, -1.24)])  # right half of the hair's outline
ALONG = np.linspace(-1, 1, 25)  # from corner to corner of eyes and mouth
SIDES = (-1, 1)  # left and right in the image


class Plan(NamedTuple):
    """Where the parts of a face are (face units), and what it has. gape: how far the mouth is open, 0 if it is shut."""

    eye_x: float
    eye_y: float
    eye_half: float
    mouth_y: float
    gape: float
    hair: bool
    long_hair: bool
    beard: bool
    glasses: bool
    occluder: bool


def draw_head(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    draw_body(face, rng, plan)
    draw_skin(face, rng, plan)
    if plan.beard:
        draw_beard(face, rng, plan)
    for draw_part in (draw_eyes, draw_nose, draw_mouth, draw_brows):
        draw_part(face, rng, plan)
    if plan.hair or plan.long_hair:
        draw_hair(face, rng)


def draw_body(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    length, spread, collar = rng.uniform((0.3, 0.85, 0.25), (1.8, 1.15, 0.5))
    cloth, roots = face.any_tone(rng), rng.uniform(-0.8, 0.8, 45)
    ends = roots + rng.normal(0, 0.08, 45)
    if plan.long_hair:
        shape = smooth(mirrored([(0.2, length), (0.95 * spread, length), (1.05 * spread, 0.2), *SKULL]))
        back = face.paint(shape, colour=face.hair * 0.75, label="hair", plane=BACK)
        falling = bezier(xy(roots, -1.1), xy(1.3 * roots, -0.3), xy(ends, length))
        face.strands(falling, face.hair * 0.75, back)
    neck = mirrored([(0.4, 0.3), (0.42, 0.95), (0.5, 1.25), (0.9, 1.6), (0.9, 2.5)])
    face.paint(neck, colour=face.skin * 0.86, label="background", plane=BODY)
    face.paint(ellipse((0, 0.95), 0.45, 0.25), colour=face.skin * 0.45, alpha=0.6, soft=0.18, plane=BODY)
    clothes = smooth(mirrored([(0, 1.3 + collar), (collar, 1.3), (1.0, 1.45), (1.6, 1.8), (1.8, 4.5)]))
    face.paint(clothes, colour=cloth, label="background", plane=BODY)
    for sign in SIDES:
        face.paint(ellipse((0.75 * sign, 0), 0.11, 0.21), colour=face.skin * 0.92, label="background", plane=BODY)
        face.paint(ellipse((0.75 * sign, 0), 0.05, 0.13), colour=face.skin * 0.5, alpha=0.5, soft=0.05, plane=BODY)


def draw_skin(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    jaw, chin = rng.uniform(0.86, 1.1), 1.06 + rng.uniform(-0.06, 0.08) + 0.45 * plan.gape
    right = [(0, -0.95), (0.5, -0.93), (0.74, -0.5), (0.75, 0.2), (0.7 * jaw, 0.62 * chin), (0.42 * jaw, 0.95 * chin)]
    outline = smooth(mirrored([*right, (0.12, 1.03 * chin)]))
    head = face.paint(outline, colour=face.skin, label="skin", plane=OUTLINE)
    dark, bright = face.skin * 0.5, mix(face.skin, WHITE, 0.5)
    rim, blush, shine, crease, depth = rng.uniform((0.2, 0, 0.05, 0.1, 0.1), (0.6, 0.4, 0.4, 0.7, 0.45))
    face.paint(outline, outline * (0.86, 0.9), colour=dark, alpha=rim, soft=0.18, within=head, plane=OUTLINE)
    face.paint(ellipse((rng.uniform(-0.1, 0.1), -0.55), 0.3, 0.12), colour=bright, alpha=shine, soft=0.25)
    face.paint(ellipse((0, 0.9), 0.12, 0.06), colour=bright, alpha=shine, soft=0.1)
    lid = mix(dark, rng.uniform(0, 255, 3), max(0, rng.uniform(-1, 0.6)))  # some wear make-up
    for sign in SIDES:
        socket = ellipse((sign * plan.eye_x, plan.eye_y - 0.06), 1.05 * plan.eye_half, 0.075)
        face.paint(socket, colour=lid, alpha=depth, soft=0.09)
        face.paint(ellipse((0.4 * sign, 0.27), 0.15, 0.11), colour=mix(face.skin, RED, 0.4), alpha=blush, soft=0.18)
        fold = bezier((0.17 * sign, 0.3), (0.28 * sign, 0.38), (0.34 * sign, 0.56))
        face.paint(ribbon(fold, 0.014), colour=dark, alpha=crease, soft=0.035)


def draw_beard(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    top, chin, lip = rng.uniform(0.2, 0.5), 1.12 + 0.45 * plan.gape, plan.mouth_y - 0.15
    shape = mirrored([(0, lip), (0.25, lip), (0.5, top + 0.1), (0.74, top), (0.7, 0.7), (0.4, chin), (0.1, chin)])
    face.paint(smooth(shape), colour=face.hair * 0.85, alpha=rng.uniform(0.3, 0.9), soft=0.09)


def draw_eyes(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    upper, lower, tilt, lash, crease = rng.uniform((0.035, 0.02, -0.03, 0.004, 0), (0.1, 0.05, 0.04, 0.014, 0.7))
    shut = (rng.random(2) < 0.03) | (rng.random() < 0.06)
    radius, pupil = plan.eye_half * rng.uniform(0.42, 0.52), rng.uniform(0.3, 0.6)
    gaze = np.clip(rng.normal(0, 0.25, 2), -0.5, 0.5) * (plan.eye_half, 0.4 * upper)
    glint = rng.uniform(-0.4, 0.4, 2) * radius
    iris = tone_at(IRISES, rng.random()) * rng.uniform(0.7, 1.2)
    white = mix(0.93 * WHITE, face.skin, rng.uniform(0.03, 0.4)) * rng.uniform(0.75, 1)
    dark, arch = face.skin * rng.uniform(0.05, 0.25), 1 - np.abs(ALONG) ** rng.uniform(1.8, 2.6)
    for label, sign, closed in zip(("eye1", "eye2"), SIDES, shut, strict=True):
        x, y = sign * plan.eye_x + ALONG * plan.eye_half, plan.eye_y - tilt * ALONG * sign
        top, bottom = xy(x, y - upper * arch), xy(x, y + lower * arch)
        if closed:
            face.paint(ribbon(bottom, 0.022), colour=face.skin * 0.45, alpha=0.5, soft=0.05)
            face.paint(ribbon(bottom, 0.6 * lash + 0.004), colour=dark)
            continue
        opening = face.paint(np.concatenate((top, bottom[::-1])), colour=white, label=label)
        middle = gaze + (sign * plan.eye_x, plan.eye_y - 0.5 * (upper - lower))
        for share, colour in ((1, 0.55 * iris), (0.82, iris), (pupil, BLACK)):
            face.paint(ellipse(middle, share * radius, share * radius), colour=colour, within=opening)
        spark = ellipse(middle + glint, 0.2 * radius, 0.2 * radius)
        face.paint(spark, colour=WHITE, alpha=0.85, within=opening)
        face.paint(ribbon(top, 0.016), colour=BLACK, alpha=0.45, soft=0.03, within=opening)
        face.paint(ribbon(top - (0, lash), lash), colour=dark, alpha=0.95)
        face.paint(ribbon(bottom + (0, 0.006), 0.005), colour=face.skin * 0.4, alpha=0.5, soft=0.01)
        face.paint(ribbon(top - (0, 0.035), 0.006), colour=face.skin * 0.4, alpha=crease, soft=0.02)


def draw_brows(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    gap, rise, thick, mood, density = rng.uniform((0.13, 0.01, 0.014, -0.05, 0.5), (0.24, 0.08, 0.05, 0.05, 1))
    tone = mix(face.hair, face.skin, rng.uniform(0, 0.5)) * rng.uniform(0.5, 1.1)
    inner, outer = rng.uniform((-0.22, 0.15), (-0.14, 0.24))
    along, t = np.linspace(inner, outer, 16), np.linspace(0, 1, 16)
    width = thick * (0.35 + 0.65 * np.sin(math.pi * (0.2 + 0.77 * t)))
    for label, sign in zip(("brow1", "brow2"), SIDES, strict=True):
        y = plan.eye_y - gap + rng.normal(0, 0.014) + mood * (0.5 - t) - rise * np.sin(math.pi * t**1.4)
        line = xy(sign * (plan.eye_x + along), y)
        brow = face.paint(ribbon(line, width), colour=tone, alpha=density, soft=0.01, label=label)
        hairs = np.stack((line[:-2] + xy(0, width[:-2]), line[2:] - xy(0, width[2:])), 1)
        face.strands(hairs, tone, brow)


def draw_nose(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    top, end = plan.eye_y + rng.uniform(-0.06, 0.06), min(plan.mouth_y - 0.13, rng.uniform(0.34, 0.43))
    bridge, wing, depth, gleam = rng.uniform((0.045, 0.14, 0.12, 0.1), (0.075, 0.21, 0.5, 0.55))
    lit, tall = rng.choice(SIDES), end - top
    right = [(0.5 * bridge, top - 0.02), (bridge, top), (bridge, top + 0.5 * tall), (wing, top + 0.75 * tall)]
    face.paint(smooth(mirrored([*right, (wing, end), (0.3 * wing, end + 0.02)])), label="nose")
    dark, bright = face.skin * 0.42, mix(face.skin, WHITE, 0.55)
    for sign in SIDES:
        flank = xy((1.1 * bridge, 0.8 * bridge, 0.85 * wing), (top - 0.05, top + 0.4 * tall, top + 0.75 * tall))
        curl = xy((0.8 * wing, 1.25 * wing, 0.7 * wing), (top + 0.68 * tall, top + 0.86 * tall, end))
        slope = depth * (0.5 if sign == lit else 1.1)
        face.paint(ribbon(bezier(*(flank * (sign, 1))), 0.026), colour=dark, alpha=slope, soft=0.06)
        face.paint(ribbon(bezier(*(curl * (sign, 1))), 0.009), colour=dark, alpha=0.25 + depth, soft=0.022)
        nostril = ellipse((0.45 * wing * sign, end - 0.022), 0.26 * wing, 0.02 - 0.03 * face.pose.pitch)
        face.paint(nostril, colour=0.4 * dark, alpha=0.5 + depth, soft=0.015)
    face.paint(ellipse((0, end + 0.03), 0.8 * wing, 0.03), colour=dark, alpha=depth, soft=0.055)
    face.paint(ellipse((0.012 * lit, top + 0.42 * tall), 0.018, 0.3 * tall), colour=bright, alpha=gleam, soft=0.045)
    face.paint(ellipse((0.015 * lit, top + 0.8 * tall), 0.04, 0.035), colour=bright, alpha=gleam, soft=0.055)


def draw_mouth(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    half = rng.uniform(0.2, 0.31) * (1 - 0.35 * plan.gape)
    smile, over, under, cupid = rng.uniform((-0.03, 0.025, 0.04, 0), (0.09, 0.085, 0.11, 0.4))
    arch, hole = (1 - ALONG**2) ** 0.7, plan.gape * np.clip(1 - (ALONG / 0.9) ** 2, 0, 1) ** 0.7
    middle = plan.mouth_y + smile * (0.5 - np.abs(ALONG) ** 1.7) + rng.normal(0, 0.012) * ALONG
    roof, floor = middle - 0.25 * hole, middle + 0.75 * hole
    top = roof - over * arch * (1 - cupid * np.exp(-((ALONG / 0.16) ** 2)))
    bottom = floor + under * arch
    paint = rng.uniform((90, 0, 20), (230, 60, 110)) if rng.random() < 0.25 else RED
    tone = mix(face.skin, paint, rng.uniform(0.06, 0.6)) * rng.uniform(0.75, 1)
    pale, shade, gloss, seam = rng.uniform((0.75, 0.1, 0, 0.5), (0.97, 0.4, 0.5, 0.95))

    def between(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.concatenate((xy(half * ALONG, one), xy(half * ALONG, two)[::-1]))

    face.paint(between(bottom, bottom + 0.025), colour=face.skin * 0.3, alpha=shade, soft=0.05)
    face.paint(between(top, roof), colour=tone * pale, label="upper_lip")
    lip = face.paint(between(floor, bottom), colour=tone, label="lower_lip")
    shine = ellipse((0, 0.5 * (floor + bottom)[12]), 0.5 * half, 0.16 * under)
    face.paint(shine, colour=mix(tone, WHITE, 0.6), alpha=gloss, soft=0.04, within=lip)
    face.paint(between(bottom - 0.3 * under, bottom), colour=tone * 0.55, alpha=0.4, soft=0.03, within=lip)
    cavity, tongue, ivory = RED * rng.uniform(0.1, 0.45), mix(RED, WHITE, 0.3), mix(WHITE, face.skin, 0.2)
    low, teeth, light = rng.uniform((-0.3, -0.03, 0.75), (0.5, 0.09, 1))
    if plan.gape == 0:
        face.paint(ribbon(xy(half * ALONG, middle), 0.009), colour=tone * 0.3, alpha=seam, soft=0.01)
        return
    inside = face.paint(between(roof, floor), colour=cavity, label="inner_mouth")
    tip = ellipse((0, floor[12]), 0.6 * half, max(0, low) * plan.gape)
    face.paint(tip, colour=tongue * light, soft=0.02, within=inside)
    row = between(roof, np.clip(roof + teeth, roof, floor))
    row = face.paint(row, colour=ivory * light, within=inside)
    gaps = [ribbon(xy(x, (roof.min(), floor.max())), 0.003) for x in np.linspace(-0.7, 0.7, 9) * half]
    face.paint(*gaps, colour=ivory * 0.6, alpha=0.5, within=row)


def draw_hair(face: Canvas, rng: np.random.Generator) -> None:
    volume, temple, parting = rng.uniform((0, -0.25, -0.5), (0.2, 0.4, 0.5))
    line = rng.uniform(-0.42, -0.16) if rng.random() < 0.16 else rng.uniform(-0.8, -0.55)  # over the brows, or above
    outer = [(0.88, temple), *(SKULL - xy(0, volume * np.array((0.3, 0.7, 1, 1))))]
    x = np.linspace(-0.66, 0.66, 9)
    y = line + 0.35 * x**2 + rng.uniform(-0.06, 0.06, 9) - 0.15 * np.exp(-(((x - parting) / 0.2) ** 2))
    shape = smooth([*mirrored(outer), (-0.7, temple), *xy(x, y), (0.7, temple)])
    cap = face.paint(shape, colour=face.hair, label="hair")
    roots = rng.uniform(-0.95, 0.95, 80)
    ends = roots + rng.uniform(-0.1, 0.1, 80)
    combed = bezier(xy(0.6 * parting + 0.15 * roots, -1.15 - volume), xy(0.8 * roots, -0.95), xy(ends, -0.1))
    face.strands(combed, face.hair, cap)
    shine = ribbon(bezier((-0.5, -0.85), (0, -1.1), (0.5, -0.85)), 0.05)
    face.paint(shine, colour=mix(face.hair, WHITE, 0.6), alpha=0.3, soft=0.12, within=cap)


def draw_glasses(face: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    half, tall, thick, glare = rng.uniform((0.17, 0.12, 0.01, 0), (0.25, 0.2, 0.03, 0.3))
    half, y, dark = min(half, plan.eye_x - 0.06), plan.eye_y + 0.02, rng.random() < 0.25
    frame, tint = face.any_tone(rng) * rng.uniform(0.2, 1), rng.uniform(0, 70, 3)
    for sign in SIDES:
        x = sign * plan.eye_x
        lens = ellipse((x, y), half, tall)
        glass = face.paint(lens, colour=tint, alpha=1 if dark else 0.08, label="background" if dark else None)
        streak = ribbon(xy((x - half, x + 0.3 * half), (y + tall, y - tall)), 0.2 * half)
        face.paint(streak, colour=WHITE, alpha=glare, soft=0.025, within=glass)
        face.paint(ellipse((x, y), half + thick, tall + thick), lens, colour=frame, label="background")
        arm = xy((x + sign * half, 0.78 * sign), (y - 0.04, y - 0.06))
        face.paint(ribbon(arm, 0.7 * thick), colour=frame, label="background")
    hole = plan.eye_x - half
    bridge = ribbon(bezier((-hole, y - 0.02), (0, y - 0.07), (hole, y - 0.02)), 0.6 * thick)
    face.paint(bridge, colour=frame, label="background")
