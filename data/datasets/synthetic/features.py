"""The skin of a drawn face, and its eyes, nose and mouth."""

import numpy as np

from data.datasets.synthetic.canvas import (
    ALONG,
    BLACK,
    EYES,
    INNER_MOUTH,
    IRISES,
    LOWER_LIP,
    NOSE,
    SKIN,
    UPPER_LIP,
    WHITE,
    Canvas,
    bezier,
    ellipse,
    fill,
    mirrored,
    mix,
    pick,
    place,
    ribbon,
    smooth_curve,
    tint,
    tone_at,
)


def face_outline(jaw: float, chin: float) -> np.ndarray:
    right = [(0, -0.92), (0.4, -0.84), (0.65, -0.5), (0.72, -0.05), (0.7, 0.3)]
    right += [(0.62 * jaw, 0.62), (0.42 * jaw, 0.87), (0.19 * jaw, 1.0), (0, 1.03)]
    return smooth_curve(mirrored([(x, y + chin * max(0.0, y)) for x, y in right]))


def draw_skin(face: Canvas, rng: np.random.Generator, mouth_open: float) -> None:
    outline = face_outline(rng.uniform(0.86, 1.1), rng.uniform(-0.06, 0.08) + mouth_open * 0.45)
    shape = place(face, outline, flat=True)
    fill(face, shape, colour=face.skin, label=SKIN, head=True)
    shadow, bright = face.skin * 0.55, mix(face.skin, WHITE, 0.5)
    rim = rng.uniform(0.25, 0.6)
    inner = place(face, outline * (0.86, 0.9), flat=True)
    tint(face, shape, inner, colour=shadow, alpha=rim, soft=0.07, within=shape)
    flush = mix(face.skin, np.array((210, 60, 60), np.float32), 0.35)
    blush, shine = rng.uniform(0, 0.5), rng.uniform(0.05, 0.4)
    for sign in (-1, 1):
        tint(
            face,
            place(face, ellipse(0.4 * sign, 0.27, 0.15, 0.11)),
            colour=flush,
            alpha=blush,
            soft=0.07,
            within=shape,
        )
        tint(face, place(face, ellipse(0.36 * sign, 0.16, 0.12, 0.06)), colour=bright, alpha=shine * 0.6, soft=0.05)
    tint(face, place(face, ellipse(rng.uniform(-0.1, 0.1), -0.55, 0.3, 0.12)), colour=bright, alpha=shine, soft=0.1)
    tint(face, place(face, ellipse(0, 0.87, 0.12, 0.07)), colour=bright, alpha=shine * 0.7, soft=0.04)
    tint(face, place(face, ellipse(0, 0.76, 0.16, 0.025)), colour=shadow, alpha=rng.uniform(0.1, 0.5), soft=0.025)
    age = max(0.0, rng.uniform(-0.6, 0.7))
    for sign in (-1, 1):
        fold = bezier((0.16 * sign, 0.3), (0.28 * sign, 0.38), (0.34 * sign, 0.56))
        tint(face, place(face, ribbon(fold, 0.014)), colour=shadow, alpha=0.15 + age, soft=0.014)
    for y in (-0.62, -0.54, -0.46):
        crease = bezier((-0.32, y), (rng.uniform(-0.1, 0.1), y - 0.05), (0.32, y))
        if age > 0.3:
            tint(face, place(face, ribbon(crease, 0.007)), colour=shadow, alpha=age * 0.7, soft=0.008)
    spots = rng.uniform((-0.55, -0.65), (0.55, 0.9), (int(rng.integers(0, 14)), 2))
    sizes = rng.uniform(0.006, 0.018, len(spots))
    if rng.random() < 0.4 and len(spots):
        dots = [place(face, ellipse(x, y, r, r, count=8)) for (x, y), r in zip(spots, sizes, strict=True)]
        tint(face, *dots, colour=shadow, alpha=0.6)


def draw_sockets(face: Canvas, rng: np.random.Generator, eye_x: float, eye_y: float, eye_w: float) -> None:
    depth, makeup = rng.uniform(0.1, 0.45), rng.random() < 0.2
    shade = rng.uniform(20, 200, 3).astype(np.float32) if makeup else face.skin * 0.5
    bag = rng.uniform(0, 0.4)
    for sign in (-1, 1):
        x = eye_x * sign
        tint(face, place(face, ellipse(x, eye_y - 0.06, eye_w * 1.05, 0.075)), colour=shade, alpha=depth, soft=0.035)
        bow = bezier((x - eye_w * 0.9, eye_y + 0.06), (x, eye_y + 0.15), (x + eye_w * 0.9, eye_y + 0.06))
        tint(face, place(face, ribbon(bow, 0.013)), colour=face.skin * 0.5, alpha=bag, soft=0.016)


