"""What is in a room: one attempt at its shell, camera, light and things, drawn from one stream."""

import math
from dataclasses import dataclass

from sak_core.miniature.rooms import furniture, things
from sak_core.miniature.rooms.draws import Draws
from sak_core.miniature.rooms.geometry import Camera
from sak_core.miniature.rooms.labels import COLORS
from sak_core.miniature.rooms.materials import (
    CHECKS,
    MOTTLE,
    PLAIN,
    PLANKS,
    RGB,
    STRIPES,
    Material,
    covering,
    neutral,
    pale,
    shade_of,
    wood,
)
from sak_core.miniature.rooms.placement import Bounds, Sight, overlap, put_on, stand, walls_of
from sak_core.miniature.rooms.solids import Thing

_FLOOR_THINGS: tuple[tuple[str, float], ...] = (
    ("chair", 3.0),
    ("stool", 1.4),
    ("table", 2.0),
    ("sofa", 1.5),
    ("bed", 1.1),
    ("cabinet", 1.3),
    ("shelf", 1.4),
    ("lamp", 1.1),
    ("plant", 1.3),
    ("person", 2.0),
    ("ball", 1.1),
    ("vase", 0.9),
)
_TOP_THINGS: tuple[tuple[str, float], ...] = (
    ("screen", 2.2),
    ("vase", 1.2),
    ("lamp", 1.0),
    ("plant", 1.0),
    ("ball", 0.7),
)
_FURNITURE = {
    "chair": furniture.chair,
    "stool": furniture.stool,
    "table": furniture.table,
    "sofa": furniture.sofa,
    "bed": furniture.bed,
    "cabinet": furniture.cabinet,
    "shelf": furniture.shelf,
    "person": things.person,
}
_SMALL = {"lamp": things.lamp, "plant": things.plant, "vase": things.vase, "ball": things.ball}
_LARGE = frozenset({"sofa", "bed", "cabinet", "shelf"})
_MOST_LARGE = 2
_TRIES = 14


@dataclass(frozen=True)
class Room:
    """One attempt at a scene; world frame x right, y into the room, z up, metres."""

    camera: Camera
    bounds: Bounds
    shell: tuple[Material, ...]
    """Materials of the shell's six faces: left, right, front and back wall, floor, ceiling."""
    things: list[Thing]
    """In the order of their instance numbers, which start at 1."""
    on_floor: int
    """How many of the things, the first ones, stand on the floor."""
    bulb: RGB
    """Position of the point light."""
    bulb_color: RGB
    opening: tuple[RGB, RGB]
    """Middle of the window that lets daylight in, seen or not, and the direction it faces."""
    daylight_color: RGB
    ambient: float
    attributes: dict[str, str]


def draw_room(draws: Draws) -> Room:
    """Draw a room with up to 7 things on the floor, as far as they find space, and more on tops and walls."""
    bounds = Bounds(
        -draws.between(1.3, 2.4),
        draws.between(1.3, 2.4),
        -1.5,
        draws.between(3.6, 5.2),
        draws.between(2.4, 2.9),
    )
    eye = (draws.between(-0.4, 0.4), 0.0, draws.between(1.15, 1.65))
    yaw, view = draws.between(-0.38, 0.38), math.radians(draws.between(39.0, 49.0))
    pitch = math.atan2(eye[2] - draws.between(0.45, 0.75), draws.between(2.6, 3.4))
    sight = Sight(eye[0], eye[1], yaw, math.tan(view / 2))

    standing = _furnish(draws, bounds, sight)
    on_tops = _decorate(draws, standing)
    daylight = draws.unit()
    hanging, opening = _hang(draws, bounds, sight, standing, daylight)
    flat = _rugs(draws, sight)
    shell, attributes = _shell(draws)
    hour = "day" if daylight > 0.55 else "evening" if daylight > 0.25 else "night"
    bulb = (draws.between(bounds.left, bounds.right) * 0.6, draws.between(0.3, 3.0), bounds.height - 0.3)
    warm = draws.between(0.55, 0.95)
    strength = draws.between(1.2, 2.2) if hour != "day" else draws.between(0.3, 1.2)
    sky = draws.between(0.9, 1.15)
    sun = daylight * draws.between(2.5, 4.5)
    return Room(
        Camera.looking(eye, yaw, pitch, view),
        bounds,
        shell,
        standing + on_tops + hanging + flat,
        len(standing),
        bulb,
        (strength, strength * (0.55 + 0.45 * warm), strength * warm),
        opening,
        (sun, sun * 0.98, sun * sky),
        draws.between(0.22, 0.4),
        {**attributes, "light": hour},
    )


