"""Large things on the floor: chairs, stools, tables, sofas, beds, cabinets, shelves.

A builder takes the draws and the material of the main surfaces, and returns a thing whose front faces -y.
"""

from sak_core.miniature.rooms.draws import Draws
from sak_core.miniature.rooms.materials import SPINES, Material, neutral, shade_of
from sak_core.miniature.rooms.solids import BOX, ELLIPSOID, FRUSTUM, Solid, Thing

_CORNERS = ((-1, -1), (1, -1), (-1, 1), (1, 1))


def box(part: str, material: Material, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> Solid:
    """An upright box between bounds along each axis."""
    centre = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2, (z[0] + z[1]) / 2)
    return Solid(BOX, part, material, centre, ((x[1] - x[0]) / 2, (y[1] - y[0]) / 2, (z[1] - z[0]) / 2))


def legs(
    part: str,
    material: Material,
    half_width: float,
    half_depth: float,
    height: float,
    thick: float,
    round_: bool,
) -> list[Solid]:
    """Four upright legs under the corners of a rectangle."""
    kind = FRUSTUM if round_ else BOX
    half = (thick, thick, height / 2)
    return [
        Solid(
            kind,
            part,
            material,
            (sx * (half_width - thick), sy * (half_depth - thick), height / 2),
            half,
            -0.7,
        )
        for sx, sy in _CORNERS
    ]


def chair(draws: Draws, color: str, main: Material) -> Thing:
    """Seat, four legs, and a leaning back, whole or of bars."""
    frame = neutral(draws) if draws.chance(0.7) else main
    half, seat = draws.between(0.21, 0.27), draws.between(0.42, 0.5)
    thick, top = draws.between(0.05, 0.1), seat + draws.between(0.42, 0.6)
    solids = legs("chair leg", frame, half, half, seat - thick, draws.between(0.018, 0.028), draws.chance(0.4))
    solids.append(box("chair seat", main, (-half, half), (-half, half), (seat - thick, seat)))
    lean = -draws.between(0.05, 0.18)
    rise = (top - seat) / 2
    if draws.chance(0.6):
        gap = draws.between(0.0, 0.08)
        centre = (0.0, half - 0.025 + rise * 0.12, seat + rise + gap / 2)
        solids.append(Solid(BOX, "chair back", main, centre, (half, 0.025, rise - gap / 2), tilt=lean))
        if gap > 0.02:
            centre = (0.0, half - 0.025, seat + gap / 2)
            solids.append(Solid(BOX, "chair back", frame, centre, (0.05, 0.015, gap / 2 + 0.02), tilt=lean))
    else:
        for x in (-half + 0.025, half - 0.025):
            centre = (x, half - 0.025 + rise * 0.12, seat + rise)
            solids.append(Solid(BOX, "chair back", frame, centre, (0.025, 0.02, rise), tilt=lean))
        for share in (0.75, 1.6):
            centre = (0.0, half - 0.025 + rise * share * 0.13, seat + rise * share)
            solids.append(Solid(BOX, "chair back", main, centre, (half - 0.01, 0.018, rise * 0.24), tilt=lean))
    return Thing("chair", color, solids, half, half + 0.06, top, shadow_m=seat * 0.8)


def stool(draws: Draws, color: str, main: Material) -> Thing:
    """A round or square seat without a back, on four legs or a pillar."""
    frame = neutral(draws)
    half, seat, thick = draws.between(0.17, 0.24), draws.between(0.42, 0.7), draws.between(0.05, 0.1)
    if draws.chance(0.35):
        solids = [
            Solid(FRUSTUM, "stool leg", frame, (0.0, 0.0, (seat - thick) / 2), (0.03, 0.03, (seat - thick) / 2)),
            Solid(FRUSTUM, "stool leg", frame, (0.0, 0.0, 0.02), (half, half, 0.02), 0.8),
        ]
    else:
        solids = legs("stool leg", frame, half * 0.85, half * 0.85, seat - thick, 0.022, draws.chance(0.5))
    if draws.chance(0.65):
        solids.append(Solid(FRUSTUM, "stool seat", main, (0.0, 0.0, seat - thick / 2), (half, half, thick / 2), 0.93))
    else:
        solids.append(box("stool seat", main, (-half, half), (-half, half), (seat - thick, seat)))
    return Thing("stool", color, solids, half, half, seat, shadow_m=seat * 0.8)


