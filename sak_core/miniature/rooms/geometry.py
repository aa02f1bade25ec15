"""Which surface each pixel sees, and how far away it is: exact ray casting with numpy.

World frame: x right, y into the room, z up, metres. A ray is `forward + u * right + w * up`, so that the
parameter along it is the depth along the optical axis. Each solid is cast only inside the rectangle of
pixels that its bounding box covers.
"""

from dataclasses import dataclass

import numpy as np

from sak_core.miniature.rooms.arrays import Float64, Int
from sak_core.miniature.rooms.solids import BOX, ELLIPSOID, FACES, FRUSTUM, Solid, Thing

_CORNERS: Float64 = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_NEAR_M = 0.05


@dataclass(frozen=True)
class Camera:
    """A pinhole: `eye` (3,) in metres, `axes` (3, 3) with rows right, up, forward, field of view in radians.

    The field of view is that of the picture's shorter side.
    """

    eye: Float64
    axes: Float64
    view_rad: float

    @staticmethod
    def looking(eye: tuple[float, float, float], yaw: float, pitch: float, view_rad: float) -> "Camera":
        """A level camera turned by yaw to the left and by pitch downwards, radians."""
        sin_yaw, cos_yaw, sin_pitch, cos_pitch = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
        right = np.array([cos_yaw, sin_yaw, 0.0])
        forward = np.array([-sin_yaw * cos_pitch, cos_yaw * cos_pitch, -sin_pitch])
        return Camera(np.array(eye), np.stack([right, np.cross(right, forward), forward]), view_rad)

    def focal_px(self, size: tuple[int, int]) -> float:
        """Focal length in pixels at this size (height, width)."""
        return min(size) / (2.0 * float(np.tan(self.view_rad / 2)))

    def rays(self, size: tuple[int, int]) -> tuple[Float64, Float64]:
        """Slopes of the pixels' centres: u (W,) to the right and w (H,) upwards."""
        focal = self.focal_px(size)
        u: Float64 = (np.arange(size[1], dtype=np.float64) + 0.5 - size[1] / 2) / focal
        w: Float64 = -(np.arange(size[0], dtype=np.float64) + 0.5 - size[0] / 2) / focal
        return u, w


@dataclass(frozen=True)
class SolidTable:
    """All N solids of a scene, solid 0 being the shell of the room, seen from inside.

    A world point p is at `matrix @ (p - centre)` in the solid's own frame, in which an ellipsoid is the unit
    sphere, a frustum has a circular section of radius `middle + slope * z`, and z of frustums and all axes
    of boxes are in metres.
    """

    kind: Int
    """(N,)"""
    centre: Float64
    """(N, 3)"""
    matrix: Float64
    """(N, 3, 3)"""
    half: Float64
    """(N, 3) half sizes of the bounding box in the solid's unscaled frame."""
    rotation: Float64
    """(N, 3, 3) world to the solid's unscaled frame."""
    middle: Float64
    """(N,)"""
    slope: Float64
    """(N,)"""


def tabulate(room_centre: Float64, room_half: Float64, things: list[Thing]) -> SolidTable:
    """The table of the shell's and of all things' solids, in the order of the things."""
    solids: list[Solid] = [solid for thing in things for solid in thing.solids]
    count = len(solids) + 1
    kind = np.array([BOX, *(solid.kind for solid in solids)])
    half = np.array([room_half, *(solid.half for solid in solids)])
    local = np.array([(0.0, 0.0, 0.0), *(solid.centre for solid in solids)])
    tilt = np.array([0.0, *(solid.tilt for solid in solids)])
    turn = np.array([0.0, *(solid.turn for solid in solids)])
    yaw = np.array([0.0, *(thing.yaw for thing in things for _ in thing.solids)])
    base = np.array([room_centre, *(thing.position for thing in things for _ in thing.solids)])
    taper = np.array([1.0, *(solid.taper for solid in solids)])

    sin, cos = np.sin(yaw), np.cos(yaw)
    centre = base.copy()
    centre[:, 0] += cos * local[:, 0] - sin * local[:, 1]
    centre[:, 1] += sin * local[:, 0] + cos * local[:, 1]
    centre[:, 2] += local[:, 2]

    sin, cos, sin_tilt, cos_tilt = np.sin(yaw + turn), np.cos(yaw + turn), np.sin(tilt), np.cos(tilt)
    rotation = np.zeros((count, 3, 3))
    rotation[:, 0, 0], rotation[:, 0, 1] = cos, sin
    rotation[:, 1, 0], rotation[:, 1, 1], rotation[:, 1, 2] = -sin * cos_tilt, cos * cos_tilt, sin_tilt
    rotation[:, 2, 0], rotation[:, 2, 1], rotation[:, 2, 2] = sin * sin_tilt, -cos * sin_tilt, cos_tilt

    scale = np.ones((count, 3))
    round_ = kind == FRUSTUM
    scale[round_, 1] = half[round_, 0] / half[round_, 1]
    scale[kind == ELLIPSOID] = 1.0 / half[kind == ELLIPSOID]
    wide, narrow = half[:, 0], half[:, 0] * np.abs(taper)
    lower, upper = np.where(taper > 0, wide, narrow), np.where(taper > 0, narrow, wide)
    return SolidTable(
        kind,
        centre,
        rotation * scale[:, :, None],
        half,
        rotation,
        (lower + upper) / 2,
        (upper - lower) / (2 * half[:, 2]),
    )