def _covering(draws: Draws, star: bool) -> tuple[str, Material]:
    """The colour's name and the material of a thing, of saturated colour when it is to stand out."""
    color = draws.pick(COLORS)
    return color, covering(draws, color, draws.between(0.8, 1.0) if star else draws.between(0.0, 0.35))


def _standing(draws: Draws, name: str, color: str, main: Material) -> Thing:
    """A thing of this class, of the size that stands on the floor."""
    if name in _FURNITURE:
        return _FURNITURE[name](draws, color, main)
    return _SMALL[name](draws, color, main, False)


def _furnish(draws: Draws, bounds: Bounds, sight: Sight) -> list[Thing]:
    """Things on the floor; one, drawn at random, has a colour that stands out."""
    count = draws.whole(4, 7)
    star = draws.whole(0, count - 1)
    placed: list[Thing] = []
    large = 0
    for number in range(count):
        name = "table" if number == 0 and draws.chance(0.45) else draws.weighted(_FLOOR_THINGS)
        if name in _LARGE and large == _MOST_LARGE:
            name = draws.pick(("chair", "stool", "person", "plant", "lamp"))
        color, main = _covering(draws, number == star)
        thing = _standing(draws, name, color, main)
        against = name in _LARGE and draws.chance(0.75)
        if stand(draws, thing, placed, bounds, sight, against, _TRIES):
            placed.append(thing)
            large += name in _LARGE
    return placed


def _decorate(draws: Draws, standing: list[Thing]) -> list[Thing]:
    """Small things on tables and low cabinets."""
    result: list[Thing] = []
    for carrier in standing:
        if not carrier.top_m:
            continue
        here: list[Thing] = []
        for _ in range(draws.whole(0, 2) if draws.chance(0.75) else 0):
            name = draws.weighted(_TOP_THINGS)
            color, main = _covering(draws, draws.chance(0.12))
            if name == "screen":
                thing = things.screen(draws, color, main, False)
            else:
                thing = _SMALL[name](draws, color, main, True)
            if put_on(draws, thing, carrier, here):
                here.append(thing)
        result += here
    return result


def _hang(
    draws: Draws, bounds: Bounds, sight: Sight, standing: list[Thing], daylight: float
) -> tuple[list[Thing], tuple[RGB, RGB]]:
    """A window, pictures and a screen on the walls that are seen, and where daylight comes from.

    Without a window in sight, daylight comes from one beside or behind the camera.
    """
    side = -1.0 if draws.chance(0.5) else 1.0
    place = (bounds.left + 0.05 if side < 0 else bounds.right - 0.05, draws.between(-1.0, 1.2), 1.5)
    opening: tuple[RGB, RGB] = (place, (-side, 0.0, 0.0))
    hung: list[Thing] = []
    wanted = ["window"] * draws.chance(0.5) + ["picture"] * draws.whole(0, 2) + ["screen"] * draws.chance(0.12)
    for name in wanted:
        if name == "window":
            thing, low = things.window(draws, daylight), draws.between(0.85, 1.05)
        else:
            color, main = _covering(draws, draws.chance(0.12))
            thing = things.picture(draws, color, main) if name == "picture" else things.screen(draws, color, main, True)
            low = draws.between(1.15, 1.4)
        if low + thing.height > bounds.height - 0.1:
            continue
        for _ in range(6):
            wall = draws.pick(walls_of(bounds))
            reach = thing.half_width + 0.05
            along = draws.between(wall.low + reach, wall.high - reach)
            x, y = wall.point(along, 0.03 if name == "screen" else 0.001)
            thing.position, thing.yaw = (x, y, low), wall.yaw
            taller = [other for other in standing if other.height > low]
            if sight.sees(x, y, 0.95) and not any(overlap(thing, other) for other in hung + taller):
                hung.append(thing)
                if name == "window":
                    facing = (math.sin(wall.yaw), -math.cos(wall.yaw), 0.0)
                    opening = ((x, y, low + thing.height / 2), facing)
                break
    return hung, opening


