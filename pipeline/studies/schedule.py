"""A study's runs in the order in which they are made: each after those that it begins with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.recipes.arms import find_arm
from pipeline.recipes.config import Data, Recipe, Study
from pipeline.runs import Places
from pipeline.studies.jobs import Job, is_finished, single_jobs

SAME_ROWS = ("stage", "data", "seed", "batch_size", "accumulate", "loader", "source")
"""The keys of a recipe that decide which rows come in which order."""

Failed = dict[Path, str]
"""Runs that ended in an error, and why."""


@dataclass(frozen=True)
class Call:
    """A run to be made.

    Attributes:
        label: that of its job.
        run: its folder.
        recipe: that of its stage.
        places: where caches and runs are.
        stage1: the run that it begins with.
        parts: the runs, of one task each, that it puts together.
        test: what it is scored on when it is trained.
    """

    label: str
    run: Path
    recipe: Recipe
    places: Places
    stage1: Path | None = None
    parts: tuple[Path, ...] = ()
    test: Data | None = None

    @property
    def needs(self) -> tuple[Path, ...]:
        """The runs that must be made before it."""
        return (*self.parts, self.stage1) if self.stage1 else self.parts

    def is_made(self) -> bool:
        """Whether the run is there already (and scored, where that is its part)."""
        from pipeline.training.evaluate import is_scored

        is_trained = is_finished(self.run, self.recipe, self.stage1, self.places)
        return is_trained and (self.test is None or is_scored(self.run, self.test, self.places))


class Schedule:
    """Groups of calls, handed out one after another, each when the runs are there that it needs."""

    def __init__(self, groups: Sequence[Sequence[Call]]) -> None:
        self._waiting = list(groups)
        self._missing = {call.run for group in groups for call in group}
        self.failed: Failed = {}

    def __iter__(self) -> Iterator[list[Call] | None]:
        """What `next` gives, until all groups are handed out."""
        while self._waiting:
            yield self.next()

    def __len__(self) -> int:
        """How many groups are not handed out yet."""
        return len(self._waiting)

    @property
    def num_calls(self) -> int:
        """How many runs have not ended."""
        return len(self._missing)

    def next(self) -> list[Call] | None:
        """The first group that is ready, without the calls whose needs failed: they fail, too. None while there is
        none."""
        for group in self._waiting:
            if self._missing.isdisjoint(need for call in group for need in call.needs):
                self._waiting.remove(group)
                able = [call for call in group if not self._fails_with_its_needs(call)]
                return able or self.next()
        return None

    def ended(self, made: Mapping[Path, str]) -> None:
        """Note which runs have ended, and why those that ended in an error."""
        self._missing -= made.keys()
        self.failed |= {run: why for run, why in made.items() if why}

    def _fails_with_its_needs(self, call: Call) -> bool:
        if call.stage1 in self.failed:
            self.ended({call.run: f"its stage 1, {call.stage1.name}, failed"})
        elif broken := [part for part in call.parts if part in self.failed]:
            self.ended({call.run: "; ".join(f"{part.name}: {self.failed.pop(part)}" for part in broken)})
        return call.run in self.failed


def calls_of(study: Study, jobs: Sequence[Job], places: Places) -> list[list[Call]]:
    """The runs of all jobs by kind, in the order in which free workers take them up.

    Stage 1 goes first, then what begins with one. What needs none fills the workers that would wait.
    """
    distilled: dict[Path, Call] = {}
    begun, singles, whole, joined = [], [], [], []
    for job in jobs:
        call = partial(Call, job.label, job.run, job.finetune, places, test=study.test)
        if job.stage1 and job.distill:
            distilled.setdefault(job.stage1, Call(job.label, job.stage1, job.distill, places))
            begun.append(call(stage1=job.stage1))
        elif find_arm(job.finetune.arm).per_task:
            parts = single_jobs(job, places)
            singles += [Call(one.label, one.run, one.finetune, places) for one in parts]
            joined.append(call(parts=tuple(one.run for one in parts)))
        else:
            whole.append(call())
    return [list(distilled.values()), begun, singles + whole, joined]


def grouped(calls: Sequence[Call], share_reads: int) -> list[list[Call]]:
    """The calls in groups of at most `share_reads`, each of runs that read the same rows in the same order; runs that
    others are put together to read none."""
    groups: list[list[Call]] = []
    open_groups: dict[str, list[Call]] = {}
    for call in calls:
        key = json.dumps([getattr(call.recipe, name) for name in SAME_ROWS], default=str)
        group = open_groups.get(key)
        if group is None or len(group) >= share_reads or call.recipe.source == "live" or call.parts:
            group = open_groups[key] = []
            groups.append(group)
        group.append(call)
    return groups
