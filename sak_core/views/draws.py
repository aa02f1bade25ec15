"""Counter-based random numbers: the same for a (seed, sample, view), whatever the order, worker or machine.

Philox 4x64-10 (Salmon et al., SC 2011), keyed by the seed and what the numbers are for, counting from
(sample, view). Numbers are made from the raw 64 bits here, so that they do not depend on numpy's
distributions.
"""

from __future__ import annotations

import zlib

from sak_common.random import philox


class Stream:
    """Random numbers for one purpose of one (seed, sample, view)."""

    def __init__(self, seed: int, sample: int, view: int, purpose: str) -> None:
        self._bits = philox(seed, zlib.crc32(purpose.encode()), (0, 0, sample, view))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high), from 53 bits."""
        fraction = (int(self._bits.random_raw()) >> 11) * 2.0**-53
        return low + (high - low) * fraction

    def integer(self, count: int) -> int:
        """A number in 0..count-1; the bias is below count / 2^53."""
        return int(self.uniform(0.0, 1.0) * count)
