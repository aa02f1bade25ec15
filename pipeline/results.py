"""What the functions of `pipeline.api` give: plain objects with paths and numbers, short where they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console import number

if TYPE_CHECKING:
    from cache.store import Store
    from pipeline.recipes.config import Recipe
    from pipeline.runs import Places

Scores = dict[str, dict[str, float | None]]
"""Every score of every task: {task: {score: value}}; the primary one is `task.score`. None where it is no number: no
pixel has a label, or the model gives none."""


@dataclass(frozen=True)
class CacheResult:
    """A store that was made, finished or extended.

    Attributes:
        path: where it lies.
        rows: samples times views.
        teachers: all that it holds.
        invalid: unreadable samples, by id, with the reason.
        unlabelled: by task, ids of samples without a label file.
        timings: where each teacher's time went, s.
    """

    path: str
    rows: int
    views: int
    teachers: tuple[str, ...]
    invalid: Mapping[str, str]
    unlabelled: Mapping[str, list[str]]
    timings: Mapping[str, Any]

    @property
    def store(self) -> Store:
        """The store, open for reading."""
        from cache.store import Store

        return Store.open(self.path)

    def __repr__(self) -> str:
        invalid = f", {len(self.invalid)} samples invalid" if self.invalid else ""
        return f"CacheResult({self.path}: {self.rows} rows, {', '.join(self.teachers) or 'no teachers'}{invalid})"


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        path: its folder.
        results: its results.json: step, seconds, parameters, and of stage 2 validation scores.
    """

    path: Path
    results: Mapping[str, Any]

    @property
    def scores(self) -> Scores:
        """Scores on the recipe's validation split, by task; empty where it has none."""
        return without_details(self.results.get("validation", {}))

    def __repr__(self) -> str:
        size = f"{self.results['parameters'] / 1e6:.2f} M parameters"
        facts = [f"step {self.results['step']}, {self.results['seconds']} s, {size}"] if "step" in self.results else []
        return f"RunResult({self.path}: {'; '.join([*facts, *score_lines(self.scores)])})"


@dataclass(frozen=True)
class ScoreResult:
    """A run, scored.

    Attributes:
        path: the run's folder.
        results: by task its scores and "details": per image, per class, confusion matrices.
    """

    path: Path
    results: Mapping[str, Mapping[str, Any]]

    @property
    def scores(self) -> Scores:
        """The numbers alone, by task."""
        return without_details(self.results)

    def __repr__(self) -> str:
        return f"ScoreResult({self.path}: {'; '.join(score_lines(self.scores))})"


@dataclass(frozen=True)
class Training:
    """A stage of training as it was asked for: its recipe, the run's folder, and where it finds what it reads."""

    recipe: Recipe
    run: Path
    places: Places


def without_details(scores: Mapping[str, Mapping[str, Any]]) -> Scores:
    """Scores as `pipeline.training.evaluate` gives them, without what a report draws."""
    return {task: {name: v for name, v in found.items() if name != "details"} for task, found in scores.items()}


def score_lines(scores: Scores) -> list[str]:
    """A line a task: `depth: RMSE 0.7`."""
    return [f"{task}: " + ", ".join(f"{k} {number(v)}" for k, v in s.items()) for task, s in scores.items()]
