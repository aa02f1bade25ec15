"""Colours by name, and the materials that are made of them."""

import colorsys
from typing import NamedTuple

from sak_core.miniature.rooms.draws import Draws

PLAIN, STRIPES, CHECKS, WOOD, MOTTLE, PLANKS, SPINES, PAINT = range(8)

RGB = tuple[float, float, float]

_HUES: dict[str, tuple[float, float]] = {
    "red": (-0.03, 0.02),
    "orange": (0.055, 0.085),
    "yellow": (0.13, 0.17),
    "green": (0.25, 0.40),
    "teal": (0.46, 0.53),
    "blue": (0.58, 0.67),
    "purple": (0.72, 0.79),
    "pink": (0.86, 0.93),
}
_WOODS: tuple[tuple[float, float], ...] = ((0.45, 0.75), (0.5, 0.55), (0.6, 0.35), (0.4, 0.85))


class Material(NamedTuple):
    """A surface: two linear RGB colours mixed by a solid texture.

    `frequency` counts repeats a metre along `axis` (unit vector in the thing's frame); `gloss` is the
    strength of highlights; `emission` the light the surface gives off, in multiples of its colour.
    """

    color: RGB
    second: RGB
    texture: int = PLAIN
    frequency: float = 1.0
    axis: RGB = (1.0, 0.0, 0.0)
    phase: float = 0.0
    gloss: float = 0.0
    emission: float = 0.0


def linear(red: float, green: float, blue: float) -> RGB:
    """Linear light of display values in [0, 1] (plain power law, 2.2)."""
    return (max(red, 0.0) ** 2.2, max(green, 0.0) ** 2.2, max(blue, 0.0) ** 2.2)


def shade_of(draws: Draws, name: str, vivid: float) -> RGB:
    """A linear RGB colour that goes by this name.

    Args:
        draws: where the variation comes from.
        name: one of `labels.COLORS`.
        vivid: 0 for muted to 1 for saturated shades.
    """
    if name == "white":
        value = draws.between(0.88, 0.96)
        return linear(value, value * draws.between(0.96, 1.0), value * draws.between(0.92, 1.0))
    if name == "grey":
        value = draws.between(0.42, 0.62)
        return linear(value, value, value * draws.between(0.95, 1.05))
    if name == "black":
        value = draws.between(0.1, 0.2)
        return linear(value, value, value * draws.between(0.95, 1.1))
    if name == "brown":
        hue, saturation = draws.between(0.055, 0.09), draws.between(0.5, 0.7)
        return linear(*colorsys.hsv_to_rgb(hue, saturation, draws.between(0.35, 0.5)))
    low, high = _HUES[name]
    saturation = draws.between(0.40, 0.5) + 0.38 * vivid
    value = draws.between(0.55, 0.85) + 0.12 * vivid
    return linear(*colorsys.hsv_to_rgb(draws.between(low, high) % 1.0, saturation, value))


def pale(draws: Draws, strength: float) -> tuple[str, RGB]:
    """The name and the linear RGB of a light wall paint, whose saturation grows with strength."""
    if draws.chance(0.35):
        return "white", shade_of(draws, "white", 0.0)
    name = draws.pick(tuple(_HUES))
    low, high = _HUES[name]
    saturation = draws.between(0.08, 0.3) * strength
    return name, linear(*colorsys.hsv_to_rgb(draws.between(low, high) % 1.0, saturation, draws.between(0.7, 0.95)))


def wood(draws: Draws) -> RGB:
    """The linear RGB of a wood, from pale birch to dark walnut."""
    saturation, value = draws.pick(_WOODS)
    saturation, value = saturation * draws.between(0.8, 1.1), value * draws.between(0.9, 1.1)
    return linear(*colorsys.hsv_to_rgb(draws.between(0.06, 0.1), saturation, min(value, 1.0)))


def neutral(draws: Draws) -> Material:
    """The material of legs, frames, heads and pots, alike for every class: wood, metal, white or black."""
    gloss = draws.between(0.0, 0.5)
    if draws.chance(0.55):
        color = wood(draws)
        darker = (color[0] * 0.75, color[1] * 0.7, color[2] * 0.65)
        return Material(color, darker, WOOD, 9.0, (0.35, 0.2, 0.9), draws.unit() * 7, gloss * 0.5)
    color = shade_of(draws, draws.pick(("white", "grey", "black")), 0.0)
    return Material(color, color, gloss=gloss)


def covering(draws: Draws, name: str, vivid: float) -> Material:
    """The material of a thing's main surfaces, in the colour of this name."""
    color = shade_of(draws, name, vivid)
    texture = draws.weighted(((PLAIN, 5.0), (MOTTLE, 1.5), (STRIPES, 1.0), (CHECKS, 0.8), (WOOD, 1.0)))
    fade = draws.between(0.45, 0.75)
    second = (color[0] * fade, color[1] * fade, color[2] * fade)
    if texture in (STRIPES, CHECKS) and draws.chance(0.4) and name not in ("white", "grey"):
        second = (0.4 * color[0] + 0.45, 0.4 * color[1] + 0.45, 0.4 * color[2] + 0.45)
    frequency = {STRIPES: 7.0, CHECKS: 6.0, WOOD: 8.0, MOTTLE: 9.0}.get(texture, 1.0) * draws.between(0.7, 1.3)
    axis = draws.pick(((1.0, 0.02, 0.03), (0.02, 0.03, 1.0), (0.6, 0.53, 0.6)))
    return Material(color, second, texture, frequency, axis, draws.unit() * 7, draws.between(0.0, 0.45))


def paint(draws: Draws, color: RGB, emission: float = 0.0) -> Material:
    """The material of canvases, panels and views from windows: soft patches of two colours."""
    other = shade_of(draws, draws.pick(tuple(_HUES)), 0.5)
    return Material(color, other, PAINT, draws.between(2.0, 6.0), (1.0, 0.0, 0.0), draws.unit() * 7, emission=emission)
