"""People, lamps, plants, screens, vases, balls, and what lies on the floor and hangs on walls."""

import math

from sak_core.miniature.rooms.draws import Draws
from sak_core.miniature.rooms.furniture import box
from sak_core.miniature.rooms.materials import Material, neutral, paint, shade_of
from sak_core.miniature.rooms.solids import BOX, ELLIPSOID, FRUSTUM, Solid, Thing


def person(draws: Draws, color: str, main: Material) -> Thing:
    """A standing figure: legs, torso, arms hanging or lifted, head."""
    tall = draws.between(1.5, 1.82)
    skin = neutral(draws)
    trousers = Material(*(2 * (shade_of(draws, draws.pick(("blue", "grey", "black", "brown", "green")), 0.2),)))
    leg, torso = tall * 0.47, tall * 0.35
    wide = tall * draws.between(0.115, 0.14)
    stride = draws.between(-0.14, 0.14)
    solids = []
    for side in (-1, 1):
        centre = (side * wide * 0.5, side * stride * 0.25, leg / 2)
        size = (wide * 0.46, wide * 0.46, leg / 2 + 0.02)
        solids.append(Solid(FRUSTUM, "person leg", trousers, centre, size, -0.65, tilt=side * stride))
    solids.append(
        Solid(
            FRUSTUM,
            "person torso",
            main,
            (0.0, 0.0, leg + torso / 2),
            (wide * 1.15, wide * 0.72, torso / 2),
            -0.8,
        )
    )
    shoulder = leg + torso * 0.95
    length = tall * 0.2
    for side in (-1, 1):
        lift = draws.between(0.05, 0.35) if draws.chance(0.7) else draws.between(0.6, 1.5)
        reach = math.pi / 2 if side > 0 else -math.pi / 2
        centre = (side * (wide * 1.15 + length * math.sin(lift)), 0.0, shoulder - length * math.cos(lift))
        size = (wide * 0.3, wide * 0.3, length)
        solids.append(Solid(FRUSTUM, "person arm", main, centre, size, -0.7, tilt=lift, turn=reach))
    head = tall * 0.075
    solids.append(Solid(FRUSTUM, "person head", skin, (0.0, 0.0, leg + torso + 0.02), (0.05, 0.05, 0.05)))
    centre = (0.0, -0.01, leg + torso + head * 1.15)
    solids.append(Solid(ELLIPSOID, "person head", skin, centre, (head * 0.82, head * 0.92, head * 1.15)))
    return Thing("person", color, solids, wide * 1.7, wide * 1.2, tall, shadow_m=0.5)


def lamp(draws: Draws, color: str, main: Material, on_top: bool) -> Thing:
    """A foot, a pole and a shade, tall on the floor and small on a table; sometimes lit."""
    metal = neutral(draws)
    tall = draws.between(0.38, 0.55) if on_top else draws.between(1.25, 1.65)
    wide = tall * draws.between(0.26, 0.34) if on_top else draws.between(0.2, 0.28)
    shade = wide * draws.between(1.0, 1.5)
    lit = draws.chance(0.5)
    if lit:
        main = main._replace(emission=draws.between(0.6, 1.2))
    foot, pole = wide * 0.75, 0.018 if on_top else 0.02
    solids = [
        Solid(FRUSTUM, "lamp foot", metal, (0.0, 0.0, 0.02), (foot, foot, 0.02), 0.7),
        Solid(FRUSTUM, "lamp pole", metal, (0.0, 0.0, tall / 2), (pole, pole, tall / 2 - 0.03)),
        Solid(
            FRUSTUM,
            "lamp shade",
            main,
            (0.0, 0.0, tall - shade / 2),
            (wide, wide, shade / 2),
            draws.between(0.35, 0.8),
        ),
    ]
    if on_top and draws.chance(0.6):
        body = tall - shade * 0.9
        solids[1] = Solid(ELLIPSOID, "lamp pole", metal, (0.0, 0.0, body / 2), (wide * 0.45, wide * 0.45, body / 2))
    glow = tall - shade / 2 if lit else 0.0
    return Thing("lamp", color, solids, wide, wide, tall, shadow_m=tall * 0.5, glow_m=glow)


