"""Non-maximum suppression of boundary maps, as structured-edges' `edgesNmsMex` does it (Dollár, Zitnick 2015)."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d

Float64 = npt.NDArray[np.float64]
Uint8 = npt.NDArray[np.uint8]

MULTIPLIER = 1.01
BORDER = 5


def nms(prediction: Uint8) -> Uint8:
    """Keeps a boundary strength (h, w), 0 .. 255, where no neighbour across the boundary is clearly stronger,
    else 0.

    Radius 1, multiplier 1.01, strengths faded out over the outer 5 px; all in float64, rounded half to even.
    A single row or column of pixels has no direction across a boundary and comes back as it is.
    """
    height, width = prediction.shape
    if min(height, width) < 2:
        return prediction
    strength = _smooth(prediction / 255.0, np.array([1.0, 2.0, 1.0]) / 4)
    angle = _orientation(_smooth(strength, np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25))
    # where nothing is, nothing is suppressed or kept; sampling the rest alone is several times faster
    y, x = np.nonzero(strength)
    centre = strength[y, x]
    dx, dy = np.cos(angle[y, x]), np.sin(angle[y, x])
    weaker = np.zeros(len(y), dtype=bool)
    for sign in (1.0, -1.0):
        weaker |= MULTIPLIER * centre < _sample(strength, x + sign * dx, y + sign * dy)
    kept = np.zeros_like(strength)
    kept[y, x] = np.where(weaker, 0.0, centre)
    border = min(BORDER, width // 2, height // 2)
    for i in range(border):
        for line in (kept[i], kept[height - 1 - i], kept[:, i], kept[:, width - 1 - i]):
            line *= i / border
    return np.rint(np.clip(kept, 0.0, 1.0) * 255.0).astype(np.uint8)


def _smooth(values: Float64, kernel: npt.NDArray[Any]) -> Float64:
    for axis in (0, 1):
        values = correlate1d(values, kernel, axis=axis, mode="reflect")
    return values


def _orientation(smooth: Float64) -> Float64:
    """Angle across the boundary, [0, pi), from second differences."""
    sy, sx = np.gradient(smooth)
    sxy, sxx = np.gradient(sx)
    syy = np.gradient(sy, axis=0)
    sxx[sxx == 0] = 1e-5
    angle: Float64 = np.mod(np.arctan(syy * np.sign(-sxy) / sxx), np.pi)
    return angle


def _sample(values: Float64, x: Float64, y: Float64) -> Float64:
    """Bilinear samples at (x, y), coordinates clamped just inside."""
    height, width = values.shape
    x = np.clip(x, 0.0, width - 1.001)
    y = np.clip(y, 0.0, height - 1.001)
    left, top = x.astype(np.intp), y.astype(np.intp)
    fx, fy = x - left, y - top
    flat = values.ravel()
    corner = top * width + left
    upper = flat[corner] * (1 - fx) + flat[corner + 1] * fx
    lower = flat[corner + width] * (1 - fx) + flat[corner + width + 1] * fx
    sampled: Float64 = upper * (1 - fy) + lower * fy
    return sampled
