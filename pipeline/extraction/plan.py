"""`sak plan`: what a run of `sak cache` would write, hold and take; and what would fit where it does not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch

from cache.calibration.statistics import calibration_order
from cache.codecs import CODECS
from cache.format.spec import SourceSpec
from cache.store import Store
from pipeline.advice import advised
from pipeline.console import amount, duration, table, warn
from pipeline.errors import UserError
from pipeline.extraction.amounts import PartAmount, coded, existing_store, is_calibrated, source_amount, teacher_amount
from pipeline.extraction.caching import planned_amounts, start_teachers, summary
from pipeline.extraction.extract import CALIBRATION_ROWS
from pipeline.extraction.extract import memory_bytes as teacher_memory
from pipeline.extraction.prepare import memory_bytes as source_memory
from pipeline.extraction.prepare import source_spec, views_at_once
from pipeline.extraction.request import CacheRequest
from pipeline.extraction.running import RunningTeacher
from pipeline.extraction.samples import num_decoders
from pipeline.extraction.sampling import (
    CodecSample,
    TeacherSample,
    as_coded,
    measure_codecs,
    measure_source,
    measure_teachers,
)


def plan(request: CacheRequest, started_s: float = 0.0) -> dict[str, Any]:
    """What `request` comes to, JSON-able: rows, bytes, seconds, free disk, memory, and what would fit instead.

    A few rows are prepared and extracted into a store that is thrown away; the store asked for is not touched.
    Args:
        started_s: seconds that a run has taken before it begins, to import what it needs.

    Raises:
        UserError, or what building the teachers raises: a promise about tasks is asked for.
    """
    if request.options.promised:
        raise UserError("what a promise about tasks takes is not known before: plan with a token cosine, such as 0.995")
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
    pending = amounts[0].pending_rows
    seconds = {"starting": started_s, "source": source.start_s + pending * source.row_s if pending else 0.0}
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
        "proposals": [] if fits_bytes else proposals(request, spec, store, teachers, rows, free),
    }


def _teachers(request: CacheRequest) -> list[RunningTeacher]:
    if not request.teachers:
        return []
    from sak_core.errors import TeacherUnavailable

    try:
        return start_teachers(request)
    except TeacherUnavailable as error:
        if request.options.weights is not None:
            raise  # a hub may answer another day; a file that is not there or does not fit would stop the run, too
        warn(advised(error))
        warn("measured with untrained weights: speed is the same, bytes of entropy-coded codecs are not")
        return start_teachers(request, untrained=True)


def _name(part: str) -> str:
    return part.removeprefix("teachers/")


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


@dataclass(frozen=True)
class Proposal:
    """A change of a run's options.

    Attributes:
        change: the options.
        pending_bytes, margin_bytes: what is then to be written, and the margin of what was measured.
        fidelity: the lowest token cosine of any level, measured on the sample.
        cost: what is given away, in words.
    """

    change: str
    pending_bytes: int
    margin_bytes: int
    fidelity: float
    cost: str


def proposals(
    request: CacheRequest,
    spec: SourceSpec,
    store: Store | None,
    teachers: Sequence[RunningTeacher],
    num_rows: Mapping[str, int],
    free: int,
) -> list[dict[str, Any]]:
    """Changes to `request` that would fit into `free` bytes, the ones that take most of them first: the most views,
    each smaller codec, the finest grid; two changes at once where no single one is enough.

    What a store already holds of a teacher cannot change codec or grid any more.

    Args:
        spec, store: of the cache asked for, and what is there of it.
        num_rows: part of a teacher -> rows that its codecs are measured on.
    """
    own = request.options.codec
    is_fixed = any(store is not None and teacher.provenance["name"] in store.teachers for teacher in teachers)
    asked = [own] if is_fixed else [own, *(name for name in CODECS if name != own)]
    samples = [measure_codecs(t, request, num_rows[f"teachers/{t.provenance['name']}"], asked) for t in teachers]
    changed = _Changed(request, spec, store, teachers, samples)
    fewer = range(request.views - 1, 0, -1)
    codecs = [] if is_fixed or not teachers else changed.smaller_codecs()
    grids = [] if is_fixed else _coarser(spec, teachers)

    def fitting(made: Iterable[Proposal]) -> Iterator[Proposal]:
        return (proposal for proposal in made if proposal.pending_bytes + proposal.margin_bytes <= free)

    found = [
        *islice(fitting(changed.to(views=views) for views in fewer), 1),
        *fitting(changed.to(codec=codec) for codec in codecs),
        *islice(fitting(changed.to(grid=grid) for grid in grids), 1),
    ]
    if not found:
        for codec in codecs:
            found += islice(fitting(changed.to(views=views, codec=codec) for views in fewer), 1)
            found += islice(fitting(changed.to(codec=codec, grid=grid) for grid in grids), 1)
        found += islice(fitting(changed.to(views=1, grid=grid) for grid in grids), 1 if request.views > 1 else 0)
    return [asdict(proposal) for proposal in sorted(found, key=lambda proposal: -proposal.pending_bytes)]


def _coarser(spec: SourceSpec, teachers: Sequence[RunningTeacher]) -> list[tuple[int, int]]:
    """Grids of the views' shape that every level can be averaged to and some gets smaller by, the finest first."""
    height, width = spec.size
    own = [level.grid for teacher in teachers for level in teacher.levels if not level.prefix]
    if not own:
        return []
    sides = range(max(max(grid) for grid in own) - 1, 3, -1)
    made = [(max(1, side * height // max(spec.size)), max(1, side * width // max(spec.size))) for side in sides]
    return [(h, w) for h, w in made if all(h <= rows and w <= columns for rows, columns in own)]


@dataclass(frozen=True)
class _Changed:
    """A request's bytes with some of its options changed."""

    request: CacheRequest
    spec: SourceSpec
    store: Store | None
    teachers: Sequence[RunningTeacher]
    samples: Sequence[Mapping[str, CodecSample]]

    def smaller_codecs(self) -> list[str]:
        """The codecs that write less than the asked one, the largest first."""
        kept = [codec for codec in CODECS if all(codec in sample for sample in self.samples)]
        size = {codec: self.to(codec=codec).pending_bytes for codec in kept}
        return sorted((c for c in kept if size[c] < size[self.request.options.codec]), key=lambda codec: -size[codec])

    def to(
        self, *, views: int | None = None, codec: str | None = None, grid: tuple[int, int] | None = None
    ) -> Proposal:
        """The request with these options changed. At another grid a value is taken to cost what it does at the own."""
        request = self.request
        used = [sample[codec or request.options.codec] for sample in self.samples]
        options, costs = [], []
        if views is not None:
            options.append(f"--views {views}")
            costs.append(f"{views} of {request.views} views a sample")
        if codec is not None:
            options.append(f"--codec {codec}")
        if grid is not None:
            options.append(f"--grid {grid[0]}x{grid[1]}")
            native = max(level.grid for teacher in self.teachers for level in teacher.levels if not level.prefix)
            costs.append(f"{grid[0]}x{grid[1]} cells, means of {native[0]}x{native[1]}")
        fidelity = min((sample.fidelity for sample in used), default=1.0)
        costs += [f"{codec or request.options.codec}: token cosine {fidelity:.4f}"] if self.teachers else []
        parts = [source_amount(self.spec, self.store, views or request.views)]
        for teacher, sample in zip(self.teachers, used, strict=True):
            levels = [
                replace(level, grid=level.grid if level.prefix else grid or level.grid) for level in sample.levels
            ]
            part = teacher_amount(self.spec, self.store, teacher.provenance["name"], levels, views or request.views)
            parts.append(coded(part, sample.ratios))
        pending, margin = (sum(getattr(part, key) for part in parts) for key in ("pending_bytes", "margin_bytes"))
        return Proposal(" ".join(options), pending, margin, round(fidelity, 6), ", ".join(costs))


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
        if not plan["proposals"]:
            lines.append("no smaller views, codec or grid fits: take fewer samples (--limit) or another --out")
    return "\n".join(lines)
