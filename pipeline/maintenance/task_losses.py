"""`sak verify --probes`: what tasks lose on a store's decoded rows against the raw ones that its teachers give now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.errors import CacheError
from cache.format.manifest import teacher_part
from cache.format.spec import LevelSpec
from cache.store import Store
from pipeline.advice import advised
from pipeline.errors import UserError
from pipeline.extraction.probed import (
    Array,
    LabelledRows,
    Probing,
    coded,
    kept_probes,
    labelled_rows,
    maps_of,
    probe_teacher,
)
from pipeline.extraction.running import request_of, start_teacher
from pipeline.probes.kept import promised_of
from pipeline.recipes.stores import store_tasks
from sak_common.names import UnknownName
from sak_core.errors import TeacherUnavailable


def task_losses(
    store: Store, asked: Path | str, weights: Mapping[str, Path], device: str = "auto", allow_code: bool = False
) -> dict[str, Any]:
    """Run every teacher over labelled rows, and score its probes on raw and on decoded features.

    Probes that the store keeps are taken, else they are fitted now. A promise is broken where all of the interval lies
    above it.

    Args:
        asked: "own", the store's labelled rows, decoded as they lie in it; or another cache, whose raw features go
            through this store's codec.
        weights: teacher -> file, for teachers that were extracted with one.
        device, allow_code: as `pipeline.maintenance.recheck.recheck` takes them.

    Returns:
        teacher -> ``fitted`` (whether its probes were fitted now), ``losses`` by task, and ``problems`` in words;
        JSON-able.
    """
    rows = labelled_rows(asked, store)
    return {name: _teacher(store, name, rows, weights.get(name), device, allow_code) for name in store.teachers}


def _teacher(
    store: Store, name: str, rows: LabelledRows, weights: Path | None, device: str, allow_code: bool
) -> dict[str, Any]:
    info = store.teacher(name)
    kept = kept_probes(store, name, store_tasks(rows.store))
    result: dict[str, Any] = {"fitted": not kept, "losses": {}, "problems": []}
    try:
        if not store.is_complete(teacher_part(name), 1):
            raise UserError("its first view is not complete; `sak cache` finishes it")
        request = request_of(info.provenance, weights, device, allow_code)
        running = start_teacher(request, store.spec.size)
        probing = probe_teacher(rows, running.forward, info.levels, request.batch_size, kept or None)
        losses = probing.losses(_decoded(store, name, info.levels, rows, probing))
    except (TeacherUnavailable, UnknownName, UserError, ValueError) as error:
        result["problems"].append(f"its probes cannot be scored: {error}")
        return result
    except CacheError as error:
        result["problems"].append(advised(error))
        return result
    result["losses"] = {task: loss.to_dict() for task, loss in losses.items()}
    result["problems"] += [
        f"{task} {losses[task]}, promised is at most {most:g}"
        for task, most in promised_of(info.provenance).items()
        if task in losses and losses[task].low > most
    ]
    return result


def _decoded(
    store: Store, name: str, levels: tuple[LevelSpec, ...], rows: LabelledRows, probing: Probing
) -> list[Array]:
    if rows.store.place.shown != store.place.shown:
        return coded(maps_of(levels), store.calibration(name) or {}, probing.raw)
    return [store.features(name, level.level)[probing.scored, 0] for level in maps_of(levels)]