def plant(draws: Draws, color: str, main: Material, on_top: bool) -> Thing:
    """A pot with leaves: long ones, a crown of balls, or a cone."""
    pot_material = neutral(draws)
    tall = draws.between(0.3, 0.5) if on_top else draws.between(0.8, 1.4)
    wide = tall * draws.between(0.3, 0.4) if on_top else draws.between(0.25, 0.38)
    pot, pot_wide = tall * draws.between(0.22, 0.32), wide * draws.between(0.45, 0.6)
    solids = [
        Solid(
            FRUSTUM,
            "plant pot",
            pot_material,
            (0.0, 0.0, pot / 2),
            (pot_wide, pot_wide, pot / 2),
            -draws.between(0.6, 0.9),
        )
    ]
    crown = tall - pot
    form = draws.whole(0, 2)
    if form == 0:
        count = draws.whole(6, 8)
        start = draws.unit() * math.tau
        for number in range(count):
            turn = start + math.tau * number / count + draws.between(-0.2, 0.2)
            lean = draws.between(0.25, 0.8) if number % 2 else draws.between(0.05, 0.4)
            length = crown * draws.between(0.45, 0.56)
            out, up = math.sin(lean) * length, math.cos(lean) * length
            centre = (-math.sin(turn) * -out, -math.cos(turn) * out, pot + up * 0.95)
            size = (length * 0.22, length * 0.07, length)
            solids.append(Solid(ELLIPSOID, "plant leaves", main, centre, size, tilt=lean, turn=turn))
    elif form == 1:
        stem = crown * draws.between(0.15, 0.4)
        solids.append(Solid(FRUSTUM, "plant leaves", main, (0.0, 0.0, pot + stem / 2), (0.02, 0.02, stem / 2)))
        for number in range(5):
            ball = wide * draws.between(0.42, 0.6)
            turn = math.tau * number / 4 + draws.between(-0.4, 0.4)
            out = 0.0 if number == 4 else (wide - ball) * 0.9
            level = tall - ball if number == 4 else pot + stem + (crown - stem) * draws.between(0.3, 0.6)
            centre = (math.cos(turn) * out, math.sin(turn) * out, level)
            solids.append(Solid(ELLIPSOID, "plant leaves", main, centre, (ball, ball, ball * 0.85)))
    else:
        for share, spread in ((0.0, 1.0), (0.28, 0.78), (0.56, 0.52)):
            low = pot + 0.02 + crown * share
            rise = crown * 0.44 / 2
            solids.append(
                Solid(
                    FRUSTUM,
                    "plant leaves",
                    main,
                    (0.0, 0.0, low + rise),
                    (wide * spread, wide * spread, rise),
                    0.12,
                )
            )
    return Thing("plant", color, solids, wide, wide, tall, shadow_m=tall * 0.5)


def screen(draws: Draws, color: str, main: Material, on_wall: bool) -> Thing:
    """A flat panel in a case, on a stand or hanging on a wall; often switched on."""
    case = Material(*(2 * (shade_of(draws, draws.pick(("black", "grey", "white")), 0.0),)), gloss=0.4)
    wide = draws.between(0.45, 0.65) if on_wall else draws.between(0.24, 0.36)
    rise, rim = wide * draws.between(0.58, 0.66), 0.03 if on_wall else 0.02
    emission = draws.between(0.5, 1.3) if draws.chance(0.7) else 0.0
    panel = (
        paint(draws, main.color, emission)._replace(gloss=0.6)
        if draws.chance(0.5)
        else main._replace(emission=emission, gloss=0.6)
    )
    low = 0.0 if on_wall else 0.1
    middle = low + rise
    solids = [
        Solid(BOX, "screen case", case, (0.0, 0.0, middle), (wide, 0.025, rise)),
        Solid(BOX, "screen panel", panel, (0.0, -0.02, middle), (wide - rim, 0.01, rise - rim)),
    ]
    if not on_wall:
        solids.append(box("screen stand", case, (-0.03, 0.03), (-0.01, 0.03), (0.01, low + 0.05)))
        solids.append(box("screen stand", case, (-wide * 0.45, wide * 0.45), (-0.09, 0.09), (0.0, 0.018)))
    depth = 0.03 if on_wall else 0.09
    return Thing("screen", color, solids, wide, depth, middle + rise, shadow_m=0.0 if on_wall else 0.15)


