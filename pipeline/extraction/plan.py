"""`sak plan`: what a run of `sak cache` would write, hold and take; and what would fit where it does not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cache.codecs import CODECS, get_codec
from cache.spec import SourceSpec
from cache.store import Store
from pipeline.console import amount, duration, say, table, warn
from pipeline.extraction.amounts import PartAmount, existing_store, source_amount, teacher_amount
from pipeline.extraction.caching import CacheRequest, planned_amounts, start_teachers, summary
from pipeline.extraction.extract import CALIBRATION_ROWS
from pipeline.extraction.extract import memory_bytes as teacher_memory
from pipeline.extraction.prepare import memory_bytes as source_memory
from pipeline.extraction.prepare import source_spec, views_at_once
from pipeline.extraction.running import RunningTeacher
from pipeline.extraction.samples import num_decoders
from pipeline.extraction.sampling import (
    SourceSample,
    TeacherSample,
    measure_teacher,
    rows_worth_measuring,
    sample_store,
)

POOL_START_S = 2.0
"""Seconds until processes that decode have started."""


def plan(request: CacheRequest) -> dict[str, Any]:
    """What `request` comes to, JSON-able: rows, bytes, seconds, free disk, memory, and what would fit instead.

    A few rows are prepared and extracted into a store that is thrown away; the store asked for is not touched.
    """
    began = time.monotonic()
    spec = source_spec(request.source.open(), request.source)
    teachers = _teachers(request)
    amounts = planned_amounts(request, teachers)
    starting_s = time.monotonic() - began
    rows = min(spec.num_samples, max(2, request.run["batch_size"]))
    source, measured = _measure(request, spec, teachers, rows)
    amounts = [_coded(part, measured.get(part.part)) for part in amounts]
    store = existing_store(request.features, spec)
    described = summary(request, spec, amounts)
    free, needed = described["free_bytes"], described["pending_bytes"]
    decoders = num_decoders(request.decoders)
    memory = {
        "source": source_memory(spec, views_at_once(spec, request.views, decoders), decoders),
        **{t.provenance["name"]: teacher_memory(spec, t) for t in teachers},
    }
    seconds = {
        "starting": starting_s + (POOL_START_S if decoders else 0),
        "source": amounts[0].pending_rows * _source_row_s(source, request.views, decoders),
    }
    for teacher, part in zip(teachers, amounts[1:], strict=True):
        seconds[teacher.provenance["name"]] = _teacher_s(measured[part.part], part, spec, store)
    return {
        **described,
        "fits": free is None or needed <= free,
        "memory_bytes": memory,
        "device": teachers[0].provenance["device"] if teachers else None,
        "measured_rows": {"source": source.rows, **{_name(part): sample.rows for part, sample in measured.items()}},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "total_seconds": round(_total_s(seconds, teachers), 1),
        "proposals": [] if free is None or needed <= free else proposals(request, teachers, free),
    }


def _teachers(request: CacheRequest) -> list[RunningTeacher]:
    if not request.teachers:
        return []
    from sak_core.teachers.base import TeacherUnavailable

    try:
        return start_teachers(request)
    except TeacherUnavailable as error:
        warn(f"{error}\nMeasured with untrained weights: speed is the same, bytes of entropy-coded codecs are not")
        return start_teachers(request, untrained=True)


def _measure(
    request: CacheRequest, spec: SourceSpec, teachers: Sequence[RunningTeacher], rows: int
) -> tuple[SourceSample, dict[str, TeacherSample]]:
    """The source's sample, and each teacher's by part."""
    with sample_store(request.source, request.features, rows, request.views) as (store, source):
        worth = {t.provenance["name"]: rows_worth_measuring(t, store, spec.num_samples) for t in teachers}
    measured: dict[str, TeacherSample] = {}
    for teacher in teachers:
        name = teacher.provenance["name"]
        say(f"{name}: measured on {worth[name]} rows")
        with sample_store(request.source, request.features, worth[name], 1) as (store, _):
            measured[f"teachers/{name}"] = measure_teacher(teacher, store)
        teacher.teacher.to("cpu")
    return source, measured


def _name(part: str) -> str:
    return part.removeprefix("teachers/")


def _coded(part: PartAmount, sample: TeacherSample | None) -> PartAmount:
    """`part` with the bytes that entropy coding was seen to leave of it."""
    if sample is None:
        return part
    arrays = {path: round(size * sample.array_ratios[path]) for path, size in part.array_bytes.items()}
    saved = 1 - sum(arrays.values()) / max(part.num_bytes, 1)
    return replace(part, array_bytes=arrays, pending_bytes=round(part.pending_bytes * (1 - saved)))


def _source_row_s(source: SourceSample, num_views: int, decoders: int) -> float:
    return source.decode_s / num_views / max(1, decoders) + source.write_s


def _teacher_s(sample: TeacherSample, part: PartAmount, spec: SourceSpec, store: Store | None) -> float:
    has_part = store is not None and store.part(part.part).exists
    is_calibrated = store is not None and has_part and store.part(part.part).calibration() is not None
    rows = 0 if is_calibrated or not part.pending_rows else min(CALIBRATION_ROWS, spec.num_samples)
    return rows * sample.calibration_s + part.pending_rows * sample.extract_s


def _total_s(seconds: dict[str, float], teachers: Sequence[RunningTeacher]) -> float:
    """On a GPU preparing hides behind the first teacher, or that behind preparing; on a CPU they share the cores."""
    if teachers and teachers[0].device.type != "cpu":
        first = teachers[0].provenance["name"]
        return sum(seconds.values()) - min(seconds["source"], seconds[first])
    return sum(seconds.values())


def proposals(request: CacheRequest, teachers: Sequence[RunningTeacher], free: int) -> list[dict[str, Any]]:
    """Changes to `request` that would fit into `free` bytes, the least of each kind; two kinds at once where no single
    one is enough. What a store already holds of a teacher cannot change codec or grid any more."""
    spec = source_spec(request.source.open(), request.source)
    store = existing_store(request.features, spec)
    height, width = spec.size
    longest = max((max(level.grid) for teacher in teachers for level in teacher.levels), default=0)
    grids = [
        (max(1, side * height // max(spec.size)), max(1, side * width // max(spec.size)))
        for side in range(longest - 1, 3, -1)
    ]
    own = np.dtype(get_codec(request.run["codec"]).stored_dtype).itemsize
    sizes = {name: np.dtype(codec.stored_dtype).itemsize for name, codec in CODECS.items()}
    codecs = sorted((name for name in sizes if sizes[name] < own), key=lambda name: -sizes[name])
    if any(store is not None and t.provenance["name"] in store.teachers for t in teachers):
        grids, codecs = [], []
    fewer = range(request.views - 1, 0, -1)

    def needed(views: int, codec: str | None = None, grid: tuple[int, int] | None = None) -> int:
        total = source_amount(spec, store, views).pending_bytes
        for teacher in teachers:
            levels = [replace(level, codec=codec or level.codec, grid=grid or level.grid) for level in teacher.levels]
            total += teacher_amount(spec, store, teacher.provenance["name"], levels, views).pending_bytes
        return total

    def first_fit(changes: Iterable[tuple[str, int, str | None, tuple[int, int] | None]]) -> list[dict[str, Any]]:
        for option, views, codec, grid in changes:
            if (size := needed(views, codec, grid)) <= free:
                return [{"change": option, "pending_bytes": size}]
        return []

    single = [
        *first_fit((f"--views {views}", views, None, None) for views in fewer),
        *first_fit((f"--codec {codec}", request.views, codec, None) for codec in codecs),
        *first_fit((f"--grid {h}x{w}", request.views, None, (h, w)) for h, w in grids),
    ]
    return single or [
        *first_fit((f"--views {v} --codec {codec}", v, codec, None) for v in fewer for codec in codecs),
        *first_fit(
            (f"--codec {codec} --grid {h}x{w}", request.views, codec, (h, w)) for codec in codecs for h, w in grids
        ),
        *first_fit((f"--views 1 --grid {h}x{w}", 1, None, (h, w)) for h, w in grids),
    ]


def plan_text(plan: dict[str, Any]) -> str:
    """`plan` for people."""
    rows = []
    for part in plan["parts"]:
        for array, size in part["array_bytes"].items():
            if part["part"] == "source" and not array.startswith(("pixels", "labels/")):
                continue
            rows.append([array, f"{part['pending_rows']} of {part['rows']}", amount(size), amount(size / part["rows"])])
    seconds = ", ".join(f"{name} {duration(value)}" for name, value in plan["seconds"].items())
    free = "no end of it (a bucket)" if plan["free_bytes"] is None else amount(plan["free_bytes"])
    lines = [
        plan["store"],
        "",
        table(["array", "rows to write", "bytes, all rows", "a row"], rows),
        "",
        f"to write: {amount(plan['pending_bytes'])}; free: {free}: {'fits' if plan['fits'] else 'DOES NOT FIT'}",
        f"in memory at most: {', '.join(f'{name} {amount(size)}' for name, size in plan['memory_bytes'].items())}",
        f"on {plan['device'] or 'this machine'}: {duration(plan['total_seconds'])} ({seconds})",
    ]
    if not plan["fits"]:
        lines += [f"would fit: {p['change']} ({amount(p['pending_bytes'])})" for p in plan["proposals"]]
        lines += (
            []
            if plan["proposals"]
            else ["no smaller views, codec or grid fits: take fewer samples (--limit) or another --out"]
        )
    return "\n".join(lines)
