"""What a study's runs say together: paired differences, ratios, what a teacher and a cache are worth.

A run here is a row of `record.record`: a dictionary with "arm", "seed" and "scores", and what else is known of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from pipeline.recipes.arms import TEACHER_PREFIX
from pipeline.studies.statistics import compare, whole_mean
from sak_core.metrics.summary import delta_m

Run = Mapping[str, Any]
Columns = Sequence[Mapping[str, Any]]
"""The tasks of a study's table: "task", "score", "higher_is_better"."""
BySeed = Mapping[int, float | None]

EVERY = "*"
"""In a pair of arms: every other arm."""
MOST_LOST = 1.0
"""Percent that a cheaper cache may lose, as the mean over tasks."""


def pairs_of(asked: Iterable[tuple[str, str]], arms: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that a study asks for, with `EVERY` spelt out and arms that it lacks left out."""
    found = [
        (ours, theirs)
        for first, second in asked
        for ours in (arms if first == EVERY else [first])
        for theirs in (arms if second == EVERY else [second])
        if ours != theirs and ours in arms and theirs in arms
    ]
    return list(dict.fromkeys(found))


def differences(pairs: Sequence[tuple[str, str]], runs: Sequence[Run], columns: Columns) -> list[dict[str, Any]]:
    """Ours minus theirs for every pair: "tasks", a `statistics.Comparison` each in the score's unit; "gain", that of
    the mean relative gain over the tasks in percent, positive where ours is better; and where both have a stage 1 of
    their own "cosines", by teacher, of its held-out cosine, and "level_cosines", by level of a teacher. All are paired
    by seed.
    """
    sense = {column["task"]: column["higher_is_better"] for column in columns}
    found = []
    for ours, theirs in pairs:
        a, b = (_scores(runs, arm, columns) for arm in (ours, theirs))
        tasks = {task: asdict(compare(a[task], b[task], higher)) for task, higher in sense.items()}
        gains = {seed: _gain(a, b, seed, sense) for seed in _seeds(runs, ours)}
        row = {
            "arm": ours,
            "against": theirs,
            "tasks": tasks,
            "gain": asdict(compare(gains, dict.fromkeys(gains, 0.0), True)),
        }
        mine, other = (held_out_cosines(runs, arm) for arm in (ours, theirs))
        if mine and other and _stage1(runs, ours) != _stage1(runs, theirs):
            row["cosines"] = _compared(mine, other)
            row["level_cosines"] = _compared(*(_last_cosines(runs, arm) for arm in (ours, theirs)))
        found.append(row)
    return found


def ratios(subject: str, runs: Sequence[Run], columns: Columns) -> dict[str, dict[str, Any]]:
    """Of every task that all have scores of: the best teacher arm by mean score, and the subject's over it (of errors,
    lower is better)."""
    arms = _arms(runs)
    teachers = {arm: _scores(runs, arm, columns) for arm in arms if arm.startswith(TEACHER_PREFIX)}
    if subject not in arms or not teachers:
        return {}
    mine = _scores(runs, subject, columns)
    found = {}
    for column in columns:
        task = column["task"]
        means = {arm: whole_mean(list(scores[task].values())) for arm, scores in teachers.items()}
        known = {arm: value for arm, value in means.items() if value}
        ours = whole_mean(list(mine[task].values()))
        if not known or ours is None:
            continue
        best = (max if column["higher_is_better"] else min)(known, key=known.__getitem__)
        found[task] = {
            "teacher": best.removeprefix(TEACHER_PREFIX),
            "best": known[best],
            "ours": ours,
            "ratio": ours / known[best],
        }
    return found


def held_out_cosines(runs: Sequence[Run], arm: str) -> dict[str, dict[int, float | None]]:
    """By teacher and seed: the last held-out cosine of stage 1, the mean over the teacher's levels; empty where no
    rows were held out."""
    levels: dict[str, list[BySeed]] = {}
    for name, by_seed in _last_cosines(runs, arm).items():
        levels.setdefault(name.rpartition("_level")[0], []).append(by_seed)
    return {
        teacher: {seed: whole_mean([level.get(seed) for level in found]) for seed in found[0]}
        for teacher, found in levels.items()
    }


def all_held_out(runs: Sequence[Run]) -> dict[str, dict[str, dict[int, float | None]]]:
    """`held_out_cosines` of every arm that has a stage 1 of its own, by arm."""
    found: dict[str, dict[str, dict[int, float | None]]] = {}
    seen: list[list[str]] = []
    for arm in _arms(runs):
        cosines = held_out_cosines(runs, arm)
        if cosines and _stage1(runs, arm) not in seen:
            seen.append(_stage1(runs, arm))
            found[arm] = cosines
    return found


def left_out(subject: str, runs: Sequence[Run], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for every arm that lacks one teacher of the subject: "teacher", "arm", and of every task "weight", the
    subject's mean router weight for that teacher (over levels and seeds), and "cost", the paired difference in `found`.
    """
    mine = _of(runs, subject)
    if not mine or not all(run.get("routers") for run in mine):
        return []
    rows = []
    for difference in found:
        others = _of(runs, difference["against"])
        teacher = lacking_teacher(mine[0]["teachers"], others[0]["teachers"]) if others else ""
        if difference["arm"] != subject or not teacher:
            continue
        tasks = {
            task: {"weight": mean(run["routers"][task][teacher] for run in mine), "cost": cost}
            for task, cost in difference["tasks"].items()
        }
        rows.append({"teacher": teacher, "arm": difference["against"], "tasks": tasks})
    return rows