def vase(draws: Draws, color: str, main: Material, on_top: bool) -> Thing:
    """A belly with a neck that widens to the rim; a bottle when the neck is narrow."""
    tall = draws.between(0.22, 0.36) if on_top else draws.between(0.45, 0.7)
    wide, body = tall * draws.between(0.24, 0.36), tall * draws.between(0.55, 0.68)
    main = main._replace(gloss=draws.between(0.2, 0.9))
    neck = wide * draws.between(0.28, 0.5)
    solids = [
        Solid(ELLIPSOID, "vase body", main, (0.0, 0.0, body * 0.53), (wide, wide, body * 0.55))
        if draws.chance(0.6)
        else Solid(FRUSTUM, "vase body", main, (0.0, 0.0, body / 2), (wide, wide, body / 2), draws.pick((-0.6, 0.6))),
        Solid(
            FRUSTUM,
            "vase neck",
            main,
            (0.0, 0.0, (tall + body * 0.9) / 2),
            (neck * 1.25, neck * 1.25, (tall - body * 0.9) / 2),
            -draws.between(0.6, 0.95),
        ),
    ]
    return Thing("vase", color, solids, wide, wide, tall, shadow_m=tall * 0.35)


def ball(draws: Draws, color: str, main: Material, on_top: bool) -> Thing:
    """A sphere."""
    radius = draws.between(0.07, 0.1) if on_top else draws.between(0.14, 0.27)
    solids = [Solid(ELLIPSOID, "ball", main, (0.0, 0.0, radius), (radius, radius, radius))]
    return Thing("ball", color, solids, radius, radius, 2 * radius, shadow_m=radius)


def rug(draws: Draws, color: str, main: Material) -> Thing:
    """A flat rectangle with a border."""
    half_width, half_depth, edge = draws.between(0.7, 1.2), draws.between(0.5, 0.8), draws.between(0.06, 0.14)
    border = Material(*(2 * (shade_of(draws, draws.pick(("white", "grey", "brown", "black")), 0.0),)))
    solids = [
        box("rug border", border, (-half_width, half_width), (-half_depth, half_depth), (0.0, 0.008)),
        box(
            "rug field",
            main,
            (edge - half_width, half_width - edge),
            (edge - half_depth, half_depth - edge),
            (0.0, 0.011),
        ),
    ]
    return Thing("rug", color, solids, half_width, half_depth, 0.011)


def picture(draws: Draws, color: str, main: Material) -> Thing:
    """A canvas in a frame, its back at y = 0."""
    half_width, half_height = draws.between(0.2, 0.45), draws.between(0.18, 0.36)
    edge = draws.between(0.03, 0.06)
    canvas = paint(draws, main.color) if draws.chance(0.7) else main
    middle = half_height
    solids = [
        Solid(BOX, "picture frame", neutral(draws), (0.0, -0.015, middle), (half_width, 0.015, half_height)),
        Solid(
            BOX,
            "picture canvas",
            canvas,
            (0.0, -0.02, middle),
            (half_width - edge, 0.015, half_height - edge),
        ),
    ]
    return Thing("picture", color, solids, half_width, 0.03, 2 * half_height)


def window(draws: Draws, daylight: float) -> Thing:
    """Two or four panes in a frame, its back at y = 0; panes shine by daylight (0 at night)."""
    half_width, half_height = draws.between(0.4, 0.65), draws.between(0.45, 0.6)
    frame = Material(*(2 * (shade_of(draws, draws.pick(("white", "white", "brown", "grey")), 0.0),)))
    sky = (0.25, 0.42, 0.75) if daylight > 0.5 else (0.10, 0.13, 0.25)
    view = Material(
        sky,
        (0.75, 0.8, 0.85) if draws.chance(0.5) else (0.12, 0.3, 0.1),
        7,
        1.2,
        phase=draws.unit() * 7,
        gloss=0.3,
        emission=2.2 * daylight,
    )
    solids = [Solid(BOX, "window frame", frame, (0.0, -0.03, half_height), (half_width, 0.03, half_height))]
    rows = draws.whole(1, 2)
    edge, bar = 0.055, 0.025
    width, rise = half_width - edge / 2 - bar / 2, (2 * half_height - edge) / rows
    for side in (-1, 1):
        for row in range(rows):
            centre = (side * (width + bar) / 2, -0.031, edge / 2 + rise * (row + 0.5))
            size = (width / 2 - bar / 2, 0.032, rise / 2 - bar)
            solids.append(Solid(BOX, "window pane", view, centre, size))
    return Thing("window", "white", solids, half_width, 0.06, 2 * half_height)
