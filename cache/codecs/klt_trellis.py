"""klt with trellis-coded quantisation in place of rounding where that pays: at equal fidelity fewer bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from cache.codecs.base import Array, Float32, Sample, Target
from cache.codecs.klt import LARGEST, Klt, Trial, least_squares, round_to_zero, thresholds
from cache.codecs.trellis import prices, quantise, reconstruct, reconstruct_torch

if TYPE_CHECKING:
    import torch

_ROUNDED = 1.78
"""The step of rounding that costs the error of the trellis' step."""
_MOST_ZEROS = 0.5
"""Share of zeros, where rounded, above which a component stays rounded: on Gaussian ones the trellis gains 0.7 dB at 3
bits and 0.4 at 2, and loses up to 0.3 below 1.4."""
_LEAST_SAVING = 0.01
"""Share of rounding's bytes that it must save: small rows, whose components share tables of the coder, may grow."""
_WIDTH, _BISECTIONS = 1.1, 6  # found within a sixth of a percent
_WIDENINGS = 24  # a tenth of that step, or ten times as much
_MAPS_FITTED = 32


class KltTrellis(Klt):
    """`Klt` whose leading components' integers q stand for ``2q`` or ``2q - sign(q)`` steps (`cache.codecs.trellis`).

    These are the components whose ``more_bits`` are not 0; the sequences run over the cells, or frequencies, of each.
    Of the others, mostly zeros, an integer stands for itself.
    """

    needs = (*Klt.needs, "first_bits", "more_bits")

    def __init__(self, name: str, coder: str) -> None:
        super().__init__(name, coder)
        self._rounding = Klt(name, coder)

    def fit(self, sample: Sample, target: Target) -> dict[str, Array]:
        """As `Klt.fit`, and ``first_bits``, ``more_bits`` float32 (C,): what integers cost, see `prices`.

        Basis and transform over the grid are those that rounding would have, and so are all components where held-out
        maps do not take fewer bytes.
        """
        rounded = self._rounding.fit(sample, target)
        trial = Trial(sample, target, {name: rounded[name] for name in self.may_need if name in rounded})
        width, cells = trial.fitted.shape[1], math.prod(sample.grid)
        maps = trial.fitted.reshape(-1, cells, width)
        maps = maps[:: -(-len(maps) // _MAPS_FITTED)]
        held_out = trial.held_out.reshape(-1, cells, width)

        def tables(step: float) -> dict[str, Float32]:
            scaled = (maps / np.float32(step)).reshape(-1, width)
            mostly_zero = np.mean(np.abs(scaled) < _ROUNDED / 2, axis=0) > _MOST_ZEROS
            num = int(np.argmax(mostly_zero)) if mostly_zero.any() else width
            rounding = thresholds(trial.spread / np.float32(step * _ROUNDED))
            guess = prices(np.rint(scaled[:, :num] / 2))
            whole = _to_whole(scaled.reshape(maps.shape), *guess, rounding)
            values = _stand_for(whole, num).reshape(-1, width)
            rest = np.zeros(width - num, np.float32)
            first, more = (np.append(bits, rest) for bits in prices(whole.reshape(-1, width)[:, :num]))
            gain = least_squares(values, scaled)
            return {"rounding": rounding, "gain": gain, "first_bits": first, "more_bits": more}

        def reaches(step: float) -> bool:
            made = self.constants(tables(step))
            whole = _to_whole(held_out / np.float32(step), made["first_bits"], made["more_bits"], made["rounding"])
            decoded = _stand_for(whole, len(made["first_bits"])).reshape(-1, width)
            decoded *= made["gain"] * np.float32(step)
            return trial.is_reached(decoded)

        start = float(rounded["step"][0]) / _ROUNDED
        if (step := _near(reaches, start)) is not None:
            found = {**trial.tables, "step": np.array([step], np.float32), **tables(step)}
            weight = self._rounding.weigh(sample, rounded)
            if self.weigh(sample, self.constants(found)) < (1 - _LEAST_SAVING) * weight:
                return found
        none = np.zeros(width, np.float32)
        as_rounded = {"step": np.array([start], np.float32), "gain": rounded["gain"] * np.float32(_ROUNDED)}
        return {**rounded, **as_rounded, "first_bits": none, "more_bits": none}

    def constants(self, calibration: Mapping[str, Array]) -> dict[str, Array]:
        """As `Klt.constants`; the prices are those of the trellis' components alone, so that their number is known."""
        tables = super().constants(calibration)
        num = int(np.count_nonzero(tables["more_bits"]))
        return {**tables, "first_bits": tables["first_bits"][:num], "more_bits": tables["more_bits"][:num]}

    def _to_integers(self, values: Array, constants: Mapping[str, Array]) -> tuple[Array, int]:
        """See `Klt`. Clipped before: later, every value that follows in its sequence would be another one."""
        largest = LARGEST - 1
        num_clipped = int(np.count_nonzero(np.abs(values) > largest))
        np.clip(values, -largest, largest, out=values)
        whole = _to_whole(values, constants["first_bits"], constants["more_bits"], constants["rounding"])
        return whole.astype(np.int16), num_clipped

    def _to_values(self, numbers: Array, constants: Mapping[str, Array]) -> Float32:
        num = len(constants["more_bits"])
        values = numbers.astype(np.float32)
        values[..., :num, :] = reconstruct(numbers[..., :num, :])
        return values

    def _to_values_torch(self, numbers: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        num = len(constants["more_bits"])
        values = numbers.float()
        values[..., :num, :] = reconstruct_torch(numbers[..., :num, :])
        return values


def _to_whole(values: Array, first: Array, more: Array, rounding: Array) -> Array:
    """Components (n, h*w, C), in steps -> whole numbers: by the trellis as far as there are prices, others rounded."""
    num = len(first)
    whole = np.empty_like(values)
    whole[..., :num] = quantise(values[..., :num], first, more)
    whole[..., num:] = round_to_zero(values[..., num:] / np.float32(_ROUNDED), rounding[num:])
    return whole


def _stand_for(whole: Array, num: int) -> Array:
    """Whole numbers (n, h*w, C) -> what they stand for; the first `num` components are the trellis'."""
    values = whole.copy()
    values[..., :num] = reconstruct(whole[..., :num].swapaxes(1, 2)).swapaxes(1, 2)
    return values


def _near(reaches: Callable[[float], bool], start: float) -> float | None:
    """The largest step near `start`, by bisection of its logarithm, that reaches the target; None: there is none."""
    low = next((step for n in range(_WIDENINGS) if reaches(step := start / _WIDTH**n)), None)
    if low is None:
        return None
    high = next((step for n in range(_WIDENINGS) if not reaches(step := low * _WIDTH ** (n + 1))), None)
    if high is None:  # features that do not vary: any step keeps them
        return start
    low = high / _WIDTH
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return low