def cast(table: SolidTable, camera: Camera, size: tuple[int, int]) -> tuple[Float64, Int]:
    """Cast one ray through the centre of every pixel.

    Returns:
        depth (H, W) along the optical axis in metres, and facet (H, W), the number of the solid times
        `FACES` plus the number of its face.
    """
    u, w = camera.rays(size)
    origins = np.einsum("nij,nj->ni", table.matrix, camera.eye - table.centre)
    axes = np.einsum("nij,kj->nik", table.matrix, camera.axes)
    windows = _windows(table, camera, size)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        depth, facet = _cast_shell(origins[0], _directions(axes[0], u, w), table.half[0])
        for solid, (top, left, bottom, right) in enumerate(windows, start=1):
            if top >= bottom or left >= right:
                continue
            origin, kind = origins[solid], table.kind[solid]
            direction = _directions(axes[solid], u[left:right], w[top:bottom])
            if kind == BOX:
                distance, face = _cast_box(origin, direction, table.half[solid])
            elif kind == FRUSTUM:
                shape = (float(table.middle[solid]), float(table.slope[solid]), float(table.half[solid, 2]))
                distance, face = _cast_frustum(origin, direction, *shape)
            else:
                distance, face = _cast_ellipsoid(origin, direction)
            seen_depth, seen_facet = depth[top:bottom, left:right], facet[top:bottom, left:right]
            closer = (distance > _NEAR_M) & (distance < seen_depth)
            np.copyto(seen_depth, distance, where=closer)
            np.copyto(seen_facet, face + solid * FACES, where=closer)
    return depth, facet


def _directions(axes: Float64, u: Float64, w: Float64) -> Float64:
    """Ray directions in a solid's frame, (3, h, w); axes (3, 3) has columns right, up, forward."""
    columns = axes[:, 0, None] * u + axes[:, 2, None]
    rows = axes[:, 1, None] * w
    result: Float64 = columns[:, None, :] + rows[:, :, None]
    return result


def _windows(table: SolidTable, camera: Camera, size: tuple[int, int]) -> list[list[int]]:
    """For all solids but the shell: the pixels (top, left, bottom, right) their bounding boxes may cover."""
    height, width = size
    corners = np.einsum("nji,ncj->nci", table.rotation[1:], _CORNERS * table.half[1:, None, :])
    corners += table.centre[1:, None, :] - camera.eye
    seen = corners @ camera.axes.T
    ahead = seen[:, :, 2]
    focal = camera.focal_px(size)
    safe = np.maximum(ahead, _NEAR_M)
    x = seen[:, :, 0] / safe * focal + width / 2
    y = -seen[:, :, 1] / safe * focal + height / 2
    bounds = np.stack([y.min(1), x.min(1), y.max(1) + 1, x.max(1) + 1], axis=1)
    bounds[(ahead < _NEAR_M).any(1)] = (0, 0, height, width)
    bounds[(ahead < _NEAR_M).all(1)] = 0
    limits = np.array([height, width, height, width])
    windows: list[list[int]] = np.clip(np.floor(bounds), 0, limits).astype(np.int64).tolist()
    return windows


def _cast_shell(origin: Float64, direction: Float64, half: Float64) -> tuple[Float64, Int]:
    """The inside of a box: faces are numbered as a box's, normals point inwards."""
    inverse = 1.0 / direction
    exits = half[:, None, None] * np.abs(inverse) - origin[:, None, None] * inverse
    depth = np.minimum(np.minimum(exits[0], exits[1]), exits[2])
    axis = np.where(exits[0] == depth, 0, np.where(exits[1] == depth, 1, 2))
    upper = np.where(axis == 0, direction[0], np.where(axis == 1, direction[1], direction[2])) > 0
    return depth, 2 * axis + upper