def lacking_teacher(have: Collection[str], others: Collection[str]) -> str:
    """The one teacher of `have` that `others`, which are the same otherwise, lack; empty where that is not so."""
    lacking = set(have) - set(others)
    return lacking.pop() if len(lacking) == 1 and set(others) < set(have) else ""


def cheapest(runs: Sequence[Run], found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the caches of a study cost against one reference arm: "reference", "cells" (arm, bytes of features that its
    stage 1 reads, gain), "arm", that of the fewest bytes whose interval excludes a loss of more than `MOST_LOST`
    percent (None where no interval does). None where the study does not compare caches: one reference, unlike bytes.
    """
    references = {difference["against"] for difference in found}
    size = {arm: _of(runs, arm)[0].get("cache_bytes") for arm in _arms(runs)}
    cells = [
        {"arm": difference["arm"], "bytes": size[difference["arm"]], "gain": difference["gain"]}
        for difference in found
        if size.get(difference["arm"])
    ]
    if len(references) != 1 or len({cell["bytes"] for cell in cells}) < 2:
        return None
    cells.sort(key=lambda cell: cell["bytes"])
    kept = [cell["arm"] for cell in cells if cell["gain"]["low"] is not None and cell["gain"]["low"] > -MOST_LOST]
    return {"reference": references.pop(), "cells": cells, "arm": kept[0] if kept else None}


def _arms(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run["arm"] for run in runs))


def _of(runs: Sequence[Run], arm: str) -> list[Run]:
    return [run for run in runs if run["arm"] == arm]


def _seeds(runs: Sequence[Run], arm: str) -> list[int]:
    return [run["seed"] for run in _of(runs, arm)]


def _last_cosines(runs: Sequence[Run], arm: str) -> dict[str, dict[int, float | None]]:
    """By level of a teacher (`mini-dino_level1`) and seed: the last held-out cosine of stage 1."""
    found: dict[str, dict[int, float | None]] = {}
    for run in _of(runs, arm):
        for name, curve in run.get("stage1", {}).get("held_out", {}).items():
            found.setdefault(name, {})[run["seed"]] = curve[-1][1]
    return found


def _compared(mine: Mapping[str, BySeed], other: Mapping[str, BySeed]) -> dict[str, Any]:
    """Ours minus theirs of every cosine that both have."""
    return {name: asdict(compare(mine[name], other[name], True)) for name in mine if name in other}


def _stage1(runs: Sequence[Run], arm: str) -> list[str]:
    return [run["stage1"]["run"] for run in _of(runs, arm) if "stage1" in run]


def _scores(runs: Sequence[Run], arm: str, columns: Columns) -> dict[str, dict[int, float | None]]:
    """An arm's primary scores by task and seed."""
    return {
        column["task"]: {
            run["seed"]: run["scores"].get(column["task"], {}).get(column["score"]) for run in _of(runs, arm)
        }
        for column in columns
    }


def _gain(
    ours: Mapping[str, BySeed], theirs: Mapping[str, BySeed], seed: int, sense: Mapping[str, bool]
) -> float | None:
    """The mean relative gain of one seed in percent, None where a score is missing or the other's is 0."""
    a = {task: value for task in sense if (value := ours[task].get(seed)) is not None}
    b = {task: value for task in sense if (value := theirs[task].get(seed))}
    return delta_m(a, b, sense) if len(a) == len(b) == len(sense) else None
