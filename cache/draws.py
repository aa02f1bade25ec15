"""Random words that orders of rows are made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sak_common.random import philox

# last words of the counter, so that streams of equal keys do not meet; their values are fixed for good
OFFSETS, ORDER, CALIBRATION, BLOCKS, WINDOWS = range(1, 6)


def raw_draws(seed: int, stream: int, domain: int, count: int) -> npt.NDArray[np.uint64]:
    """The first `count` words, uint64, of the stream keyed by (seed, stream) for `domain`, one of those above."""
    return np.asarray(philox(seed, stream, (0, 0, 0, domain)).random_raw(count), np.uint64)
