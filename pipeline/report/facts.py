"""What a report rests on: a study's runs, arms and caches as plain values, and what of them is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.runs.lineage import Lineage

State = Literal["finished", "running", "stopped", "waiting", "failed", "broken"]
"""waiting: planned, not begun. stopped: begun, and no process works there. failed: it ended in an error, as the study's
table says. broken: what lies in its folder cannot be read."""

BySeed = Mapping[int, float | None]
"""Values by seed; None where a run has none."""


@dataclass(frozen=True)
class TaskFacts:
    """A task as its scores name it.

    Attributes:
        kind: of `sak_core.tasks.KINDS`.
        score: the primary one.
    """

    name: str
    kind: str
    score: str
    higher_is_better: bool

    @property
    def unit(self) -> str:
        """Of the primary score."""
        return {"depth": "m", "normals": "°"}.get(self.kind, "%")

    @property
    def after(self) -> str:
        """The unit as it follows a number."""
        return self.unit if self.unit == "°" else f" {self.unit}"

    @property
    def digits(self) -> int:
        """Decimals that the primary score is shown with."""
        return 3 if self.kind == "depth" else 1


@dataclass(frozen=True)
class Scored:
    """A run's scores on one split: {task: {score: value}}, what a report can draw of them, and what they come from."""

    scores: Mapping[str, Mapping[str, float | None]]
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    made_from: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """One run's folder, read.

    Attributes:
        why: what is to be said of its state, empty where nothing is.
        recipe, results, lineage: of its files; empty or None where they are not there.
        metrics: lines of metrics.jsonl; of a student a task, none.
        splits: what it is scored on, by the split's name. on: its scores on the split that the report compares on.
        command: that began it.
    """

    folder: Path
    label: str
    arm: str
    seed: int
    stage: str
    state: State
    why: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    lineage: Lineage | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    splits: Mapping[str, Scored] = field(default_factory=dict)
    on: Scored | None = None
    command: str = ""

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.folder.name

    @property
    def step(self) -> int:
        """The last step that it logged."""
        return max((int(line["step"]) for line in self.metrics), default=int(self.results.get("step", 0)))

    @property
    def steps(self) -> int:
        """All that its recipe asks for."""
        return int(self.recipe.get("steps", 0))

    @property
    def seconds_by_part(self) -> Mapping[str, float]:
        """Of its training, by part of a step (`pipeline.training.clock.PARTS`); empty where it is not told."""
        told: Mapping[str, float] = self.results.get("seconds_by_part", {})
        return told

    @property
    def origins(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What it was trained from, and what its scores come from; empty where nothing tells (`pipeline.runs`)."""
        return self.results.get("made_from", {}), self.on.made_from if self.on else {}

    @property
    def rows(self) -> int:
        """Rows that it was trained on, over all its steps."""
        return self.steps * int(self.recipe.get("batch_size", 0))


@dataclass(frozen=True)
class ArmFacts:
    """One arm or variation: its runs of each stage by seed. A run of stage 1 may be several arms'."""

    label: str
    arm: str
    runs: Mapping[int, RunFacts]
    stage1: Mapping[int, RunFacts]

    @property
    def scored(self) -> Mapping[int, RunFacts]:
        """The runs that have scores."""
        return {seed: run for seed, run in self.runs.items() if run.on is not None}

    def score(self, task: TaskFacts) -> BySeed:
        """Its primary scores of a task."""
        return {
            seed: run.on.scores.get(task.name, {}).get(task.score)
            for seed, run in self.runs.items()
            if run.on is not None
        }

    def first(self) -> RunFacts | None:
        """A run to say things by that all seeds share: the last stage's finished one with the lowest seed."""
        for runs in (self.scored, self.runs, self.stage1):
            for _, run in sorted(runs.items()):
                if run.recipe:
                    return run
        return None


@dataclass(frozen=True)
class Extraction:
    """What a teacher's part of a cache took.

    Attributes:
        seconds: of all runs that the store's log tells of, None where none.
    """

    store: str
    teacher: str
    rows: int
    bytes: int
    seconds: float | None
    codecs: tuple[str, ...]
    promised: float | None
    measured: float | None
    device: str
    shares: Mapping[str, float]
    provenance: Mapping[str, Any]

    @property
    def seconds_a_row(self) -> float | None:
        """What a row costs; None where the log does not tell."""
        return None if self.seconds is None or not self.rows else self.seconds / self.rows


@dataclass(frozen=True)
class CacheFacts:
    """A cache that runs of the report read.

    Attributes:
        path: where it lies.
        others: where it lies, too, with other teachers; `teachers` are those of all.
    """

    name: str
    path: str
    dataset: str
    split: str
    size: tuple[int, int]
    samples: int
    views: int
    source_bytes: int
    prepare_seconds: float | None
    teachers: Mapping[str, Extraction]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyFacts:
    """Everything that the panels are made of.

    Attributes:
        split: that scores are of; empty where there are none.
        baseline: the arm that gains are counted from; empty where there is none.
        constant: scores of the best constant prediction by task, where the study's table has them.
        derived: rows of the study's table that no run stands behind, mean and std by task.
        remarks: what a reader must know before comparing: other caches, other budgets, runs that are not there.
    """

    name: str
    is_study: bool
    split: str
    baseline: str
    seeds: tuple[int, ...]
    arms: Sequence[ArmFacts]
    tasks: Sequence[TaskFacts]
    caches: Mapping[str, CacheFacts]
    constant: Mapping[str, float | None] = field(default_factory=dict)
    derived: Mapping[str, Mapping[str, Mapping[str, float | None]]] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def runs(self) -> list[RunFacts]:
        """Every run once, stage 1 first; one that several arms begin from is the first one's."""
        once: dict[Path, RunFacts] = {}
        for runs in (*(arm.stage1 for arm in self.arms), *(arm.runs for arm in self.arms)):
            for run in runs.values():
                once.setdefault(run.folder, run)
        return list(once.values())

    def arm(self, label: str) -> ArmFacts | None:
        """The arm of that label, None where there is none."""
        return next((arm for arm in self.arms if arm.label == label), None)

    @property
    def scored(self) -> list[ArmFacts]:
        """The arms that have a score."""
        return [arm for arm in self.arms if arm.scored]
