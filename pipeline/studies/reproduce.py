"""`sak reproduce`: a study from nothing to its page: caches, runs, record. What is there already stays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.console import duration, say
from pipeline.errors import UserError
from pipeline.recipes.config import Study, load_study
from pipeline.runs import Places
from pipeline.studies import record
from pipeline.studies.ablate import ablate
from pipeline.studies.caches import prepare_caches, run_teachers

STUDIES = ("claim", "parts", "views", "scale", "rivals", "proxy", "lora")
"""The studies of `docs/reproduction/`, in order."""

SMALL = {"steps": 4, "batch_size": 8, "schedule.warmup_steps": 1}
SMALL_SAMPLES = 16


def reproduce(
    names: Sequence[str], folder: Path, docs: Path, *, workers: int = 2, share_reads: int = 1, small: bool = False
) -> list[dict[str, Any]]:
    """Make the caches of every study below `folder`, run it, and write its record to `docs`; returns the records.

    Args:
        small: a trial of every step in seconds, with few samples and steps, whose numbers mean nothing.

    Raises:
        UserError: a study does not say which caches it reads.
    """
    found = []
    for name in names or STUDIES:
        study = load_study(name)
        if not study.caches:
            raise UserError(f"study {study.name} names no caches ([[caches]]): make them, then run `sak ablate {name}`")
        found.append(_one(small_study(study) if small else study, folder, docs, workers, share_reads))
    return found


def small_study(study: Study) -> Study:
    """The study with few samples, one seed and few steps: a trial of the line, not of the claim."""
    caches = tuple(
        cache.model_copy(update={"limit": min(cache.limit or SMALL_SAMPLES, SMALL_SAMPLES)}) for cache in study.caches
    )
    return study.model_copy(update={"caches": caches, "seeds": study.seeds[:1], "set": {**study.set, **SMALL}})


def _one(study: Study, folder: Path, docs: Path, workers: int, share_reads: int) -> dict[str, Any]:
    places = Places(folder / "features", folder / "runs")
    start = time.monotonic()
    say(f"{study.name}: {len(study.caches)} caches")
    prepare_caches(study.caches, folder / "features")
    run_teachers(study.caches, folder / "features", workers)
    result = ablate(study, places, workers, share_reads)
    recorded = record.record(study, places, result)
    paths = record.write(recorded, docs)
    say(f"{study.name}: {duration(time.monotonic() - start)}; {', '.join(map(str, paths))}")
    return recorded
