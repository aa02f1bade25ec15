"""Counter-based random streams: the same numbers whatever the order, the worker or the machine.

Philox 4x64-10 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405): a stream is named by two words of key and four
of counter, and its raw 64-bit output does not depend on numpy's distributions.
"""

from __future__ import annotations

import numpy as np


def philox(seed: int, stream: int, counter: tuple[int, int, int, int] = (0, 0, 0, 0)) -> np.random.Philox:
    """The generator keyed by `seed` (taken modulo 2^64) and `stream`, at `counter` (lowest word first)."""
    # As uint64 arrays: numpy would turn lists with large words into float64 on the way.
    key, start = np.array([seed % 2**64, stream], np.uint64), np.array(counter, np.uint64)
    return np.random.Philox(key=key, counter=start)