def _rugs(draws: Draws, sight: Sight) -> list[Thing]:
    """A rug, or none."""
    if not draws.chance(0.45):
        return []
    color = draws.pick(COLORS)
    thing = things.rug(draws, color, covering(draws, color, 0.0))
    ahead = draws.between(2.2, 3.4)
    x, y = sight.point(ahead, draws.between(-0.4, 0.4) * sight.slope * ahead)
    thing.position, thing.yaw = (x, y, 0.0), draws.pick((0.0, math.pi / 2)) + draws.between(-0.25, 0.25)
    return [thing]


def _shell(draws: Draws) -> tuple[tuple[Material, ...], dict[str, str]]:
    """Materials of walls, floor and ceiling, and what to call them."""
    name, color = pale(draws, 1.0)
    fade = draws.between(0.75, 0.92)
    second = (color[0] * fade, color[1] * fade, color[2] * fade)
    texture = draws.weighted(((PLAIN, 5.0), (STRIPES, 1.2), (MOTTLE, 1.5)))
    phase = draws.unit() * 7
    frequency = draws.between(2.0, 4.5) if texture == STRIPES else draws.between(1.5, 4.0)
    wall_x = Material(color, second, texture, frequency, (0.0, 1.0, 0.0), phase)
    wall_y = wall_x._replace(axis=(1.0, 0.0, 0.0))
    floor_kind = draws.pick(("wood", "tiles", "carpet", "stone"))
    if floor_kind == "wood":
        shade = wood(draws)
        darker = (shade[0] * 0.7, shade[1] * 0.68, shade[2] * 0.65)
        axis = draws.pick(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
        floor = Material(shade, darker, PLANKS, draws.between(5.0, 8.0), axis, phase, draws.between(0.0, 0.3))
    elif floor_kind == "tiles":
        light, dark = pale(draws, 0.8)[1], pale(draws, 1.0)[1]
        floor = Material(
            light, (dark[0] * 0.5, dark[1] * 0.5, dark[2] * 0.5), CHECKS, draws.between(1.6, 3.0), gloss=0.3
        )
    elif floor_kind == "carpet":
        shade = shade_of(draws, draws.pick(COLORS), 0.0)
        mean = sum(shade) / 3
        shade = (0.5 * shade[0] + 0.4 * mean, 0.5 * shade[1] + 0.4 * mean, 0.5 * shade[2] + 0.4 * mean)
        floor = Material(shade, (shade[0] * 0.7, shade[1] * 0.7, shade[2] * 0.7), MOTTLE, 17.0, phase=phase)
    else:
        base = neutral(draws).color
        floor = Material(base, (base[0] * 0.8, base[1] * 0.8, base[2] * 0.8), MOTTLE, 3.5, phase=phase)
    white = shade_of(draws, "white", 0.0)
    ceiling = Material(white, white)
    shell = (wall_x, wall_x, wall_y, wall_y, floor, ceiling)
    return shell, {"wall": name, "floor": floor_kind}
