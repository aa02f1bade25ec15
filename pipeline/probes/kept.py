"""What tasks lose to a teacher's codec, as it is kept beside the calibration of its part; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from cache.format.manifest import teacher_part
from cache.store import Store
from pipeline.probes.loss import Loss

PREFIX = "probe_"
"""Begins the name of a probe's group in a calibration, which ends with the task's."""

Array = npt.NDArray[Any]


def kept_tables(store: Store, teacher: str, is_head: bool) -> dict[str, Array]:
    """The arrays of a teacher's probes, either the heads' or the scores'."""
    part = store.part(teacher_part(teacher))
    committed = (part.calibration() if part.exists else None) or {}
    names = {
        "/".join(path.split("/")[-3:-1])
        for path in committed
        if path.split("/")[-3].startswith(PREFIX) and (path.split("/")[-2] in ("weight", "bias")) == is_head
    }
    return store.calibration(teacher, names) or {} if names else {}


def kept_losses(store: Store, teacher: str) -> dict[str, Loss]:
    """What a teacher's tasks lose to its codec, as measured when it was calibrated; empty where it has no probes."""
    return {
        name.partition("/")[0].removeprefix(PREFIX): Loss.from_array(name.partition("/")[2], values)
        for name, values in sorted(kept_tables(store, teacher, is_head=False).items())
    }


def promised_of(provenance: Mapping[str, Any]) -> dict[str, float]:
    """Task -> the most that was promised to be lost, of a part with this provenance."""
    found: Any = provenance
    for name in ("notes", "probes", "promised"):
        found = found.get(name) if isinstance(found, Mapping) else None
    told = found.items() if isinstance(found, Mapping) else ()
    return {task: loss for task, loss in told if isinstance(loss, int | float)}


def told_losses(store: Store, teacher: str) -> dict[str, Any]:
    """What `sak info` tells: by task its loss, and what was ``promised``; JSON-able."""
    promised = promised_of(store.teacher(teacher).provenance)
    return {
        task: loss.to_dict() | ({"promised": promised[task]} if task in promised else {})
        for task, loss in kept_losses(store, teacher).items()
    }


def told_lines(losses: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`told_losses` for people."""
    return [
        f"probe of {task}: {Loss.from_dict(loss)}"
        + (f"; at most {loss['promised']:g} promised" if "promised" in loss else "")
        for task, loss in losses.items()
    ]
