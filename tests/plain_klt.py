"""A reader of klt rows, in numpy alone, written from docs/cache-format.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def decode(stored: npt.NDArray[Any], tables: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Stored (..., C, h*w) and a level's calibration arrays -> its features (..., h*w, C)."""
    whole = stored.astype(np.int64)
    whole = np.where(whole % 2, -(whole + 1) // 2, whole // 2)
    if "more_bits" in tables:
        steered = np.count_nonzero(tables["more_bits"])
        whole[..., :steered, :] = by_state(whole[..., :steered, :])
    values = whole * (tables["step"] * tables["gain"])[:, None].astype(np.float64)
    if "dct_y" in tables:
        y, x = tables["dct_y"], tables["dct_x"]
        pairs = sorted((v * len(x) + u * len(y), v, u) for v in range(len(y)) for u in range(len(x)))
        cells = [np.multiply.outer(y[v], x[u]).ravel() for _, v, u in pairs]  # what each coefficient looks like
        values = values @ np.stack(cells)
    return np.asarray(np.swapaxes(values, -1, -2) @ tables["basis"] + tables["offset"])


def by_state(whole: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Integers of klt+trellis (..., h*w) -> what they stand for, one place after the other."""
    a = b = np.zeros(whole.shape[:-1], np.int64)
    values = np.empty_like(whole)
    for place in range(whole.shape[-1]):
        q = whole[..., place]
        values[..., place] = 2 * q - np.sign(q) * a
        a, b = b ^ (q % 2), a
    return values
