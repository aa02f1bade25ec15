"""A stream of random numbers for one attempt at one scene."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_BLOCK = 512


class Draws:
    """Scalar draws from one counter of (seed, index, attempt, stream), in plain Python floats.

    Two streams with different numbers are independent; nothing outside is read or changed.
    """

    def __init__(self, *key: int) -> None:
        self._generator = np.random.default_rng(key)
        self._values: list[float] = []

    def unit(self) -> float:
        """A number in [0, 1)."""
        if not self._values:
            self._values = self._generator.random(_BLOCK).tolist()
        return self._values.pop()

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def whole(self, low: int, high: int) -> int:
        """A whole number in low ... high, both included."""
        return low + int((high - low + 1) * self.unit())

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, each as likely."""
        return items[int(len(items) * self.unit())]

    def weighted(self, items: Sequence[tuple[T, float]]) -> T:
        """One of the (item, weight) pairs' items, as likely as its weight."""
        mark = self.unit() * sum(weight for _, weight in items)
        for item, weight in items:
            mark -= weight
            if mark < 0:
                return item
        return items[-1][0]
