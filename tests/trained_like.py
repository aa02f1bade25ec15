"""Features as trained transformers have them: correlated channels, few strong directions, one massive channel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def trained_like(rows: int, tokens: int, width: int, seed: int = 0, level: int = 0) -> npt.NDArray[np.float32]:
    """float32 (rows, tokens, width). Levels of one seed are alike: each is mostly a linear map of the one before."""
    rng = np.random.default_rng([seed, rows, tokens])
    mixing = np.random.default_rng(99)
    values = rng.normal(size=(rows, tokens, width)) * np.geomspace(4, 0.05, width)
    values = values @ np.linalg.qr(mixing.normal(size=(width, width)))[0]
    for _ in range(level):
        fresh = rng.normal(size=values.shape) * np.geomspace(1, 0.01, width)
        values = values @ np.linalg.qr(mixing.normal(size=(width, width)))[0] + fresh
    values[..., 3] += 25
    return values.astype(np.float32)