def draw_eyes(face: Canvas, rng: np.random.Generator, eye_x: float, eye_y: float, eye_w: float) -> None:
    upper, lower, tilt = rng.uniform(0.04, 0.1), rng.uniform(0.025, 0.05), rng.uniform(-0.03, 0.04)
    state = rng.random()
    shut = (state < 0.09, state < 0.06 or 0.09 <= state < 0.11)  # both, or one
    if 0.11 <= state < 0.2:
        upper, lower = upper * 0.35, lower * 0.5
    look = np.clip(rng.normal(0, 0.25, 2), -0.5, 0.5) * (1, 0.4)
    iris = tone_at(IRISES, rng.random()) * rng.uniform(0.7, 1.2)
    radius, pupil = eye_w * rng.uniform(0.42, 0.52), rng.uniform(0.3, 0.6)
    white = mix(np.array((238, 234, 230), np.float32), face.skin, rng.uniform(0.03, 0.4)) * rng.uniform(0.75, 1.0)
    lash, crease = rng.uniform(0.006, 0.024), rng.uniform(0, 0.7)
    glint = rng.uniform(-0.4, 0.4, 2)
    dark = mix(face.skin * 0.25, BLACK, rng.uniform(0, 0.8))
    for part, sign in enumerate((-1, 1)):
        x = eye_x * sign
        peak = 1 - np.abs(ALONG) ** rng.uniform(1.8, 2.6)
        slant = -tilt * ALONG * sign
        wobble = rng.uniform(0.92, 1.08)
        edge_x = x + ALONG * eye_w
        if shut[part]:
            line = np.stack((edge_x, eye_y + slant + lower * 0.9 * peak), 1)
            tint(face, place(face, ribbon(line, 0.022)), colour=face.skin * 0.45, alpha=0.5, soft=0.02)
            fill(face, place(face, ribbon(line, lash * 0.6 + 0.004)), colour=dark)
            continue
        top = np.stack((edge_x, eye_y + slant - upper * wobble * peak), 1)
        bottom = np.stack((edge_x, eye_y + slant + lower * wobble * peak), 1)
        opening = place(face, np.concatenate((top, bottom[::-1])))
        fill(face, opening, colour=white, label=EYES[part])
        mid = (x + look[0] * eye_w, eye_y - (upper - lower) * 0.5 + look[1] * upper)
        disc = place(face, ellipse(*mid, radius, radius, count=20))
        tint(face, disc, colour=iris * 0.55, alpha=1, within=opening)
        tint(
            face,
            place(face, ellipse(*mid, radius * 0.82, radius * 0.82, count=18)),
            colour=iris,
            alpha=1,
            within=opening,
        )
        small = place(face, ellipse(*mid, radius * pupil, radius * pupil, count=14))
        tint(face, small, colour=BLACK + 8, alpha=1, within=opening)
        spark = ellipse(
            mid[0] + glint[0] * radius, mid[1] + (glint[1] - 0.2) * radius, radius * 0.2, radius * 0.2, count=10
        )
        tint(face, place(face, spark), colour=WHITE, alpha=0.85, within=opening)
        lid = place(face, ribbon(top, 0.016))
        tint(face, lid, colour=BLACK, alpha=0.45, soft=0.012, within=opening)
        taper = 0.35 + 0.65 * np.clip((ALONG * sign + 1) / 2, 0, 1)
        tint(face, place(face, ribbon(top - (0, lash * 0.5), lash * 0.5 * taper)), colour=dark, alpha=0.95)
        tint(face, place(face, ribbon(bottom + (0, 0.006), 0.005)), colour=face.skin * 0.4, alpha=0.5, soft=0.004)
        fold = np.stack((edge_x, top[:, 1] - 0.03 - 0.012 * peak), 1)
        tint(face, place(face, ribbon(fold, 0.006)), colour=face.skin * 0.4, alpha=crease, soft=0.007)


def draw_nose(face: Canvas, rng: np.random.Generator, eye_y: float, end: float) -> float:
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
        return place(face, shape, high * rise * ridge)

    whole = put(smooth_curve(mirrored(right)))
    fill(face, whole, label=NOSE)
    shadow, bright = face.skin * 0.42, mix(face.skin, WHITE, 0.55)
    strength, lit = rng.uniform(0.12, 0.5), float(pick(rng, (-1, 1), (1, 1)))
    for sign in (-1, 1):
        flank = bezier(
            (bridge * 1.2 * sign, top - 0.05),
            (bridge * 0.8 * sign, top + 0.4 * tall),
            (wing * 0.8 * sign, top + 0.75 * tall),
        )
        tint(face, put(ribbon(flank, 0.026)), colour=shadow, alpha=strength * (0.5 if sign == lit else 1.1), soft=0.025)
        curl = bezier(
            (wing * 0.85 * sign, top + 0.7 * tall),
            (wing * 1.25 * sign, top + 0.86 * tall),
            (wing * 0.75 * sign, end),
            8,
        )
        tint(face, put(ribbon(curl, 0.009)), colour=shadow, alpha=0.25 + strength, soft=0.009)
        hole = ellipse(wing * 0.48 * sign, end - 0.022, wing * 0.26, 0.02 - 0.03 * min(face.pitch, 0.3), count=14)
        tint(face, put(hole), colour=shadow * 0.4, alpha=rng.uniform(0.5, 0.95), soft=0.006)
    tint(face, put(ellipse(0, end + 0.03, wing * 0.8, 0.03)), colour=shadow, alpha=strength, soft=0.022)
    gleam = rng.uniform(0.1, 0.55)
    tint(face, put(ellipse(0.012 * lit, top + 0.42 * tall, 0.018, 0.3 * tall)), colour=bright, alpha=gleam, soft=0.018)
    tint(face, put(ellipse(0.015 * lit, top + 0.8 * tall, 0.04, 0.035)), colour=bright, alpha=gleam, soft=0.022)
    return end


