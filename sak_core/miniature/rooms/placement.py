"""Where things find space: footprints that do not overlap, inside the room and inside the picture."""

import math
from dataclasses import dataclass

from sak_core.miniature.rooms.draws import Draws
from sak_core.miniature.rooms.solids import Thing

_CLEARANCE_M = 0.04
_NEAREST_M = 1.9


@dataclass(frozen=True)
class Bounds:
    """The shell of the room in world metres; the camera stands at y = 0 and looks along y."""

    left: float
    right: float
    front: float
    back: float
    height: float


@dataclass(frozen=True)
class Sight:
    """The camera seen from above: where it stands, its yaw and the tangent of half its field of view."""

    x: float
    y: float
    yaw: float
    slope: float

    def point(self, ahead: float, aside: float) -> tuple[float, float]:
        """The floor point `ahead` metres along the line of sight and `aside` to its right."""
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        return self.x - sin * ahead + cos * aside, self.y + cos * ahead + sin * aside

    def sees(self, x: float, y: float, share: float) -> bool:
        """Whether a floor point is far enough and within this share of the picture's width."""
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        ahead = -sin * (x - self.x) + cos * (y - self.y)
        aside = cos * (x - self.x) + sin * (y - self.y)
        return ahead > _NEAREST_M and abs(aside) < share * self.slope * ahead


@dataclass(frozen=True)
class Wall:
    """A wall that can be seen: yaw of things with their backs to it, where it is, and its extent."""

    yaw: float
    at: float
    low: float
    high: float

    def point(self, along: float, away: float) -> tuple[float, float]:
        """The floor point at `along` the wall and `away` metres from it."""
        if self.yaw == 0.0:
            return along, self.at - away
        return (self.at + away, along) if self.yaw > 0 else (self.at - away, along)


def walls_of(bounds: Bounds) -> tuple[Wall, Wall, Wall]:
    """The back, left and right walls."""
    return (
        Wall(0.0, bounds.back, bounds.left, bounds.right),
        Wall(math.pi / 2, bounds.left, 1.2, bounds.back),
        Wall(-math.pi / 2, bounds.right, 1.2, bounds.back),
    )


def overlap(one: Thing, other: Thing) -> bool:
    """Whether two footprints, turned rectangles, come closer than a hand's breadth (separating axes)."""
    dx, dy = other.position[0] - one.position[0], other.position[1] - one.position[1]
    for yaw in (one.yaw, other.yaw):
        sin, cos = math.sin(yaw), math.cos(yaw)
        along, across = abs(cos * dx + sin * dy), abs(cos * dy - sin * dx)
        reach_along = reach_across = _CLEARANCE_M
        for thing in (one, other):
            turned_sin, turned_cos = abs(math.sin(thing.yaw - yaw)), abs(math.cos(thing.yaw - yaw))
            reach_along += thing.half_width * turned_cos + thing.half_depth * turned_sin
            reach_across += thing.half_width * turned_sin + thing.half_depth * turned_cos
        if along > reach_along or across > reach_across:
            return False
    return True


def inside(thing: Thing, bounds: Bounds) -> bool:
    """Whether the whole footprint is in the room and not in front of the camera's feet."""
    sin, cos = abs(math.sin(thing.yaw)), abs(math.cos(thing.yaw))
    reach_x = thing.half_width * cos + thing.half_depth * sin + 0.005
    reach_y = thing.half_width * sin + thing.half_depth * cos + 0.005
    x, y, _ = thing.position
    return bounds.left + reach_x <= x <= bounds.right - reach_x and 0.9 + reach_y <= y <= bounds.back - reach_y


def stand(
    draws: Draws, thing: Thing, placed: list[Thing], bounds: Bounds, sight: Sight, against: bool, tries: int
) -> bool:
    """Give a thing a free place on the floor and turn it; False when none was found.

    Args:
        draws: the stream of this attempt.
        thing: what to place; its position and yaw are set.
        placed: what stands already.
        bounds: the room.
        sight: the camera.
        against: with its back against a wall, or anywhere.
        tries: how many places to try.
    """
    for _ in range(tries):
        if against:
            wall = draws.pick(walls_of(bounds))
            reach = thing.half_width + 0.01
            if wall.high - wall.low <= 2 * reach:
                continue
            along = draws.between(wall.low + reach, wall.high - reach)
            x, y = wall.point(along, thing.half_depth + draws.between(0.006, 0.04))
            thing.yaw = wall.yaw
        else:
            ahead = _NEAREST_M + 2.6 * draws.unit() ** 1.3
            x, y = sight.point(ahead, draws.between(-0.85, 0.85) * sight.slope * ahead)
            thing.yaw = _facing(draws, x, y, thing, placed, sight)
        thing.position = (x, y, 0.0)
        if not sight.sees(x, y, 0.9) or not inside(thing, bounds):
            continue
        if not any(overlap(thing, other) for other in placed):
            return True
    return False


def _facing(draws: Draws, x: float, y: float, thing: Thing, placed: list[Thing], sight: Sight) -> float:
    """Chairs mostly face the nearest table; people and sofas roughly the camera; the rest any way."""
    if thing.name == "chair" and draws.chance(0.6):
        tables = [other for other in placed if other.name == "table"]
        if tables:
            near = min(tables, key=lambda other: math.hypot(other.position[0] - x, other.position[1] - y))
            return math.atan2(near.position[0] - x, -(near.position[1] - y)) + draws.between(-0.3, 0.3)
    to_camera = math.atan2(sight.x - x, -(sight.y - y))
    if thing.name in ("person", "sofa", "cabinet", "shelf", "bed"):
        return to_camera + draws.between(-1.0, 1.0)
    return draws.between(-math.pi, math.pi)


def put_on(draws: Draws, thing: Thing, carrier: Thing, others: list[Thing]) -> bool:
    """Give a small thing a free place on a carrier's top; False when none was found."""
    room_x, room_y = (
        carrier.half_width - thing.half_width - 0.02,
        carrier.half_depth - thing.half_depth - 0.03,
    )
    if room_x < 0 or room_y < 0:
        return False
    sin, cos = math.sin(carrier.yaw), math.cos(carrier.yaw)
    if thing.name == "screen":
        thing.yaw = carrier.yaw + draws.between(-0.15, 0.15)
    else:
        thing.yaw = draws.between(-math.pi, math.pi)
    for _ in range(4):
        x, y = draws.between(-room_x, room_x), draws.between(-room_y, room_y)
        thing.position = (
            carrier.position[0] + cos * x - sin * y,
            carrier.position[1] + sin * x + cos * y,
            carrier.top_m,
        )
        if not any(overlap(thing, other) for other in others):
            return True
    return False
