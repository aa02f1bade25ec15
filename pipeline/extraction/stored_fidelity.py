"""What stored rows are worth, measured as they are written: the first row of every shard is read back and compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy.typing as npt

from cache.codecs.fidelity import Fidelity, FidelityMeter
from cache.errors import LeadsAway
from cache.format.spec import LevelSpec
from cache.store import Store

STAGE = "stored fidelity"
"""Of the log's line that holds the figures."""

Array = npt.NDArray[Any]


class StoredFidelity:
    """Compares rows in a store with the features that the teacher made of them.

    Args:
        store: whose rows; its teacher must be calibrated.
        teacher: its part's name.
        levels: as stored.

    Attributes:
        meters: one a level.
        rows: compared.
    """

    def __init__(self, store: Store, teacher: str, levels: Sequence[LevelSpec]) -> None:
        self._store, self._teacher, self._levels = store, teacher, levels
        means = store.calibration(teacher, [f"{level.array}/mean" for level in levels]) or {}
        self.meters = [FidelityMeter(means[f"{level.array}/mean"]) for level in levels]
        self.rows = 0

    def add(self, sample: int, view: int, features: Sequence[Array]) -> None:
        """Compare a committed row with its features, float32 (h, w, C) a level."""
        for level, meter, true in zip(self._levels, self.meters, features, strict=True):
            meter.update(true, self._store.features(self._teacher, level.level, level.prefix)[sample, view])
        self.rows += 1

    def add_row_of(self, meters: Sequence[FidelityMeter]) -> None:
        """Take over what was measured of one row elsewhere."""
        for mine, other in zip(self.meters, meters, strict=True):
            mine.add(other)
        self.rows += 1

    def log(self) -> dict[str, Any]:
        """Write the figures to the store's log; returns array -> figures (see `Fidelity`)."""
        figures = {level.array: asdict(meter.compute()) for level, meter in zip(self._levels, self.meters, strict=True)}
        self._store.log({"stage": STAGE, "teacher": self._teacher, "rows": self.rows, "levels": figures})
        return figures


def logged_fidelity(store: Store, teacher: str) -> dict[str, Any] | None:
    """The last figures that were measured of a teacher's stored rows: ``rows`` and ``levels``; None where none were
    since it was last dropped."""
    for event in reversed(log_events(store)):
        if event.get("stage") == "drop" and event.get("dropped") == f"teacher {teacher}":
            return None
        if event.get("stage") == STAGE and event.get("teacher") == teacher and (figures := _figures(event)):
            return figures
    return None


def log_events(store: Store) -> list[dict[str, Any]]:
    """The store's log; what is no event, as a line that a kill cut short, is left out: no digest covers it.

    Raises:
        LeadsAway: it is a link.
    """
    try:
        lines = store.place.read(store.log_file).decode().splitlines()
    except LeadsAway:
        raise
    except (OSError, UnicodeDecodeError):
        return []
    events = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict)]


def _figures(event: dict[str, Any]) -> dict[str, Any] | None:
    """What `StoredFidelity.log` wrote; None where this is something else."""
    try:
        levels = {name: asdict(Fidelity(**values)) for name, values in event["levels"].items()}
        whole = [value for values in levels.values() for value in values.values()]
        return {"rows": event["rows"], "levels": levels} if all(isinstance(n, int | float) for n in whole) else None
    except (LookupError, TypeError, AttributeError):
        return None
