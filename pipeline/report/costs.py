"""What arms cost: training by run, the teachers' one pass that all runs share, and what it saved them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from pipeline.report.facts import ArmFacts, Extraction, RunFacts, StudyFacts

TEACHERS = "teachers/"


@dataclass(frozen=True)
class ArmCost:
    """What one trained system of an arm takes; None where nothing tells.

    Attributes:
        seconds: of training, both stages, mean over seeds.
        extraction_seconds: of the teachers' parts that it reads, paid once for all runs.
        cache_bytes: of these parts with their pixels and labels.
    """

    seconds: float | None
    parameters: int | None
    extraction_seconds: float | None
    cache_bytes: int | None


@dataclass(frozen=True)
class Reuse:
    """The teachers' pass paid once, against running them in every training run.

    Attributes:
        paid_seconds: extraction of every part that some run read.
        live_seconds: of the teachers, had each run computed what it read.
        runs: that read features.
        break_even: runs after which the pass has paid for itself.
    """

    paid_seconds: float
    live_seconds: float
    runs: int
    break_even: int

    @property
    def saved_seconds(self) -> float:
        """What reuse saved; negative where the runs were too few."""
        return self.live_seconds - self.paid_seconds


def arm_cost(found: StudyFacts, arm: ArmFacts) -> ArmCost:
    """What one trained system of an arm takes."""
    finals = [run for run in (arm.runs or arm.stage1).values() if run.results]
    every = [*arm.runs.values(), *arm.stage1.values()]
    parts = {(part.store, part.teacher): part for run in every for part, _ in parts_read(found, run)}
    stores = {name for run in every for name in stores_read(run)}
    known = stores and stores <= set(found.caches)
    size = sum(part.bytes for part in parts.values()) + sum(
        found.caches[name].source_bytes for name in stores if name in found.caches
    )
    return ArmCost(
        seconds=mean(float(run.results["seconds"]) for run in finals) if finals else None,
        parameters=int(finals[0].results["parameters"]) if finals else None,
        extraction_seconds=_total(list(parts.values())) if known else None,
        cache_bytes=size if known else None,
    )


def reuse(found: StudyFacts) -> Reuse | None:
    """What the cache saved all runs of the report together; None where no run read features, or no log tells."""
    reads = {run.name: list(parts_read(found, run)) for run in found.runs if run.results}
    reading = {name: parts for name, parts in reads.items() if parts}
    paid = _total(list({(part.store, part.teacher): part for parts in reading.values() for part, _ in parts}.values()))
    costs = [(part.seconds_a_row, rows) for parts in reading.values() for part, rows in parts]
    live = sum(cost * rows for cost, rows in costs if cost is not None)
    if not reading or paid is None or not live:
        return None
    return Reuse(paid, live, len(reading), math.ceil(paid / (live / len(reading))))


def parts_read(found: StudyFacts, run: RunFacts) -> Iterator[tuple[Extraction, int]]:
    """The teachers' parts that a run read of the caches that are known, and how many rows of each, repeats counted."""
    trained, scored = (origin.get("caches", {}) for origin in run.origins)
    for caches, is_training in ((trained, True), (scored, False)):
        for store, parts in caches.items():
            if store not in found.caches:
                continue
            for part in parts:
                teacher = part.removeprefix(TEACHERS)
                if part.startswith(TEACHERS) and teacher in found.caches[store].teachers:
                    yield (
                        found.caches[store].teachers[teacher],
                        run.rows if is_training else found.caches[store].samples,
                    )


def stores_read(run: RunFacts) -> set[str]:
    """The caches that a run was trained and scored on."""
    return {name for origin in run.origins for name in origin.get("caches", {})}


def _total(parts: Sequence[Extraction]) -> float | None:
    seconds = [part.seconds for part in parts]
    known = [one for one in seconds if one is not None]
    return sum(known) if len(known) == len(seconds) else None
