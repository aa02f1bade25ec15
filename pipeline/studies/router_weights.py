"""What a run's routers take of which expert, from what its stage 2 logged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

KEY = re.compile(r"router/(?P<task>.+)_level(?P<level>\d+)/(?P<expert>.+)")
LAST_SHARE = 0.1
"""Of a run's steps, over whose log lines its weights are averaged: one line is of one batch."""

Weights = Mapping[tuple[str, int, str], float]
"""Mean router weight by task, level (from 1) and expert."""


def router_weights(metrics: Sequence[Mapping[str, Any]], steps: int) -> Weights:
    """A run's router weights at its end: means over the log lines of its last steps; empty where it logged none."""
    logged = [line for line in metrics if any(KEY.fullmatch(key) for key in line)]
    if not logged:
        return {}
    since = logged[-1]["step"] - LAST_SHARE * max(steps, 1)
    values: dict[tuple[str, int, str], list[float]] = {}
    for line in logged:
        for key, value in line.items() if line["step"] > since else ():
            if (match := KEY.fullmatch(key)) and value is not None:
                values.setdefault((match["task"], int(match["level"]), match["expert"]), []).append(value)
    return {key: mean(found) for key, found in values.items()}
