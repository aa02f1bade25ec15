"""`sak verify --live N`: stored features held to what the teacher gives now, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.codecs import get_codec
from cache.codecs.fidelity import FidelityMeter
from cache.errors import CacheError
from cache.format.spec import LevelSpec, deciding
from cache.store import Store
from pipeline.advice import advised
from pipeline.console import progress, say
from pipeline.errors import UserError
from pipeline.extraction.request import TeacherRequest
from pipeline.extraction.running import RunningTeacher, batches, request_of, start_teacher
from pipeline.extraction.stored_fidelity import StoredFidelity
from sak_common.differences import differences
from sak_common.names import UnknownName
from sak_core.errors import TeacherUnavailable

MACHINE = ("device", "threads", "versions")
"""What of a provenance may be another here: it moves features less than their codec does."""

ALLOWED_ERROR = 2.0
"""Times the error (1 - cosine) that a codec promises as a mean over many rows, that the mean over a few may reach."""

Row = tuple[int, int]
"""(sample, view)"""


def recheck(
    store: Store,
    num_rows: int,
    weights: Mapping[str, Path] | None = None,
    device: str = "auto",
    allow_code: bool = False,
) -> dict[str, Any]:
    """Compute `num_rows` random rows of every teacher again, in the batches that they were made in, and compare.

    Args:
        weights: teacher -> file, for teachers that were extracted with one.
        device, allow_code: as of `request_of`.

    Returns:
        teacher -> ``rows`` (sample, view), ``differences`` of provenance (field, stored, now), ``levels`` with token
        cosines, and ``problems`` in words, none where all is well; JSON-able.
    """
    rng = np.random.default_rng()
    given = weights or {}
    asked = {n: request_of(store.teacher(n).provenance, given.get(n), device, allow_code) for n in store.teachers}
    return {name: _teacher(store, name, num_rows, request, rng) for name, request in asked.items()}


def _teacher(
    store: Store, name: str, num_rows: int, request: TeacherRequest, rng: np.random.Generator
) -> dict[str, Any]:
    result: dict[str, Any] = {"rows": [], "differences": [], "levels": [], "problems": []}
    info = store.teacher(name)
    try:
        running = start_teacher(request, store.spec.size)
    except (TeacherUnavailable, UnknownName, UserError, ValueError) as error:
        result["problems"].append(f"it cannot be run here: {advised(error)}")
        return result
    for field, stored, now in differences(deciding(info.provenance), deciding(running.provenance)):
        result["differences"].append({"field": field, "stored": stored, "now": now})
        message = f"{field} was {stored!r} when the features were made, is {now!r} now"
        if field.partition(".")[0] in MACHINE:
            say(f"{name}: {message}")
        else:
            result["problems"].append(message)
    shapes = [(level.grid, level.width) for level in running.levels]
    if shapes != [(level.grid, level.width) for level in info.levels]:
        return result  # there is nothing to compare cell by cell; what differs is named above
    rows = draw_rows(store, name, num_rows, rng)
    result["rows"] = [list(row) for row in rows]
    try:
        result["levels"] = _compare(store, name, running, info.levels, rows)
    except CacheError as error:
        result["problems"].append(advised(error))
    result["problems"] += [
        f"level {level['level']}: the stored features have a token cosine of {level['cosine']:.6f} (with the mean "
        f"removed {level['centred_cosine']:.6f}) to what the teacher gives now; {level['least']:.6f} is needed"
        for level in result["levels"]
        if min(level["cosine"], level["centred_cosine"]) < level["least"]
    ]
    return result


def draw_rows(store: Store, name: str, num_rows: int, rng: np.random.Generator) -> list[Row]:
    """Different rows of valid samples among the committed ones of a teacher, in order; fewer where there are fewer."""
    manifest = store.part(f"teachers/{name}")
    num_views = manifest.metadata.num_views
    shards = [(view, shard) for view in range(num_views) for shard in sorted(manifest.view(view).shards)]
    invalid = set(store.invalid(num_views))
    drawn: set[Row] = set()
    for place in rng.permutation(len(shards)):  # one a shard first, so that rows are spread over the store
        view, shard = shards[place]
        left = [sample for sample in store.spec.rows(shard) if sample not in invalid]
        if left and len(drawn) < num_rows:
            drawn.add((int(rng.choice(left)), view))
    if len(drawn) < num_rows:
        rest = [
            (sample, view)
            for view, shard in shards
            for sample in store.spec.rows(shard)
            if sample not in invalid and (sample, view) not in drawn
        ]
        more = rng.permutation(len(rest))[: num_rows - len(drawn)]
        drawn |= {rest[place] for place in more}
    return sorted(drawn, key=lambda row: (row[1], row[0]))


def _compare(
    store: Store, name: str, running: RunningTeacher, levels: Sequence[LevelSpec], rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """Token cosines, a level each, between rows as stored and as the teacher gives them now."""
    measured = StoredFidelity(store, name, levels)
    wanted = set(rows)
    with progress(f"{name} live", len(rows), "rows") as advance:
        for view, shard in sorted({(view, sample // store.spec.rows_per_shard) for sample, view in rows}):
            for batch in batches(store.spec.rows(shard), running.request.batch_size):
                chosen = [sample for sample in batch if (sample, view) in wanted]
                if not chosen:
                    continue
                features = running.forward(store.pixels[batch.start : batch.stop, view])
                for sample in chosen:
                    measured.add(sample, view, [maps[sample - batch.start] for maps in features])
                advance(len(chosen))
    return [_figures(level, meter) for level, meter in zip(levels, measured.meters, strict=True)] if rows else []


def _figures(level: LevelSpec, meter: FidelityMeter) -> dict[str, Any]:
    fidelity = meter.compute()
    promised = level.fidelity or get_codec(level.codec).promised_cosine
    return {
        "level": level.level,
        "cosine": fidelity.cosine,
        "centred_cosine": fidelity.centred_cosine,
        "least": 1 - ALLOWED_ERROR * (1 - promised),
    }
