"""One scene: a picture and its exact labels, a pure function of (seed, index, size)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

from sak_core.miniature.rooms import salience
from sak_core.miniature.rooms.arrays import Float32, Float64, Int, UInt8, UInt16
from sak_core.miniature.rooms.draws import Draws
from sak_core.miniature.rooms.geometry import SolidTable, cast, tabulate
from sak_core.miniature.rooms.labels import (
    BACKGROUND,
    FRONT_M,
    PART_CLASS,
    PART_INDEX,
    boundary,
)
from sak_core.miniature.rooms.layout import Room, draw_room
from sak_core.miniature.rooms.shading import (
    Finish,
    Surfaces,
    develop,
    draw_finish,
    illuminate,
    quantise,
    surfaces,
)

RENDERER_VERSION = 1
"""Grows with every change of a pixel or a label."""

CANONICAL_SIZE = (96, 96)
"""Where a scene is judged, whatever the size it is rendered at, so that every size shows the same scene."""

MOST_ATTEMPTS = 24
_CLEAR_ATTEMPTS = 8
_LEAST_THINGS = 4
_AREA_SHARE = (0.012, 0.33)
"""Least and greatest share of the picture that the salient thing covers."""

_LAYOUT, _FINISH, _NOISE = range(3)


@dataclass(frozen=True)
class SceneObject:
    """One thing that can be seen in a scene."""

    instance: int
    """Its number in `Scene.instances`."""
    name: str
    """Its class, one of `labels.CLASSES`."""
    color: str
    """The name of its main colour, one of `labels.COLORS`."""
    box: tuple[int, int, int, int]
    """top, left, bottom, right of its visible pixels; bottom and right are one past the last."""
    salience: float
    """Its score (see `salience.scores`); 0 for windows and rugs, which do not compete."""
    place: str
    """Where it is, one of `labels.PLACES`."""


@dataclass(frozen=True)
class Scene:
    """A picture of a room with its labels; all arrays have the picture's height and width."""

    image: UInt8
    """(H, W, 3)"""
    semseg: UInt8
    """(H, W) indices into `labels.CLASSES`"""
    parts: UInt8
    """(H, W) indices into `labels.PARTS`"""
    saliency: UInt8
    """(H, W) 1 on the salient thing, 0 elsewhere"""
    depth: Float32
    """(H, W) metres along the optical axis"""
    normals: Float32
    """(H, W, 3) unit vectors in the camera's frame: x right, y up, z towards the camera"""
    boundary: UInt8
    """(H, W) 1 where the class or the instance changes (see `labels.boundary`)"""
    instances: UInt8
    """(H, W) 0 for walls, floor and ceiling"""
    facets: UInt16
    """(H, W) one number for each flat face or curved surface"""
    objects: tuple[SceneObject, ...]
    """What can be seen, by instance number"""
    attributes: dict[str, str]
    """The "wall" colour, "floor" (wood, tiles, carpet, stone) and "light" (day, evening, night)"""

    @property
    def salient(self) -> SceneObject:
        """The salient thing (in pictures wider than high it need not be the largest)."""
        return max(self.objects, key=lambda thing: thing.salience)


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a scene, judged at the canonical size."""

    number: int
    room: Room
    table: SolidTable
    finish: Finish
    depth: Float64
    facet: Int
    seen: Surfaces
    picture: Float32
    scores: dict[int, float]
    ratio: float
    """The best score over the second best; 0 for attempts that are not to be used."""


def render_scene(seed: int, index: int, size: tuple[int, int] = CANONICAL_SIZE) -> Scene:
    """Render the scene that (seed, index) names.

    The scene is redrawn until one thing in it is clearly more salient than all others, at most
    `MOST_ATTEMPTS` times; then the clearest attempt is kept. Sizes other than the canonical one show the
    same scene at another resolution: the shorter side spans the same field of view.

    Args:
        seed: names the collection, at least 0.
        index: names the scene, at least 0.
        size: height and width in pixels, each at least 8.

    Raises:
        ValueError: if seed or index is negative or a side is shorter than 8 pixels.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index of a room are at least 0; got seed {seed}, index {index}")
    if min(size) < 8:
        raise ValueError(f"a room is rendered at 8 pixels a side or more; got size {size[0]}x{size[1]}")
    kept = _settle(seed, index)
    noise = np.random.default_rng((seed, index, kept.number, _NOISE))
    if tuple(size) == CANONICAL_SIZE:
        return _scene(kept, kept.depth, kept.seen, kept.picture, noise)
    depth, facet = cast(kept.table, kept.room.camera, size)
    seen = surfaces(kept.room, kept.table, kept.room.camera, depth, facet)
    picture = develop(illuminate(kept.room, seen), size, kept.finish)
    return _scene(kept, depth, seen, picture, noise)


