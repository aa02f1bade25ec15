"""From surfaces to colours: textures, a bulb, daylight, lit lamps, soft shadows, exposure and noise."""

from dataclasses import dataclass

import numpy as np

from sak_core.miniature.rooms.arrays import Float32, Float64, Int, UInt8
from sak_core.miniature.rooms.draws import Draws
from sak_core.miniature.rooms.geometry import (
    Camera,
    SolidTable,
    curved_normals,
    facet_normals,
)
from sak_core.miniature.rooms.layout import Room
from sak_core.miniature.rooms.materials import Material
from sak_core.miniature.rooms.shadows import floor_shadows
from sak_core.miniature.rooms.solids import FACES
from sak_core.miniature.rooms.textures import mixture

_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


@dataclass(frozen=True)
class Surfaces:
    """What the pixels of a picture see, flattened to n = H * W."""

    facet: Int
    """(n,)"""
    solid: Int
    """(n,)"""
    thing: Int
    """(n,) instance numbers, 0 for the shell."""
    point: Float32
    """(3, n) world points, metres."""
    normal: Float32
    """(3, n) world normals."""


@dataclass(frozen=True)
class Finish:
    """How the camera turns light into a picture."""

    exposure: float
    """Mean linear light of the picture before the tone curve."""
    gamma: float
    tint: tuple[float, float, float]
    blur: float
    """Share of the four neighbours in a pixel."""
    noise: float
    """Standard deviation of the sensor's noise, of 255."""


def draw_finish(draws: Draws) -> Finish:
    """The camera's settings for one scene."""
    warm = draws.between(-0.08, 0.08)
    return Finish(
        draws.between(0.3, 0.5),
        draws.between(2.0, 2.4),
        (1.0 + warm, 1.0 + draws.between(-0.02, 0.02), 1.0 - warm),
        draws.between(0.1, 0.35),
        draws.between(0.8, 3.0),
    )


def surfaces(room: Room, table: SolidTable, camera: Camera, depth: Float64, facet: Int) -> Surfaces:
    """World points and normals of every pixel of a cast picture."""
    size = (depth.shape[0], depth.shape[1])
    u, w = camera.rays(size)
    point = np.empty((3, *size))
    for axis in range(3):
        right, up, forward = camera.axes[:, axis]
        point[axis] = camera.eye[axis] + depth * ((right * u + forward)[None, :] + (up * w)[:, None])
    flat_point, flat_facet = point.reshape(3, -1), facet.reshape(-1)
    normal = facet_normals(table).T.astype(np.float32)[:, flat_facet]
    curved = np.flatnonzero((normal[0] == 0) & (normal[1] == 0) & (normal[2] == 0))
    solid = flat_facet // FACES
    if curved.size:
        normal[:, curved] = curved_normals(table, solid[curved], flat_point[:, curved].T).T
    owners = [0, *(number for number, thing in enumerate(room.things, start=1) for _ in thing.solids)]
    return Surfaces(flat_facet, solid, np.array(owners)[solid], flat_point.astype(np.float32), normal)


def illuminate(room: Room, seen: Surfaces) -> Float32:
    """Linear light (3, n) that the surfaces send to the camera."""
    materials = _facet_materials(room)
    color, gloss, emission = _albedo(room, seen, materials)
    point, normal = seen.point, seen.normal
    shade, hollow = floor_shadows(room, seen.facet, seen.thing, point, normal)

    light = (_sky(room, point, normal) * hollow)[None, :] * np.float32(room.ambient)
    light = np.repeat(light, 3, axis=0)
    bulb, direction = _lamp_light(point, normal, room.bulb, 1.0)
    light += _column(room.bulb_color) * (bulb * shade)
    light += _column(room.daylight_color) * _daylight(room, point, normal, hollow)
    for thing in room.things:
        if thing.glow_m:
            x, y, z = thing.position
            glow, _ = _lamp_light(point, normal, (x, y, z + thing.glow_m), 0.25)
            light += _column((0.6, 0.48, 0.3)) * glow
    result: Float32 = color * (light + emission)
    shiny = np.flatnonzero(gloss > 0)
    if shiny.size:
        result[:, shiny] += _highlights(room, point[:, shiny], normal[:, shiny], direction[:, shiny]) * (
            gloss[shiny] * shade[shiny]
        )
    return result


def develop(light: Float32, size: tuple[int, int], finish: Finish) -> Float32:
    """Expose, tint, compress and blur linear light (3, H * W) to display values (3, H, W) in [0, 1]."""
    mean = float((_LUMA @ light).mean()) + 1e-6
    gain = np.array(finish.tint, dtype=np.float32) * np.float32(finish.exposure / mean)
    picture: Float32 = np.float32(1.0) - np.exp(-light * gain[:, None])
    np.power(picture, np.float32(1.0 / finish.gamma), out=picture)
    picture = picture.reshape(3, *size)
    side = np.float32(finish.blur / 4)
    rows = np.concatenate([picture[:, :1], picture, picture[:, -1:]], axis=1)
    columns = np.concatenate([picture[:, :, :1], picture, picture[:, :, -1:]], axis=2)
    around = rows[:, :-2] + rows[:, 2:] + columns[:, :, :-2] + columns[:, :, 2:]
    blurred: Float32 = picture * np.float32(1 - finish.blur) + around * side
    return blurred


