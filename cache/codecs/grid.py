"""A cosine transform over the cells of a map: neighbouring tokens of an image are alike.

It is orthonormal (DCT-II along each side), so that one uniform step costs the same error before it and after.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cache.codecs.base import Array, Float32


def cosines(side: int) -> Float32:
    """float32 (side, side): the orthonormal DCT-II, a frequency a row."""
    frequency, cell = np.arange(side)[:, None], np.arange(side)[None]
    rows = np.cos(np.pi * (2 * cell + 1) * frequency / (2 * side)) * np.sqrt(2 / side)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows, np.float32)


def frequency_order(height: int, width: int) -> npt.NDArray[np.int64]:
    """int64 (h*w,): frequency pairs as v * w + u, in rising order of v / h + u / w; equal ones as they come.

    Large numbers come first and runs of zeros last, whatever the coder.
    """
    v, u = np.divmod(np.arange(height * width), width)
    return np.argsort(v * width + u * height, kind="stable")


def to_frequencies(tokens: Array, y: Array, x: Array) -> Array:
    """Tokens (n*h*w, C), map after map, to their frequencies (n*h*w, C), those of each map in `frequency_order`.

    Args:
        y, x: `cosines` of h and of w.
    """
    height, width, channels = len(y), len(x), tokens.shape[-1]
    maps: Array = x @ (y @ tokens.reshape(-1, height, width * channels)).reshape(-1, width, channels)
    ordered = maps.reshape(-1, height * width, channels).take(frequency_order(height, width), axis=1)
    return ordered.reshape(-1, channels)


def from_frequencies(values: Array, y: Array, x: Array) -> Array:
    """The inverse of `to_frequencies`: (n*h*w, C) to tokens (n*h*w, C)."""
    height, width, channels = len(y), len(x), values.shape[-1]
    place = np.argsort(frequency_order(height, width))
    maps = values.reshape(-1, height * width, channels).take(place, axis=1)
    cells: Array = y.T @ (x.T @ maps.reshape(-1, width, channels)).reshape(-1, height, width * channels)
    return cells.reshape(-1, channels)