def _settle(seed: int, index: int) -> _Attempt:
    """The first attempt whose salient thing is clear enough, or else the clearest of all."""
    best: _Attempt | None = None
    for number in range(MOST_ATTEMPTS):
        attempt = _attempt(seed, index, number)
        if attempt is None:
            continue
        if best is None or attempt.ratio > best.ratio:
            best = attempt
        wanted = salience.CLEAR_RATIO if number < _CLEAR_ATTEMPTS else salience.LEAST_RATIO
        if best.ratio >= wanted:
            return best
    if best is None:
        raise RuntimeError(f"no usable room in {MOST_ATTEMPTS} attempts for seed {seed}, index {index}")
    return best


def _attempt(seed: int, index: int, number: int) -> _Attempt | None:
    """Draw, cast and judge one room; None where it holds too few things."""
    room = draw_room(Draws(seed, index, number, _LAYOUT))
    if room.on_floor < _LEAST_THINGS:
        return None
    bounds = room.bounds
    half = np.array([bounds.right - bounds.left, bounds.back - bounds.front, bounds.height]) / 2
    centre = np.array([bounds.right + bounds.left, bounds.back + bounds.front, bounds.height]) / 2
    table = tabulate(centre, half, room.things)
    depth, facet = cast(table, room.camera, CANONICAL_SIZE)
    seen = surfaces(room, table, room.camera, depth, facet)
    finish = draw_finish(Draws(seed, index, number, _FINISH))
    picture = develop(illuminate(room, seen), CANONICAL_SIZE, finish)
    instances = seen.thing.reshape(CANONICAL_SIZE)
    rivals = [n for n, thing in enumerate(room.things, start=1) if thing.name not in BACKGROUND]
    found = salience.scores(picture, instances, rivals)
    ranked = sorted(found, key=lambda n: -found[n])
    share = int((instances == ranked[0]).sum()) / instances.size
    ratio = found[ranked[0]] / max(found[ranked[1]], 1e-6)
    if not _AREA_SHARE[0] <= share <= _AREA_SHARE[1]:
        ratio = min(ratio, 1.0) * 0.1
    return _Attempt(number, room, table, finish, depth, facet, seen, picture, found, ratio)


def _scene(
    kept: _Attempt,
    depth: Float64,
    seen: Surfaces,
    picture: Float32,
    noise: np.random.Generator,
) -> Scene:
    """Put the labels together from what every pixel sees."""
    size = (depth.shape[0], depth.shape[1])
    part_of_solid = np.array(
        [PART_INDEX["wall"], *(PART_INDEX[s.part] for t in kept.room.things for s in t.solids)],
        dtype=np.uint8,
    )
    parts = part_of_solid[seen.solid]
    parts[seen.facet == 4] = PART_INDEX["floor"]
    parts[seen.facet == 5] = PART_INDEX["ceiling"]
    semseg = np.array(PART_CLASS, dtype=np.uint8)[parts].reshape(size)
    instances = seen.thing.astype(np.uint8).reshape(size)
    axes = (kept.room.camera.axes * np.array([[1.0], [1.0], [-1.0]])).astype(np.float32)
    normals = sum(seen.normal[axis][:, None] * axes[None, :, axis] for axis in range(3))
    assert isinstance(normals, np.ndarray)
    winner = max(kept.scores, key=lambda n: kept.scores[n])
    return Scene(
        image=quantise(picture, kept.finish, noise),
        semseg=semseg,
        parts=parts.reshape(size),
        saliency=(instances == winner).astype(np.uint8),
        depth=depth.astype(np.float32),
        normals=normals.reshape(*size, 3),
        boundary=boundary(semseg, instances),
        instances=instances,
        facets=seen.facet.astype(np.uint16).reshape(size),
        objects=_objects(kept, instances),
        attributes=dict(kept.room.attributes),
    )


def _objects(kept: _Attempt, instances: UInt8) -> tuple[SceneObject, ...]:
    """Describe every thing that has a visible pixel."""
    found = []
    canonical = kept.seen.thing.reshape(CANONICAL_SIZE)
    for number, extent in enumerate(find_objects(instances), start=1):
        if extent is None:
            continue
        thing = kept.room.things[number - 1]
        rows, columns = extent
        box = (rows.start, columns.start, rows.stop, columns.stop)
        place = _place(kept, canonical == number, thing.position)
        score = kept.scores.get(number, 0.0)
        found.append(SceneObject(number, thing.name, thing.color, box, score, place))
    return tuple(found)


def _place(kept: _Attempt, mask: npt.NDArray[np.bool_], position: tuple[float, float, float]) -> str:
    """The third of the canonical picture, and the side of `FRONT_M`, that a thing is in."""
    if mask.any():
        columns = np.flatnonzero(mask.any(axis=0))
        third = int((columns[0] + columns[-1] + 1) / 2 * 3 / mask.shape[1])
        ahead = float(kept.depth[mask].mean())
    else:
        camera = kept.room.camera
        right, _, ahead = (camera.axes @ (np.array(position) - camera.eye)).tolist()
        third = 0 if right < 0 else 2
    return f"{'front' if ahead < FRONT_M else 'back'} {('left', 'middle', 'right')[third]}"
