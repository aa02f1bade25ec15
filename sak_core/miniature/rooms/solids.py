"""The four solids everything is built of, and how a thing made of them is described."""

from dataclasses import dataclass, field
from typing import NamedTuple

from sak_core.miniature.rooms.materials import Material

BOX, FRUSTUM, ELLIPSOID = range(3)
FACES = 6
"""Facets a solid may have: a box six; a frustum its side, bottom and top (0, 1, 2); an ellipsoid one (0)."""


class Solid(NamedTuple):
    """One solid in the frame of its thing: x to its right, y to its back, z up, in metres.

    A box has half sizes `half`. A frustum (cylinder, cone) stands along z, `half[0]` and `half[1]` are the
    half axes of its wider end, `half[2]` half its height; the narrower end is `taper` times as wide, at the
    top where taper is positive, at the bottom where it is negative. An ellipsoid has half axes `half`.
    """

    kind: int
    part: str
    material: Material
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    taper: float = 1.0
    tilt: float = 0.0
    """Rotation about its own x axis, radians, before `turn`."""
    turn: float = 0.0
    """Rotation about z, radians."""


@dataclass
class Thing:
    """A piece of furniture, a person, a picture, ...: solids standing on z = 0 of their own frame.

    `half_width` (x) and `half_depth` (y) are its footprint; `shadow_m` the height at which the mass that
    throws its shadow lies; `top_m` the height of a surface that carries small things, or 0.
    """

    name: str
    color: str
    solids: list[Solid]
    half_width: float
    half_depth: float
    height: float
    shadow_m: float = 0.0
    top_m: float = 0.0
    glow_m: float = 0.0
    """Height of a lit lamp's light above its foot, or 0."""
    position: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0))
    yaw: float = 0.0
