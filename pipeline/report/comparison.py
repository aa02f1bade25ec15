"""Which arm won, by how much, and whether that is established: gains by seed, paired, with their interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.facts import ArmFacts, BySeed, StudyFacts, TaskFacts
from pipeline.studies.statistics import Comparison, Summary, compare, summary, whole_mean
from sak_core.metrics import delta_m


@dataclass(frozen=True)
class Standing:
    """An arm in the order of its mean gain over the baseline, percent.

    Attributes:
        against_baseline, against_first: paired by seed, None of the arm itself.
    """

    arm: ArmFacts
    gains: BySeed
    gain: Summary
    against_baseline: Comparison | None
    against_first: Comparison | None


def standings(found: StudyFacts) -> list[Standing]:
    """The scored arms, best first; those without a gain at the end, in their own order."""
    gains = {arm.label: gain_by_seed(found, arm) for arm in found.scored}
    order = sorted(
        found.scored,
        key=lambda arm: -mean if (mean := summary(list(gains[arm.label].values())).mean) is not None else float("inf"),
    )
    first = order[0].label if order else ""

    def against(label: str, other: str) -> Comparison | None:
        return None if label == other or other not in gains else compare(gains[label], gains[other], True)

    return [
        Standing(
            arm,
            gains[arm.label],
            summary(list(gains[arm.label].values())),
            against(arm.label, found.baseline),
            against(arm.label, first),
        )
        for arm in order
    ]


def gain_by_seed(found: StudyFacts, arm: ArmFacts) -> BySeed:
    """An arm's delta_m by seed, percent, over the baseline's mean scores: None where either lacks a score."""
    base = baseline_means(found)
    return {
        seed: _gain(found.tasks, {task.name: arm.score(task).get(seed) for task in found.tasks}, base)
        for seed in arm.scored
    }


def gain_of(found: StudyFacts, scores: Mapping[str, float | None]) -> float | None:
    """The delta_m of scores by task, percent, over the baseline's mean scores."""
    return _gain(found.tasks, scores, baseline_means(found))


def no_gain(found: StudyFacts) -> str:
    """Why nothing can be counted relative to the baseline, in words; empty where it can."""
    if not found.tasks:
        return "no run has scores"
    base = found.arm(found.baseline)
    if base is None or not base.scored:
        return f"the baseline {found.baseline} has no scores" if found.baseline else "there is one arm alone"
    means = baseline_means(found)
    if zero := [task for task, value in means.items() if value == 0]:
        return f"{found.baseline} scores 0 on {', '.join(zero)}"
    if unknown := [task for task, value in means.items() if value is None]:
        return f"{found.baseline} has no score on {', '.join(unknown)}"
    return ""


def baseline_means(found: StudyFacts) -> dict[str, float | None]:
    """The baseline's mean score of every task; None where some run of it has none."""
    base = found.arm(found.baseline)
    return {task.name: whole_mean(list(base.score(task).values())) if base else None for task in found.tasks}


def versus(found: StudyFacts, arm: ArmFacts, task: TaskFacts, other: str) -> Comparison | None:
    """An arm's scores of a task against another's; None against itself or where there is no such arm."""
    against = found.arm(other)
    if against is None or against.label == arm.label:
        return None
    return compare(arm.score(task), against.score(task), task.higher_is_better)


def _gain(
    tasks: Sequence[TaskFacts], scores: Mapping[str, float | None], base: Mapping[str, float | None]
) -> float | None:
    known = {name: value for name, value in scores.items() if value is not None}
    usual = {name: value for name, value in base.items() if value}
    if not tasks or len(known) < len(tasks) or len(usual) < len(tasks):
        return None
    return delta_m(known, usual, {task.name: task.higher_is_better for task in tasks})
