"""What would fit where a plan does not: fewer views, another codec, a coarser grid; and what each gives away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.calibration.statistics import Calibrator, calibration_rows
from cache.codecs import CODECS
from cache.codecs.fidelity import Fidelity
from cache.errors import CacheError
from cache.format.spec import LevelSpec, SourceSpec
from cache.store import Store
from cache.writing.teacher_writer import TeacherWriter
from pipeline.console import say
from pipeline.extraction.amounts import coded, existing_store, source_amount, teacher_amount
from pipeline.extraction.extract import CALIBRATION_ROWS
from pipeline.extraction.prepare import source_spec
from pipeline.extraction.request import CacheRequest
from pipeline.extraction.running import RunningTeacher, batches, level_specs
from pipeline.extraction.sampling import array_ratios, sample_store

MOST_FEATURE_BYTES = 2_000_000_000
"""Of a sample's features, which are held in memory to be coded in several ways."""


@dataclass(frozen=True)
class CodecSample:
    """A codec, measured on a teacher's sample: its levels, their bytes (see `array_ratios`), and the lowest token
    cosine of any level, plain or with the channel mean removed."""

    levels: tuple[LevelSpec, ...]
    ratios: dict[str, float]
    fidelity: float


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


def measure_codecs(
    running: RunningTeacher, request: CacheRequest, num_rows: int, codecs: Iterable[str]
) -> dict[str, CodecSample]:
    """Each of `codecs` that keeps its promise, measured on `num_rows` rows of a teacher."""
    values = sum(level.grid[0] * level.grid[1] * level.width for level in running.levels)
    num_rows = min(num_rows, max(2, MOST_FEATURE_BYTES // (4 * values)))
    measured = {}
    with sample_store(request.source, request.features, num_rows) as (store, _):
        features = _features(store, running)
        for codec in codecs:
            levels = level_specs(running.teacher, replace(running.request, codec=codec))
            try:
                measured[codec] = _measure_codec(store, codec, levels, features)
            except CacheError as error:
                say(f"{running.request.name}: no {codec}: {error}")
    running.teacher.to("cpu")
    return measured


def _features(store: Store, running: RunningTeacher) -> list[npt.NDArray[Any]]:
    rows = batches(range(store.spec.num_samples), running.request.batch_size)
    made = [running.forward(store.pixels[batch.start : batch.stop, 0]) for batch in rows]
    return [np.concatenate(level) for level in zip(*made, strict=True)]


def _measure_codec(
    store: Store, codec: str, levels: tuple[LevelSpec, ...], features: Sequence[npt.NDArray[Any]]
) -> CodecSample:
    calibrator = Calibrator(levels)
    fitted, measured = calibration_rows(store.valid(1), store.spec.seed, CALIBRATION_ROWS)
    calibrator.fit([level[fitted] for level in features])
    calibrator.measure([level[measured] for level in features])
    arrays = calibrator.arrays()
    writer = TeacherWriter(store, {"name": codec.replace("+", "-")}, levels)
    writer.write_calibration(arrays)
    for shard in range(store.spec.num_shards):
        rows = store.spec.rows(shard)
        writer.write_shard(0, shard, [level[rows.start : rows.stop] for level in features])
    figures = [Fidelity.from_array(arrays[f"{level.array}/fidelity"]) for level in levels]
    lowest = min(min(figure.cosine, figure.centred_cosine) for figure in figures)
    return CodecSample(levels, array_ratios(store, writer.name, levels), lowest)


def proposals(
    request: CacheRequest, teachers: Sequence[RunningTeacher], num_rows: Mapping[str, int], free: int
) -> list[dict[str, Any]]:
    """Changes to `request` that would fit into `free` bytes, the ones that take most of them first: the most views,
    each smaller codec, the finest grid; two changes at once where no single one is enough.

    What a store already holds of a teacher cannot change codec or grid any more.

    Args:
        num_rows: part of a teacher -> rows that its codecs are measured on.
    """
    spec = source_spec(request.source.open(), request.source)
    store = existing_store(request.features, spec)
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
