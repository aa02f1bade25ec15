"""Soft shadows of things on what carries them: under them, and away from the bulb."""

import numpy as np

from sak_core.miniature.rooms.arrays import Float32, Int
from sak_core.miniature.rooms.layout import Room
from sak_core.miniature.rooms.solids import Thing

_FLOOR_FACE = 4
_ROUND = frozenset({"lamp", "plant", "vase", "ball", "person"})


def floor_shadows(room: Room, facet: Int, thing: Int, point: Float32, normal: Float32) -> tuple[Float32, Float32]:
    """How much of the bulb's and of the surrounding light reaches each pixel.

    A thing is taken as a flat footprint at the height of its mass, whose edge softens with that height.

    Returns:
        two arrays (n,) in [0, 1]; 1 everywhere but on floor, rug and the tops of carriers.
    """
    direct = np.ones(facet.shape, dtype=np.float32)
    around = np.ones(facet.shape, dtype=np.float32)
    rugs = [number for number, other in enumerate(room.things, start=1) if other.name == "rug"]
    ground = facet == _FLOOR_FACE
    for number in rugs:
        ground |= thing == number
    _cast_on(room, np.flatnonzero(ground), room.things[: room.on_floor], 0.0, point, direct, around)
    for number, carrier in enumerate(room.things[: room.on_floor], start=1):
        carried = [
            other
            for other in room.things[room.on_floor :]
            if carrier.top_m and other.position[2] == carrier.top_m and _over(other, carrier)
        ]
        if carried:
            top = (thing == number) & (normal[2] > 0.99) & (point[2] > carrier.top_m - 0.01)
            _cast_on(room, np.flatnonzero(top), carried, carrier.top_m, point, direct, around)
    return direct, around


def _over(other: Thing, carrier: Thing) -> bool:
    dx, dy = other.position[0] - carrier.position[0], other.position[1] - carrier.position[1]
    return dx * dx + dy * dy < carrier.half_width**2 + carrier.half_depth**2


def _cast_on(
    room: Room,
    where: Int,
    casters: list[Thing],
    level: float,
    point: Float32,
    direct: Float32,
    around: Float32,
) -> None:
    if not where.size or not casters:
        return
    x, y = point[0, where], point[1, where]
    bulb_x, bulb_y, bulb_z = room.bulb
    lit, open_ = np.ones(where.shape, dtype=np.float32), np.ones(where.shape, dtype=np.float32)
    for thing in casters:
        mass = thing.shadow_m
        outside = np.maximum(_distance(thing, x, y), np.float32(0))
        depth = np.float32(0.62 / (1.0 + 1.3 * mass))
        open_ *= np.float32(1) - depth * np.exp(outside * np.float32(-1.0 / (0.05 + 0.25 * mass)))
        rise = np.float32(mass / (bulb_z - level))
        shifted = _distance(thing, x + (np.float32(bulb_x) - x) * rise, y + (np.float32(bulb_y) - y) * rise)
        soft = np.float32(0.05 + 0.14 * mass)
        cover = np.clip(np.float32(0.5) - shifted / (np.float32(2) * soft), np.float32(0), np.float32(1))
        lit *= np.float32(1) - np.float32(0.75) * cover * cover * (np.float32(3) - np.float32(2) * cover)
    direct[where] = lit * np.sqrt(open_)
    around[where] = open_


def _distance(thing: Thing, x: Float32, y: Float32) -> Float32:
    """Signed distance of floor points to the edge of a footprint, negative inside, metres."""
    dx, dy = x - np.float32(thing.position[0]), y - np.float32(thing.position[1])
    if thing.name in _ROUND:
        from_axis: Float32 = np.sqrt(dx * dx + dy * dy) - np.float32(max(thing.half_width, thing.half_depth) * 0.9)
        return from_axis
    cos, sin = np.float32(np.cos(thing.yaw)), np.float32(np.sin(thing.yaw))
    along = np.abs(cos * dx + sin * dy) - np.float32(thing.half_width)
    across = np.abs(cos * dy - sin * dx) - np.float32(thing.half_depth)
    zero = np.float32(0)
    outer_along, outer_across = np.maximum(along, zero), np.maximum(across, zero)
    result: Float32 = np.sqrt(outer_along * outer_along + outer_across * outer_across) + np.minimum(
        np.maximum(along, across), zero
    )
    return result
