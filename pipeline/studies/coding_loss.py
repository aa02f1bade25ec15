"""How well a codec's own figures, cosines and probes' losses, foretell what students lose that are trained from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from cache.store import Store
from pipeline.extraction.stored_fidelity import logged_fidelity
from pipeline.probes.kept import kept_losses


def coding_figures(store: Store, teachers: Iterable[str]) -> dict[str, Any]:
    """What a store says of its coding, means over the teachers: "cosine", of stored tokens with the true ones (mean
    over levels), and "probes", what a linear probe of each task loses in the score's unit; empty without probes."""
    cosines: list[float] = []
    losses: dict[str, list[float]] = {}
    for teacher in teachers:
        logged = logged_fidelity(store, teacher)
        if logged is None:
            return {}
        cosines.append(mean(level["cosine"] for level in logged["levels"].values()))
        for task, loss in kept_losses(store, teacher).items():
            losses.setdefault(task, []).append(loss.loss)
    return (
        {"cosine": mean(cosines), "probes": {task: mean(values) for task, values in losses.items()}} if losses else {}
    )


def foretold(
    runs: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The pairs in `found` whose caches both have probes, and how well they rank the pairs by the students' losses.

    Returns:
        "cells", a pair each: "arm", "against", "cosine" (that of the arm's cache), and by task "probe", what its probes
        lose more than the other's, and "student", the `statistics.Comparison` of the two arms. "ranks": by task
        Spearman's correlation over the cells of the students' mean loss, as far as it is known, with 1 - "cosine" and
        with "probe"; None where one of the two does not vary; without tasks that some cache has no probe of. None of
        fewer than three such pairs.
    """
    figures = {run["arm"]: run["coding"] for run in runs if run.get("coding")}
    cells = [
        {
            "arm": one["arm"],
            "against": one["against"],
            "cosine": figures[one["arm"]]["cosine"],
            "tasks": {
                task: {"probe": probe - figures[one["against"]]["probes"][task], "student": one["tasks"][task]}
                for task, probe in figures[one["arm"]]["probes"].items()
                if task in figures[one["against"]]["probes"]
            },
        }
        for one in found
        if one["arm"] in figures and one["against"] in figures
    ]
    if len(cells) < 3:
        return None
    ranks = {}
    for column in columns:
        task, sign = column["task"], -1 if column["higher_is_better"] else 1
        if not all(task in cell["tasks"] for cell in cells):
            continue
        known = [cell for cell in cells if cell["tasks"][task]["student"]["difference"] is not None]
        lost = [sign * cell["tasks"][task]["student"]["difference"] for cell in known]
        ranks[task] = {
            "cosine": _rank_correlation([1 - cell["cosine"] for cell in known], lost),
            "probe": _rank_correlation([cell["tasks"][task]["probe"] for cell in known], lost),
        }
    return {"cells": cells, "ranks": ranks}


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    from scipy.stats import spearmanr

    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    found = float(spearmanr(a, b).statistic)
    return found if math.isfinite(found) else None
