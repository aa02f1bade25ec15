"""Bilinear resampling of a part of an image, with averaging over skipped pixels or without."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Size = tuple[int, int]


def resize_part(
    image: Pixels, box: tuple[float, float, float, float], size: Size, antialias: bool, context: bool
) -> Pixels:
    """The part `box` of an image at `size`, bilinear. A box may stick out by the rounding to float32.

    Args:
        antialias: whether scaling down averages over the pixels it skips.
        context: whether pixels around the box count at its border, as in a piece of a scaled image, or not, as in a
            scaled piece of an image.
    """
    h, w = image.shape[:2]
    top, left = max(0.0, box[0]), max(0.0, box[1])
    bottom, right = min(float(h), box[0] + box[2]), min(float(w), box[1] + box[3])
    step_y, step_x = box[2] / size[0], box[3] / size[1]
    around = int(np.ceil(max(step_y, step_x))) + 1 if context else 0
    y, x = max(0, int(np.floor(top + 1e-3)) - around), max(0, int(np.floor(left + 1e-3)) - around)
    y_end, x_end = int(np.ceil(bottom - 1e-3)) + around, int(np.ceil(right - 1e-3)) + around
    part = np.ascontiguousarray(image[y:y_end, x:x_end])
    if antialias or (step_y <= 1 and step_x <= 1):
        # Pillow averages when it scales down, and is plain bilinear when it scales up
        inner = (
            max(0.0, left - x),
            max(0.0, top - y),
            min(float(part.shape[1]), right - x),
            min(float(part.shape[0]), bottom - y),
        )
        resized = Image.fromarray(part).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=inner)
        return np.asarray(resized)
    rows = _neighbours(box[0] - y, box[2], size[0], part.shape[0])
    columns = _neighbours(box[1] - x, box[3], size[1], part.shape[1])
    return _bilinear(part, rows, columns)


_Neighbours = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


def _neighbours(start: float, length: float, count: int, image_length: int) -> _Neighbours:
    """The two source pixels that each of `count` canvas pixels lies between, and the second one's weight."""
    centres = np.clip(start + (np.arange(count) + 0.5) * (length / count) - 0.5, 0, image_length - 1)
    first = np.floor(centres).astype(np.intp)
    return first, np.minimum(first + 1, image_length - 1), (centres - first).astype(np.float32)


def _bilinear(image: Pixels, rows: _Neighbours, columns: _Neighbours) -> Pixels:
    """Interpolate along both axes, without averaging over pixels in between."""
    x: NDArray[np.float32] = image.astype(np.float32)
    for axis, (first, second, weight) in enumerate((rows, columns)):
        low, high = x.take(first, axis), x.take(second, axis)
        x = low + (high - low) * weight.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return np.rint(x).astype(np.uint8)