def draw_mouth(face: Canvas, rng: np.random.Generator, y: float, gape: float) -> float:
    """Returns y of the upper lip's upper edge. ``gape`` 0: shut."""
    half = rng.uniform(0.2, 0.31) * (1 - 0.35 * gape)
    smile, skew = rng.uniform(-0.03, 0.09), rng.normal(0, 0.012)
    over, under, cupid = rng.uniform(0.025, 0.085), rng.uniform(0.04, 0.11), rng.uniform(0, 0.4)
    x = ALONG * half
    hump = np.clip(1 - ALONG**2, 0, 1)
    hole = np.clip(1 - (ALONG / 0.9) ** 2, 0, 1) ** 0.7
    base = y + smile * (0.5 - np.abs(ALONG) ** 1.7) + skew * ALONG + 0.012 * np.cos(ALONG * 5) * hump
    roof, floor = base - 0.25 * gape * hole, base + 0.75 * gape * hole
    lift = np.clip(1 - (ALONG / 0.93) ** 2, 0, 1) ** 0.8
    top = roof - over * lift**0.8 * (1 - cupid * np.exp(-((ALONG / 0.16) ** 2)))
    bottom = floor + under * lift**0.75
    kind = rng.random()
    red = np.array((178, 62, 72), np.float32)
    tone = mix(face.skin, red, rng.uniform(0.06, 0.5))
    if kind < 0.2:
        tone = rng.uniform((90, 0, 20), (230, 60, 110)).astype(np.float32)
    elif kind < 0.3:
        tone = face.skin * rng.uniform(0.6, 0.95)
    tone = tone * rng.uniform(0.8, 1.02)

    def band(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return place(face, np.concatenate((np.stack((x, one), 1), np.stack((x, two), 1)[::-1])), 0.03)

    upper, lower, inner = band(top, roof), band(floor, bottom), band(roof, floor)
    dark = face.skin * 0.3
    tint(face, band(bottom, bottom + 0.025), colour=dark, alpha=rng.uniform(0.1, 0.4), soft=0.02)
    fill(face, upper, colour=tone * rng.uniform(0.75, 0.97), label=UPPER_LIP)
    fill(face, lower, colour=tone, label=LOWER_LIP)
    edge = np.stack((x, (floor + bottom) / 2), 1)[7:18]
    gloss = rng.uniform(0.05, 0.45)
    tint(
        face,
        place(face, ribbon(edge, under * 0.16), 0.03),
        colour=mix(tone, WHITE, 0.6),
        alpha=gloss,
        soft=0.015,
        within=lower,
    )
    tint(face, band(bottom - under * 0.3, bottom), colour=tone * 0.55, alpha=0.4, soft=0.012, within=lower)
    cavity = rng.uniform(0.15, 0.5) * np.array((150, 50, 50), np.float32)
    has_teeth, drop, has_tongue = rng.random() < 0.75, rng.uniform(0.03, 0.085), rng.random() < 0.6
    ivory = mix(np.array((246, 240, 226), np.float32), face.skin, rng.uniform(0, 0.2)) * rng.uniform(0.75, 1)
    pink = mix(np.array((190, 88, 88), np.float32), tone, rng.uniform(0, 0.6))
    grin = gape < 0.1 and rng.random() < 0.6
    if gape > 0:
        fill(face, inner, colour=cavity, label=INNER_MOUTH)
        if has_tongue:
            tongue = ellipse(0, floor[12] + 0.01, half * 0.6, 0.4 * gape)
            tint(face, place(face, tongue, 0.03), colour=pink, alpha=1, soft=0.008, within=inner)
        if has_teeth or grin:
            ends = roof + (gape if grin else drop) * np.clip(1 - (ALONG / 0.95) ** 2, 0, 1) ** 0.4
            row = band(roof, np.minimum(ends, floor))
            tint(face, row, colour=ivory, alpha=1, within=inner)
            gaps = np.linspace(-0.7, 0.7, 9) * half
            slits = [place(face, ribbon(np.array(((at, y - 0.2), (at, y + 0.3))), 0.003), 0.03) for at in gaps]
            tint(face, *slits, colour=ivory * 0.6, alpha=0.5, within=row)
        tint(face, band(roof - 0.01, roof + 0.014), colour=BLACK, alpha=0.4, soft=0.012, within=inner)
    else:
        line = np.stack((x, base), 1)
        tint(face, place(face, ribbon(line, 0.009), 0.03), colour=tone * 0.3, alpha=rng.uniform(0.5, 0.95), soft=0.004)
    for at in (0, -1):
        tint(face, place(face, ellipse(x[at], base[at], 0.022, 0.016), 0.03), colour=dark, alpha=0.45, soft=0.012)
    return float(top.min())
