"""A distillation step fed from the cache beside the same step on one resident batch, and where a step's time goes."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Result, Row, installed
from benchmarks.training import (
    DEVICE,
    PHASES,
    add_checksum,
    endless,
    make_trainee,
    plain_batch,
    random_store,
    time_steps,
)
from cache.format.spec import LevelSpec
from cache.loading.loader import Loader

GOAL = "a step fed from the cache (fp16, base towers, 384 px) takes at most 1.02 of the same step on a resident batch"
MOST = 1.02


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        size: side of the square views, px.
        teachers: (grid, width) of four levels by name.
        stem: timm's name, or a custom one's dimensions.
        rows: in the store.
        steps: timed a round and side.
    """

    size: int
    teachers: Mapping[str, tuple[int, int]]
    stem: str | Mapping[str, int]
    batch_size: int
    rows: int
    steps: int
    rounds: int


FULL = Case(384, {"dinov2": (27, 768), "clip": (24, 768), "sam": (64, 768)}, "vit_base_patch16_384", 2, 16, 4, 3)
SMALL_STEM = {"patch_size": 8, "width": 192, "depth": 6, "heads": 3}
QUICK = Case(96, {"dinov2": (12, 192), "clip": (12, 192), "sam": (24, 192)}, SMALL_STEM, 4, 32, 4, 3)


def run(quick: bool) -> Result:
    """Both sides in turns on one student, after both have delivered the same bytes; then a few steps by phase."""
    case = QUICK if quick else FULL
    levels = {name: [LevelSpec(i, (g, g), c, "fp16") for i in range(4)] for name, (g, c) in case.teachers.items()}
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
        store = random_store(Path(folder), (case.size, case.size), levels, case.rows)

        def loader() -> Loader:
            return Loader(store, list(levels), batch_size=case.batch_size, num_views=1)

        trainee = make_trainee(store, case.stem)
        resident = plain_batch(store, loader())
        note = f"{DEVICE.type}, batch {case.batch_size}, {case.size} px"
        rows = [
            Row(name, installed("torch"), note, unit="steps/s", amount=case.steps)
            for name in ("resident batch", "cache")
        ]
        add_checksum(rows[0], [resident])
        add_checksum(rows[1], [next(endless(loader()))])
        assert rows[0].checksum == rows[1].checksum, "the loader delivers other bytes than the reader"
        for _ in range(case.rounds):
            rows[0].seconds.append(time_steps(trainee, lambda: resident, case.steps))
            batches = endless(loader())
            rows[1].seconds.append(time_steps(trainee, lambda: next(batches), case.steps))  # noqa: B023
        batches = endless(loader())
        time_steps(trainee, lambda: next(batches), case.steps, by_phase=True)
        batches.close()
    resident_s, cached_s = (statistics.median(row.seconds) for row in rows)
    phases = {phase: statistics.median(trainee.seconds[phase]) for phase in PHASES}
    value = {"cache_over_resident": cached_s / resident_s, **{f"{k}_share": v for k, v in _shares(phases).items()}}
    return Result("step", GOAL, value, value["cache_over_resident"] <= MOST, rows)


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}