def quantise(picture: Float32, finish: Finish, generator: np.random.Generator) -> UInt8:
    """Add noise to display values (3, H, W) and round them to uint8 (H, W, 3)."""
    noise = generator.standard_normal(picture.shape, dtype=np.float32) * np.float32(finish.noise)
    values = np.clip(picture * np.float32(255) + noise + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def _column(color: tuple[float, float, float]) -> Float32:
    return np.array(color, dtype=np.float32)[:, None]


def _facet_materials(room: Room) -> list[Material]:
    """The material of every solid, those of the shell's six faces first."""
    return [*room.shell, *(solid.material for thing in room.things for solid in thing.solids)]


def _albedo(room: Room, seen: Surfaces, materials: list[Material]) -> tuple[Float32, Float32, Float32]:
    """Reflected share (3, n), gloss (n,) and emission (n,) of every pixel."""
    number = np.where(seen.solid == 0, seen.facet, seen.solid + (FACES - 1))
    values = np.array(
        [
            (*m.color, *m.second, *m.axis, m.frequency, m.phase, m.gloss, m.emission, float(m.texture))
            for m in materials
        ],
        dtype=np.float32,
    )
    each = values.T[:, number]
    textured = np.flatnonzero(each[13] > 0)
    color = each[0:3]
    if textured.size:
        local = _local_points(room, seen.thing[textured], seen.point[:, textured])
        part = each[:, textured]
        share = mixture(part[13].astype(np.int64), local, part[6:9], part[9], part[10])
        color[:, textured] += (part[3:6] - part[0:3]) * share
    return color, each[11], each[12]


def _local_points(room: Room, thing: Int, point: Float32) -> Float32:
    """World points (3, n) in the frames of the things they lie on; the shell's are the world's."""
    frames = np.array(
        [(0.0, 0.0, 0.0, 1.0, 0.0), *((*t.position, np.cos(t.yaw), np.sin(t.yaw)) for t in room.things)],
        dtype=np.float32,
    ).T[:, thing]
    x, y, z = point - frames[:3]
    cos, sin = frames[3], frames[4]
    return np.stack([cos * x + sin * y, cos * y - sin * x, z])


def _sky(room: Room, point: Float32, normal: Float32) -> Float32:
    """Light from all around: more from above, less in the corners of the room."""
    bounds = room.bounds
    result: Float32 = np.float32(0.8) + np.float32(0.2) * normal[2]
    for axis, distance in (
        (0, point[0] - np.float32(bounds.left)),
        (0, np.float32(bounds.right) - point[0]),
        (1, np.float32(bounds.back) - point[1]),
        (2, point[2]),
        (2, np.float32(bounds.height) - point[2]),
    ):
        turned = np.float32(1) - np.abs(normal[axis])
        result *= np.float32(1) - np.float32(0.45) * np.exp(distance * np.float32(-5.0)) * turned
    return result


def _lamp_light(
    point: Float32, normal: Float32, at: tuple[float, float, float], near: float
) -> tuple[Float32, Float32]:
    """Light (n,) of a point light on surfaces, and the unit directions (3, n) towards it."""
    towards = _column(at) - point
    squared = (towards * towards).sum(axis=0)
    towards /= np.sqrt(squared + np.float32(1e-6))
    facing = np.maximum((towards * normal).sum(axis=0), np.float32(0))
    return facing * np.float32(3.0) / (np.float32(near) + squared), towards


def _daylight(room: Room, point: Float32, normal: Float32, hollow: Float32) -> Float32:
    """Light (n,) of a window, taken as a small surface that shines into the room."""
    at, facing = room.opening
    towards = _column(at) - point
    squared = (towards * towards).sum(axis=0) + np.float32(0.05)
    shown = np.maximum((towards * normal).sum(axis=0), np.float32(0))
    leaving = np.maximum(-(towards * _column(facing)).sum(axis=0), np.float32(0))
    result: Float32 = hollow * shown * leaving / (squared * (squared + np.float32(0.6))) * np.float32(2.5)
    return result


def _highlights(room: Room, point: Float32, normal: Float32, direction: Float32) -> Float32:
    """Reflection of the bulb (n,) (Blinn-Phong, exponent 32)."""
    to_eye = _column(tuple(room.camera.eye.tolist())) - point
    to_eye /= np.sqrt((to_eye * to_eye).sum(axis=0))
    half = direction + to_eye
    half /= np.sqrt((half * half).sum(axis=0)) + np.float32(1e-6)
    cosine = np.maximum((half * normal).sum(axis=0), np.float32(0))
    for _ in range(5):
        cosine = cosine * cosine
    result: Float32 = cosine
    return result
