"""What seeds can establish: mean and standard deviation, paired differences with their interval, a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal, TypeGuard

Verdict = Literal["better", "worse", "not established"]
CONFIDENCE = 0.95
"""Of an interval, unless said otherwise."""


@dataclass(frozen=True)
class Summary:
    """Of `count` known values: their mean, and their sample standard deviation (None of fewer than two)."""

    mean: float | None
    std: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """Paired differences, ours minus theirs, in the score's own unit.

    Attributes:
        difference: their mean, None of no pair.
        low, high: its t-interval, None of fewer than two pairs.
        count: of pairs.
        verdict: "better" or "worse" where the interval leaves out 0, on the side that the score's sense says.
    """

    difference: float | None
    low: float | None
    high: float | None
    count: int
    verdict: Verdict


def summary(values: Sequence[float | None]) -> Summary:
    """Mean and standard deviation of the values that are known: finite, and not None."""
    known = [value for value in values if is_known(value)]
    return Summary(mean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


def whole_mean(values: Sequence[float | None]) -> float | None:
    """The mean, None of nothing and of what is not all known."""
    found = summary(values)
    return found.mean if found.count == len(values) else None


def compare(
    ours: Mapping[int, float | None],
    theirs: Mapping[int, float | None],
    higher_is_better: bool,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Scores by seed against another system's, paired by seed; seeds that either lacks are left out.

    Pairing takes away what the seed does to both. The interval is Student's, so it takes the differences for normal;
    of one pair there is none, and nothing is established.
    """
    pairs = ((ours[seed], theirs[seed]) for seed in ours if seed in theirs)
    differences = [a - b for a, b in pairs if is_known(a) and is_known(b)]
    if not differences:
        return Comparison(None, None, None, 0, "not established")
    difference = mean(differences)
    if len(differences) == 1:
        return Comparison(difference, None, None, 1, "not established")
    half = t_quantile(confidence, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    low, high = difference - half, difference + half
    return Comparison(difference, low, high, len(differences), _verdict(low, high, higher_is_better))


def t_quantile(confidence: float, freedom: int) -> float:
    """How many standard errors a two-sided interval of `confidence` reaches to each side, Student's t."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))


def is_known(value: float | None) -> TypeGuard[float]:
    """Whether a score is a number: finite, and not None."""
    return value is not None and math.isfinite(value)


def _verdict(low: float, high: float, higher_is_better: bool) -> Verdict:
    if low <= 0 <= high:
        return "not established"
    return "better" if (low > 0) == higher_is_better else "worse"