def table(draws: Draws, color: str, main: Material) -> Thing:
    """A rectangular top on four legs, or a round one on a pillar."""
    frame = neutral(draws) if draws.chance(0.6) else main
    height = draws.between(0.66, 0.78) if draws.chance(0.75) else draws.between(0.4, 0.5)
    thick = draws.between(0.03, 0.07)
    if draws.chance(0.28):
        half = draws.between(0.38, 0.52)
        rise = (height - thick) / 2
        solids = [
            Solid(FRUSTUM, "table top", main, (0.0, 0.0, height - thick / 2), (half, half, thick / 2)),
            Solid(FRUSTUM, "table leg", frame, (0.0, 0.0, rise), (0.05, 0.05, rise)),
            Solid(FRUSTUM, "table leg", frame, (0.0, 0.0, 0.025), (half * 0.6, half * 0.6, 0.025), 0.5),
        ]
        return Thing("table", color, solids, half, half, height, height * 0.9, height)
    half_width, half_depth = draws.between(0.42, 0.72), draws.between(0.28, 0.42)
    solids = legs("table leg", frame, half_width - 0.03, half_depth - 0.03, height - thick, 0.03, draws.chance(0.3))
    solids.append(
        box("table top", main, (-half_width, half_width), (-half_depth, half_depth), (height - thick, height))
    )
    return Thing("table", color, solids, half_width, half_depth, height, height * 0.9, height)


def sofa(draws: Draws, color: str, main: Material) -> Thing:
    """Seat, back and two arms, with a line between two cushions; an armchair when it is narrow."""
    half_width = draws.between(0.42, 0.52) if draws.chance(0.35) else draws.between(0.75, 0.98)
    half_depth, seat = draws.between(0.38, 0.45), draws.between(0.38, 0.45)
    top, arm, arm_top = draws.between(0.74, 0.9), draws.between(0.11, 0.18), draws.between(0.55, 0.63)
    inner = half_width - arm
    solids = [
        box("sofa back", main, (-inner, inner), (half_depth - 0.24, half_depth), (0.06, top)),
        box("sofa arm", main, (-half_width, -inner), (-half_depth, half_depth), (0.04, arm_top)),
        box("sofa arm", main, (inner, half_width), (-half_depth, half_depth), (0.04, arm_top)),
        box("sofa seat", main, (-inner, inner), (-half_depth + 0.05, half_depth - 0.24), (0.04, seat - 0.13)),
    ]
    cushions = 1 if half_width < 0.6 else 2
    width = 2 * inner / cushions
    for number in range(cushions):
        left = -inner + number * width
        x, y = (left + 0.006, left + width - 0.006), (-half_depth, half_depth - 0.24)
        solids.append(box("sofa seat", main, x, y, (seat - 0.12, seat)))
    return Thing("sofa", color, solids, half_width, half_depth, top, shadow_m=0.2)


def bed(draws: Draws, color: str, main: Material) -> Thing:
    """A mattress under a blanket, one or two pillows, a frame with a headboard."""
    frame = neutral(draws)
    half_width, half_depth = draws.between(0.45, 0.75), draws.between(0.92, 1.0)
    base, top, board = draws.between(0.22, 0.3), draws.between(0.45, 0.58), draws.between(0.8, 1.1)
    cloth = Material(shade_of(draws, draws.pick(("white", "white", "grey")), 0.0), (0.5, 0.5, 0.5))
    solids = [
        box("bed frame", frame, (-half_width, half_width), (-half_depth, half_depth), (0.08, base)),
        box("bed frame", frame, (-half_width, half_width), (half_depth - 0.06, half_depth), (0.0, board)),
        box(
            "bed mattress",
            main,
            (-half_width + 0.02, half_width - 0.02),
            (-half_depth + 0.02, half_depth - 0.06),
            (base, top),
        ),
    ]
    places = (0.0,) if half_width < 0.6 else (-half_width / 2, half_width / 2)
    for x in places:
        wide = 0.3 if len(places) == 1 else half_width / 2 - 0.05
        solids.append(
            Solid(ELLIPSOID, "bed pillow", cloth, (x, half_depth - 0.3, top + 0.05), (wide, 0.2, 0.1), tilt=0.35)
        )
    return Thing("bed", color, solids, half_width, half_depth, board, shadow_m=0.15)


