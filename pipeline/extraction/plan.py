"""`sak plan`: what a run of `sak cache` would write, hold and take; and what would fit where it does not."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from cache.calibration.statistics import calibration_order
from cache.format.spec import SourceSpec
from cache.store import Store
from pipeline.console import amount, duration, table, warn
from pipeline.extraction.amounts import PartAmount, existing_store, is_calibrated
from pipeline.extraction.caching import planned_amounts, start_teachers, summary
from pipeline.extraction.extract import CALIBRATION_ROWS
from pipeline.extraction.extract import memory_bytes as teacher_memory
from pipeline.extraction.measured import as_coded, measure_source, measure_teachers
from pipeline.extraction.prepare import memory_bytes as source_memory
from pipeline.extraction.prepare import source_spec, views_at_once
from pipeline.extraction.proposals import proposals
from pipeline.extraction.request import CacheRequest
from pipeline.extraction.running import RunningTeacher
from pipeline.extraction.samples import num_decoders
from pipeline.extraction.sampling import SourceSample, TeacherSample


def plan(request: CacheRequest, started_s: float = 0.0) -> dict[str, Any]:
    """What `request` comes to, JSON-able: rows, bytes, seconds, free disk, memory, and what would fit instead.

    A few rows are prepared and extracted into a store that is thrown away; the store asked for is not touched.
    `started_s`: seconds that a run has taken before it begins, to import what it needs.
    """
    began = time.monotonic()
    spec = source_spec(request.source.open(), request.source)
    teachers = _teachers(request)
    amounts = planned_amounts(request, teachers)
    started_s += time.monotonic() - began
    source, measured = measure_source(request, spec), measure_teachers(request, spec, teachers)
    amounts = as_coded(amounts, measured)
    store = existing_store(request.features, spec)
    described = summary(request, spec, amounts)
    free, needed = described["free_bytes"], sum(part.needed_bytes for part in amounts)
    decoders = num_decoders(request.decoders)
    memory = {
        "source": source_memory(spec, views_at_once(spec, request.views, decoders), decoders),
        **{t.provenance["name"]: teacher_memory(spec, t) for t in teachers},
    }
    seconds = {"starting": started_s, "source": _source_s(source, amounts[0])}
    for part in amounts[1:]:
        seconds[_name(part.part)] = _teacher_s(measured[part.part], part, spec, store)
    fits_bytes = free is None or needed <= free
    files_left = described["free_files"]
    rows = {part: sample.rows for part, sample in measured.items()}
    return {
        **described,
        "fits": fits_bytes and (files_left is None or described["pending_files"] <= files_left),
        "memory_bytes": memory,
        "device": teachers[0].provenance["device"] if teachers else None,
        "measured_rows": {"source": source.rows, **{_name(part): count for part, count in rows.items()}},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "total_seconds": round(_total_s(seconds, teachers, _waiting(amounts, spec, store), decoders), 1),
        "proposals": [] if fits_bytes else proposals(request, teachers, rows, free),
    }


def _teachers(request: CacheRequest) -> list[RunningTeacher]:
    if not request.teachers:
        return []
    from sak_core.interfaces.teacher import TeacherUnavailable

    try:
        return start_teachers(request)
    except TeacherUnavailable as error:
        warn(f"{error}\nMeasured with untrained weights: speed is the same, bytes of entropy-coded codecs are not")
        return start_teachers(request, untrained=True)


def _name(part: str) -> str:
    return part.removeprefix("teachers/")


def _source_s(sample: SourceSample, part: PartAmount) -> float:
    return sample.start_s + part.pending_rows * sample.row_s if part.pending_rows else 0.0


def _teacher_s(sample: TeacherSample, part: PartAmount, spec: SourceSpec, store: Store | None) -> float:
    if not part.pending_rows:
        return 0.0
    rows = 0 if is_calibrated(store, part.part) else min(CALIBRATION_ROWS, spec.num_samples)
    return sample.first_s + rows * sample.calibration_s + part.pending_rows * sample.extract_s


def _waiting(amounts: Sequence[PartAmount], spec: SourceSpec, store: Store | None) -> float:
    """The share of the source that is prepared before the first teacher can begin: shards with rows to calibrate on."""
    if len(amounts) == 1 or is_calibrated(store, amounts[1].part):
        return 0.0
    first = calibration_order(spec.num_samples, spec.seed)[:CALIBRATION_ROWS]
    return len({int(sample) // spec.rows_per_shard for sample in first}) / spec.num_shards


def _total_s(seconds: dict[str, float], teachers: Sequence[RunningTeacher], waiting: float, decoders: int) -> float:
    """After what it waits for, the first teacher works beside the source: as long as the slower of the two takes, or as
    the machine's cores take for both."""
    if not teachers:
        return sum(seconds.values())
    beside, first = seconds["source"] * (1 - waiting), seconds[teachers[0].provenance["name"]]
    cores = os.cpu_count() or 1
    threads = torch.get_num_threads() if teachers[0].device.type == "cpu" else 1
    busy = beside * min(max(1, decoders), cores) + first * min(threads, cores)
    return sum(seconds.values()) - beside - first + max(beside, first, busy / cores)


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
    margin = f", and {amount(plan['margin_bytes'])} for what coding may take more" if plan["margin_bytes"] else ""
    lines = [
        plan["store"],
        "",
        table(["array", "rows to write", "bytes, all rows", "a row"], rows),
        "",
        f"to write: {amount(plan['pending_bytes'])}{margin}; "
        f"free: {free}: {'fits' if plan['fits'] else 'DOES NOT FIT'}",
        f"at most {plan['pending_files']:,} files and folders"
        + ("" if plan["free_files"] is None else f"; inodes free: {plan['free_files']:,}"),
        f"in memory at most: {', '.join(f'{name} {amount(size)}' for name, size in plan['memory_bytes'].items())}",
        f"on {plan['device'] or 'this machine'}: {duration(plan['total_seconds'])} ({seconds})",
    ]
    if not plan["fits"]:
        lines += [f"would fit: {p['change']} ({amount(p['pending_bytes'])}; {p['cost']})" for p in plan["proposals"]]
        lines += (
            []
            if plan["proposals"]
            else ["no smaller views, codec or grid fits: take fewer samples (--limit) or another --out"]
        )
    return "\n".join(lines)
