"""How well decoded features stand for the true ones.

Cosine alone flatters: with one massive channel even the constant mean reaches 0.84.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import BadInput

Float64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

_CONSTANT = 1e-10

LARGEST_NOISE = 0.1
"""Variance of the coding error that a channel may have when it is scaled to variance 1."""


def is_near_dead(variance: Array, error: Array) -> npt.NDArray[np.bool_]:
    """bool (C,): channels of which coding leaves little, from their variance and mean squared coding error, (C,)."""
    return np.asarray((LARGEST_NOISE * variance < error) | (variance <= 0))


def deviations(variance: Array, error: Array) -> Float64:
    """float64 (C,): what channels are divided by to be standardized where their features are decoded ones.

    That is their standard deviation. Near-dead ones would become noise as loud as other channels' features. They get a
    floor that rises with what coding does to them: their noise is at most `LARGEST_NOISE`, and falls with their
    variance. A constant one gets infinity.
    """
    spread, floor = _spread(variance), np.asarray(error, np.float64) / LARGEST_NOISE
    risen = np.divide(floor, spread, out=np.full_like(floor, np.inf), where=spread > 0)
    divisors: Float64 = np.where(is_near_dead(variance, error), risen, spread)
    return divisors


def standardized(centred: Array, variance: Array) -> Float64:
    """Tokens (n, C) less their mean, every channel scaled to variance 1; constant ones give 0."""
    spread = _spread(variance)
    scaled: Float64 = centred / np.where(spread > 0, spread, np.inf)
    return scaled


def _spread(variance: Array) -> Float64:
    spread: Float64 = np.sqrt(np.asarray(variance, np.float64).clip(min=0))
    return spread


@dataclass(frozen=True)
class Fidelity:
    """Attributes:
    cosine: mean over tokens of cos(true, decoded); a token of zeros has no direction to lose and counts 1.
    centred_cosine: the same after subtracting the channel mean from both.
    relative_mse_median, relative_mse_worst: over channels, of mean squared error / variance (of a constant channel:
        / its square).
    """

    cosine: float
    centred_cosine: float
    relative_mse_median: float
    relative_mse_worst: float

    def to_array(self) -> Float64:
        """float64 (4,), in the order of the attributes."""
        return np.array(
            [self.cosine, self.centred_cosine, self.relative_mse_median, self.relative_mse_worst], np.float64
        )

    @classmethod
    def from_array(cls, values: Array) -> Fidelity:
        """The inverse of `to_array`, of (4,).

        Raises:
            BadInput: there are not four.
        """
        if values.shape != (4,):
            raise BadInput(f"a fidelity is four numbers, not {values.shape}")
        return cls(*(float(value) for value in values))


def token_cosines(left: Float64, right: Float64) -> Float64:
    """cos of rows (n, C) -> (n,); 1 where the left one is zero, 0 where only the right one is."""
    left_norm, right_norm = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    product = left_norm * right_norm
    safe = np.where(product > 0, product, 1.0)
    cosines: Float64 = np.where(product > 0, np.einsum("nc,nc->n", left, right) / safe, left_norm == 0)
    return cosines


class FidelityMeter:
    """Sums over batches of tokens.

    Args:
        mean: float (C,), the channel mean that the centred cosine removes.
    """

    def __init__(self, mean: Array) -> None:
        self._mean = mean.astype(np.float64)
        width = len(mean)
        self._num_tokens = 0
        self._cosine = self._centred = 0.0
        self._error, self._sum, self._square = (np.zeros(width) for _ in range(3))

    def update(self, true: Array, decoded: Array) -> None:
        """Add features float32 (..., C) and what came back for them."""
        left = true.reshape(-1, len(self._mean)).astype(np.float64)
        right = decoded.reshape(-1, len(self._mean)).astype(np.float64)
        self._num_tokens += len(left)
        self._cosine += float(token_cosines(left, right).sum())
        self._error += np.square(left - right).sum(0)
        # A token that is the mean to within rounding has no direction left to compare.
        is_mean = np.linalg.norm(left - self._mean, axis=1) <= 1e-6 * np.linalg.norm(left, axis=1)
        left -= self._mean
        right -= self._mean
        self._centred += float(np.where(is_mean, 1.0, token_cosines(left, right)).sum())
        self._sum += left.sum(0)
        self._square += np.square(left).sum(0)

    def add(self, other: FidelityMeter) -> None:
        """Add what another meter, of the same mean, was given."""
        self._num_tokens += other._num_tokens
        self._cosine += other._cosine
        self._centred += other._centred
        self._error += other._error
        self._sum += other._sum
        self._square += other._square

    def channel_error(self) -> Float64:
        """float64 (C,): mean squared error; at least one token must have been added."""
        return self._error / self._num_tokens

    def compute(self) -> Fidelity:
        """The figures over all that was added; at least one token must have been."""
        count = self._num_tokens
        variance = self._square / count - np.square(self._sum / count)
        error = self._error / count
        # A channel that is constant, to within rounding, has no variance to compare with; its square serves then.
        power = self._square / count + np.square(self._mean)
        scale = np.where(variance > _CONSTANT * power, variance, np.where(power > 0, power, 1.0))
        relative = error / scale
        return Fidelity(self._cosine / count, self._centred / count, float(np.median(relative)), float(relative.max()))
