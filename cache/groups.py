"""Levels coded together: a level against the decoded one below it, through a linear map fitted in calibration.

What is coded of such a level is ``features - decoded lower features @ predictor``. So it can only be read with the
levels that it leans on, and these form one *group*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import BadInput
from cache.spec import LevelSpec

Array = npt.NDArray[Any]

_LARGEST = 65504.0  # of float16

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


def with_lower(levels: Sequence[LevelSpec], wanted: Sequence[int]) -> list[int]:
    """The numbers of `wanted` and of all levels that they lean on, ascending."""
    leans_on = {level.level: level.predicts_from for level in levels}
    needed: set[int] = set()
    for number in wanted:
        lower: int | None = number
        while lower is not None and lower not in needed:
            needed.add(lower)
            lower = leans_on[lower]
    return sorted(needed)


def fit_predictor(lower: Array, tokens: Array) -> Array:
    """The linear map float16 (C of `lower`, C) that predicts `tokens` best, means aside.

    Args:
        lower: float32 (n, C of the lower level), as decoded.
        tokens: float32 (n, C), of the same cells.
    """
    centred = lower.astype(np.float64) - lower.mean(0, dtype=np.float64)
    second = centred.T @ centred
    second[np.diag_indices_from(second)] += 1e-6 * np.trace(second) / len(second) + 1e-30
    predictor = np.linalg.solve(second, centred.T @ (tokens - tokens.mean(0, dtype=np.float64)))
    return predictor.clip(-_LARGEST, _LARGEST).astype(np.float16)