def _cast_box(origin: Float64, direction: Float64, half: Float64) -> tuple[Float64, Int]:
    """Slabs; face 2 * axis + 1 has its normal along the axis, face 2 * axis against it."""
    inverse = 1.0 / direction
    middle = -origin[:, None, None] * inverse
    reach = half[:, None, None] * np.abs(inverse)
    near = middle - reach
    far = middle + reach
    entry = np.maximum(np.maximum(near[0], near[1]), near[2])
    leave = np.minimum(np.minimum(far[0], far[1]), far[2])
    side = [2 * axis + int(origin[axis] > 0) for axis in range(3)]
    face = np.where(near[0] == entry, side[0], np.where(near[1] == entry, side[1], side[2]))
    return np.where(entry < leave, entry, np.inf), face


def _cast_frustum(
    origin: Float64, direction: Float64, middle: float, slope: float, half_height: float
) -> tuple[Float64, Int]:
    """The side x^2 + y^2 = (middle + slope * z)^2 and the cap that faces the eye."""
    ox, oy, oz = (float(value) for value in origin)
    dx, dy, dz = direction
    radius = middle + slope * oz
    taper = slope * dz
    a = dx * dx + dy * dy - taper * taper
    b = ox * dx + oy * dy - radius * taper
    root = np.sqrt(b * b - a * (ox * ox + oy * oy - radius * radius))
    inverse = 1.0 / a
    distance = (-b - root) * inverse
    inside = np.abs(oz + distance * dz) <= half_height
    distance = np.where(inside & (distance > 0), distance, np.inf)
    if slope:
        # the far root closes the gap where rounding lets a ray slip past the rim of a cap
        other = (root - b) * inverse
        inside = (np.abs(oz + other * dz) <= half_height) & (other > 0)
        distance = np.where(inside & (other < distance), other, distance)
    face = np.zeros(distance.shape, dtype=np.int64)
    if abs(oz) > half_height:
        level = half_height if oz > 0 else -half_height
        cap = (level - oz) / dz
        x, y = ox + cap * dx, oy + cap * dy
        on_cap = (x * x + y * y <= (middle + slope * level) ** 2) & (cap > 0) & (cap <= distance)
        np.copyto(distance, cap, where=on_cap)
        face[on_cap] = 2 if oz > 0 else 1
    return distance, face


def _cast_ellipsoid(origin: Float64, direction: Float64) -> tuple[Float64, Int]:
    """The unit sphere in the solid's frame."""
    dx, dy, dz = direction
    ox, oy, oz = (float(value) for value in origin)
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    squared = b * b - a * (ox * ox + oy * oy + oz * oz - 1.0)
    distance = (-b - np.sqrt(squared)) / a
    return np.where(squared > 0, distance, np.inf), np.zeros(distance.shape, dtype=np.int64)


def facet_normals(table: SolidTable) -> Float64:
    """Outward world normals of flat facets, (N * FACES, 3); of the shell inward; curved ones hold zeros."""
    signs = np.array([-1.0, 1.0])
    normals = np.einsum("naj,s->nasj", table.rotation, signs).reshape(-1, FACES, 3)
    normals[0] *= -1
    axis = table.rotation[:, 2]
    round_ = table.kind == FRUSTUM
    normals[round_, 0] = 0
    normals[round_, 1], normals[round_, 2] = -axis[round_], axis[round_]
    normals[table.kind == ELLIPSOID] = 0
    result: Float64 = normals.reshape(-1, 3)
    return result


def curved_normals(table: SolidTable, solid: Int, points: Float64) -> Float64:
    """Outward unit normals of the curved sides of solids (n,) at world points (n, 3)."""
    matrix = table.matrix[solid]
    local = np.einsum("nij,nj->ni", matrix, points - table.centre[solid])
    frustum = table.kind[solid] == FRUSTUM
    slope = table.slope[solid]
    local[:, 2] = np.where(frustum, -slope * (table.middle[solid] + slope * local[:, 2]), local[:, 2])
    normals = np.einsum("nij,ni->nj", matrix, local)
    result: Float64 = normals / np.sqrt((normals * normals).sum(1, keepdims=True))
    return result
