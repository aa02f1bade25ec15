"""Levels coded together: a level against the decoded one below it, through a linear map fitted in calibration.

What is coded of such a level is ``features - decoded lower features @ predictor``. So it can only be read with the
levels that it is predicted from, and these form one *group*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import BadInput
from cache.format.spec import LevelSpec

Array = npt.NDArray[Any]

_LARGEST = 65504.0  # of float16
_RIDGES = 2.0 ** np.arange(-24, 11)
"""Shrinkages that are tried, as shares of the mean variance of the lower level's components."""

PREDICTOR = "predictor"
"""Calibration array of a level that is predicted: float16 (C of the lower level, C)."""


def check_groups(levels: Sequence[LevelSpec]) -> None:
    """Every level that is predicted must come after one of the same grid that it names.

    Raises:
        BadInput: it does not.
    """
    seen: dict[int, LevelSpec] = {}
    for level in (level for level in levels if not level.prefix):
        if level.predicts_from is not None:
            lower = seen.get(level.predicts_from)
            if lower is None or lower.grid != level.grid:
                raise BadInput(
                    f"level {level.level} is to be predicted from level {level.predicts_from}, which must come before "
                    "it and have the same grid"
                )
        seen[level.level] = level


def check_levels(levels: Sequence[LevelSpec]) -> None:
    """`check_groups`, of levels that anyone may have written: each is named once, and prefixes stand by themselves.

    Raises:
        BadInput: they are not.
    """
    names = [level.array for level in levels]
    if len(set(names)) < len(names):
        raise BadInput(f"levels {', '.join(sorted(names))}: one is named twice")
    for level in levels:
        if level.prefix and (level.grid[0] != 1 or level.predicts_from is not None):
            raise BadInput(f"{level.array} with grid {level.grid} is no row of tokens that is coded by itself")
    check_groups(levels)


def with_lower(levels: Sequence[LevelSpec], wanted: Sequence[int]) -> list[int]:
    """The numbers of `wanted` and of all levels that they are predicted from, ascending."""
    depends_on = {level.level: level.predicts_from for level in levels}
    needed: set[int] = set()
    for number in wanted:
        lower: int | None = number
        while lower is not None and lower not in needed:
            needed.add(lower)
            lower = depends_on[lower]
    return sorted(needed)


def fit_predictor(lower: Array, tokens: Array) -> Array:
    """The linear map float16 (C of `lower`, C) that predicts tokens like `tokens` best, means aside.

    It is shrunk by as much as generalised cross-validation finds best (Golub, Heath, Wahba 1979, doi
    10.1080/00401706.1979.10489751): the nearest fit to few tokens is one to their noise, and leaves more of others.

    Args:
        lower: float32 (n, C of the lower level), as decoded.
        tokens: float32 (n, C), of the same cells.
    """
    centred = lower.astype(np.float64) - lower.mean(0, dtype=np.float64)
    true = tokens - tokens.mean(0, dtype=np.float64)
    powers, basis = np.linalg.eigh(centred.T @ centred)
    powers = powers.clip(min=0)
    cross = basis.T @ (centred.T @ true)
    told, whole = np.square(cross).sum(1), np.square(true).sum()
    least, shrunk = np.inf, np.zeros_like(powers)
    for ridge in _RIDGES * powers.mean() + 1e-30:
        inverse = 1 / (powers + ridge)
        left = len(true) - 1 - (powers * inverse).sum()  # degrees of freedom
        error = (whole - (told * inverse * (2 - powers * inverse)).sum()) / max(left, 1e-9) ** 2
        if left > 0 and error < least:
            least, shrunk = error, inverse
    predictor: Array = basis @ (shrunk[:, None] * cross)
    return predictor.clip(-_LARGEST, _LARGEST).astype(np.float16)
