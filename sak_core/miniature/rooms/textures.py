"""Procedural solid textures: how far each point is from a material's first colour to its second."""

import math

import numpy as np

from sak_core.miniature.rooms.arrays import Float32, Int
from sak_core.miniature.rooms.materials import (
    CHECKS,
    MOTTLE,
    PAINT,
    PLANKS,
    SPINES,
    STRIPES,
    WOOD,
)

_TAU = np.float32(math.tau)


def mixture(texture: Int, point: Float32, axis: Float32, frequency: Float32, phase: Float32) -> Float32:
    """Evaluate every pixel's texture.

    Args:
        texture: (n,) kinds of `materials`.
        point: (3, n) points in the frames of their things, metres.
        axis: (3, n) axes of the materials.
        frequency: (n,) repeats a metre.
        phase: (n,) offsets that make equal materials differ.

    Returns:
        (n,) in [0, 1]: the share of the second colour.
    """
    result = np.zeros(texture.shape, dtype=np.float32)
    for kind, pattern in _PATTERNS.items():
        where = np.flatnonzero(texture == kind)
        if where.size:
            result[where] = pattern(point[:, where], axis[:, where], frequency[where], phase[where])
    return result


def _along(point: Float32, axis: Float32) -> Float32:
    result: Float32 = point[0] * axis[0] + point[1] * axis[1] + point[2] * axis[2]
    return result


def _hash(cell: Float32) -> Float32:
    """A repeatable number in [0, 1) for each whole number."""
    value = np.sin(cell * np.float32(12.9898)) * np.float32(4375.85)
    result: Float32 = value - np.floor(value)
    return result


def _stripes(point: Float32, axis: Float32, frequency: Float32, phase: Float32) -> Float32:
    value = _along(point, axis) * frequency + phase
    result: Float32 = ((value - np.floor(value)) > np.float32(0.5)).astype(np.float32)
    return result


def _checks(point: Float32, axis: Float32, frequency: Float32, phase: Float32) -> Float32:
    cells = np.floor(point * frequency + np.float32(0.137)).sum(axis=0)
    result: Float32 = np.mod(cells, np.float32(2.0))
    return result


def _wood(point: Float32, axis: Float32, frequency: Float32, phase: Float32) -> Float32:
    bend = np.float32(0.35) * np.sin(point[0] * np.float32(3.1) + point[2] * np.float32(2.3) + phase)
    value = (_along(point, axis) * frequency + bend + phase) * _TAU
    result: Float32 = np.float32(0.5) + np.float32(0.5) * np.sin(value)
    return result


def _mottle(point: Float32, axis: Float32, frequency: Float32, phase: Float32) -> Float32:
    x, y, z = point * frequency
    first = np.sin(x * np.float32(1.7) + y * np.float32(2.3) - z * np.float32(1.1) + phase)
    second = np.sin(y * np.float32(3.1) - x * np.float32(2.9) + z * np.float32(2.7) + phase * np.float32(2.1))
    third = np.sin(z * np.float32(4.3) + x * np.float32(3.7) + y * np.float32(4.1) + first)
    result: Float32 = np.float32(0.5) + np.float32(0.19) * (first + second + third) * np.float32(0.85)
    return result


def _planks(point: Float32, axis: Float32, frequency: Float32, phase: Float32) -> Float32:
    across = _along(point, axis) * frequency
    board = np.floor(across)
    run = (point[0] + point[1]) * np.float32(0.9) - across / frequency * np.float32(0.9) + _hash(board)
    tone = _hash(board * np.float32(3.0) + np.floor(run) + phase)
    seam = (across - board) < np.float32(0.09)
    return np.where(seam, np.float32(1.0), tone * np.float32(0.6))


def _spines(point: Float32, axis: Float32, frequency: Float32, phase: Float32) -> Float32:
    return _hash(np.floor(point[0] * frequency) + phase)


def _paint(point: Float32, axis: Float32, frequency: Float32, phase: Float32) -> Float32:
    x, z = point[0] * frequency, point[2] * frequency
    first = np.sin(x * np.float32(1.3) + z * np.float32(2.1) + phase)
    second = np.sin(x * np.float32(2.7) - z * np.float32(1.6) + phase * np.float32(1.7) + first)
    result: Float32 = np.clip(np.float32(0.5) + np.float32(0.8) * first * second, 0.0, 1.0).astype(np.float32)
    return result


_PATTERNS = {
    STRIPES: _stripes,
    CHECKS: _checks,
    WOOD: _wood,
    MOTTLE: _mottle,
    PLANKS: _planks,
    SPINES: _spines,
    PAINT: _paint,
}