def cabinet(draws: Draws, color: str, main: Material) -> Thing:
    """A body with doors or drawers in front; a low one carries things, a tall one is a wardrobe."""
    front = neutral(draws) if draws.chance(0.5) else main._replace(color=_scaled(main.color, 0.8))
    half_width, half_depth = draws.between(0.32, 0.65), draws.between(0.2, 0.26)
    tall = draws.chance(0.25)
    height = draws.between(1.6, 1.95) if tall else draws.between(0.55, 0.95)
    solids = [box("cabinet body", main, (-half_width, half_width), (-half_depth, half_depth), (0.0, height))]
    columns = draws.whole(1, 3) if half_width > 0.45 else draws.whole(1, 2)
    rows = 1 if tall else draws.whole(1, 3)
    margin, gap = 0.045, 0.035
    width, rise = (2 * half_width - 2 * margin + gap) / columns, (height - 2 * margin - 0.04 + gap) / rows
    for column in range(columns):
        for row in range(rows):
            left, low = -half_width + margin + column * width, margin + 0.04 + row * rise
            x, z = (left, left + width - gap), (low, low + rise - gap)
            solids.append(box("cabinet door", front, x, (-half_depth - 0.025, -half_depth + 0.01), z))
    top = 0.0 if tall else height
    return Thing("cabinet", color, solids, half_width, half_depth + 0.025, height, height * 0.25, top)


def shelf(draws: Draws, color: str, main: Material) -> Thing:
    """Two sides, a back and boards, with rows of books between them."""
    half_width, half_depth, height = (
        draws.between(0.32, 0.55),
        draws.between(0.14, 0.19),
        draws.between(1.1, 1.9),
    )
    board, back = 0.03, main._replace(color=_scaled(main.color, 0.7))
    solids = [
        box("shelf board", main, (-half_width, -half_width + board), (-half_depth, half_depth), (0.0, height)),
        box("shelf board", main, (half_width - board, half_width), (-half_depth, half_depth), (0.0, height)),
        box("shelf board", back, (-half_width, half_width), (half_depth - 0.02, half_depth), (0.0, height)),
    ]
    levels = draws.whole(3, 5)
    rise = (height - board - 0.05) / levels
    for level in range(levels + 1):
        low = 0.05 + level * rise
        x = (-half_width + board, half_width - board)
        solids.append(box("shelf board", main, x, (-half_depth + 0.01, half_depth - 0.02), (low, low + board)))
        if level < levels and draws.chance(0.8):
            free = 2 * (half_width - board)
            used = free * draws.between(0.45, 0.97)
            left = -half_width + board + (free - used) * draws.unit()
            tall = min(rise - board - 0.02, draws.between(0.18, 0.3))
            books = Material(
                shade_of(draws, draws.pick(("red", "blue", "green", "brown", "grey", "orange")), 0.6),
                shade_of(draws, draws.pick(("white", "yellow", "teal", "black", "purple", "pink")), 0.6),
                SPINES,
                draws.between(14, 24),
                phase=draws.unit() * 7,
            )
            depth = (-half_depth + draws.between(0.02, 0.07), half_depth - 0.03)
            solids.append(box("shelf book", books, (left, left + used), depth, (low + board, low + board + tall)))
    return Thing("shelf", color, solids, half_width, half_depth, height, height * 0.25)


def _scaled(color: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    return (color[0] * factor, color[1] * factor, color[2] * factor)
