"""A run in small: a few samples, spread over the data set, prepared and extracted into a store that is thrown away.

What it measures are the seconds and bytes a row of the real thing, on this machine and on the disk that it will use:
what is paid once (processes that start, a teacher's first batch) apart from what every row costs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.calibration.statistics import calibrated, calibration_rows
from cache.codecs import get_codec
from cache.codecs.fidelity import Fidelity
from cache.errors import CacheError
from cache.format.layout import index_bytes, source_arrays, teacher_arrays
from cache.format.manifest import teacher_part
from cache.format.spec import LevelSpec, SourceSpec
from cache.places.addresses import as_place
from cache.places.local import LocalPlace
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from cache.writing.teacher_writer import TeacherWriter
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.extraction.amounts import PartAmount, coded
from pipeline.extraction.extract import CALIBRATION_ROWS, calibrate, shard_features, write_shards
from pipeline.extraction.prepare import ROWS_PER_BLOCK, Source, source_spec
from pipeline.extraction.request import CacheRequest
from pipeline.extraction.running import RunningTeacher, level_specs
from pipeline.extraction.samples import Block, DatasetRequest, Task, join, make_blocks, num_decoders

ENOUGH_S = 5.0
"""Seconds of a teacher's work that are worth extrapolating."""
MOST_ROWS = 256
FITTED_ROWS = 32
"""Least rows that tell what a fitted codec leaves of them. Of 200 rooms, klt's bytes of the miniatures came out within
11 % from 8 rows, 4 % from 16 and 32, and 2 % from 64 on, against a calibration on all of them."""
BLOCKS_A_DECODER = 4
LEAST_BLOCKS = 8
MOST_BYTES = 500_000_000
"""Of pixels and labels that are prepared to measure how long it takes."""
MOST_FEATURE_BYTES = 2_000_000_000
"""Of a sample's features, which are held in memory to be coded in several ways."""


@dataclass(frozen=True)
class SourceSample:
    """Measured on `rows` samples: seconds until decoding is under way, and seconds that each row (a view of a sample)
    takes from then on, all processes working."""

    rows: int
    start_s: float
    row_s: float


@dataclass(frozen=True)
class TeacherSample:
    """Measured on some rows of one teacher.

    Attributes:
        rows: so many.
        first_s: seconds that the first batch takes more than the next.
        calibration_s, extract_s: seconds a row, of calibrating and of extracting.
        ratios: as `array_ratios` gives.
    """

    rows: int
    first_s: float
    calibration_s: float
    extract_s: float
    ratios: dict[str, float]


@dataclass(frozen=True)
class CodecSample:
    """A codec, measured on a teacher's sample: its levels, their bytes (see `array_ratios`), and the lowest token
    cosine of any level, plain or with the channel mean removed."""

    levels: tuple[LevelSpec, ...]
    ratios: dict[str, float]
    fidelity: float


@contextmanager
def sample_store(
    request: DatasetRequest, features: Path | str, num_rows: int, num_views: int = 1, decoders: int = 0
) -> Iterator[tuple[Store, SourceSample]]:
    """A store of `num_rows` samples, evenly spread, in `num_views` views, on the disk of `features`; gone after the
    block. `decoders` as in a run.

    Raises:
        UserError: none of them can be read.
    """
    full = source_spec(request.open(), request)
    count = min(num_rows, full.num_samples)
    step = full.num_samples // count
    spec = replace(full, num_samples=count, samples_digest="")
    views = tuple(range(num_views))
    tasks = [
        Task(range(first * step, min(first + ROWS_PER_BLOCK, rows.stop) * step, step), views)
        for rows in map(spec.rows, range(spec.num_shards))
        for first in range(rows.start, rows.stop, ROWS_PER_BLOCK)
    ]
    with _scratch(features) as folder:
        store = Store.create(folder, spec)
        store.ensure_views(num_views)
        yield store, _prepare(SourceWriter(store), tasks, make_blocks(request, full, tasks, decoders), step, decoders)


def _prepare(
    writer: SourceWriter, tasks: Sequence[Task], made: Generator[Block], step: int, decoders: int
) -> SourceSample:
    """Write the sample's source part; each process's first block counts as its start."""
    spec, views = writer.store.spec, tasks[0].views
    began = time.monotonic()
    invalid: dict[int, str] = {}
    blocks: list[Block] = []
    under_way, early_writing_s, writing_s, shard = began, 0.0, 0.0, 0
    first_blocks = min(max(1, decoders), len(tasks) - 1)
    with closing(made):
        for done, block in enumerate(made, 1):
            if done == first_blocks:
                under_way, early_writing_s = time.monotonic(), writing_s
            invalid |= {sample // step: why for sample, why in block.invalid.items()}
            blocks.append(block)
            if block.task.samples.stop // step == spec.rows(shard).stop:
                writing = time.monotonic()
                here = {sample: why for sample, why in invalid.items() if sample in spec.rows(shard)}
                for view in views:
                    writer.write_shard(view, shard, join(blocks, view), here)
                blocks, shard = [], shard + 1
                writing_s += time.monotonic() - writing
    ended = time.monotonic()
    if len(invalid) == spec.num_samples:
        raise UserError(f"none of {spec.num_samples} samples can be read: {next(iter(invalid.values()))}")
    early = sum(len(task.samples) for task in tasks[:first_blocks])
    sample_s = (ended - under_way - (writing_s - early_writing_s)) / (spec.num_samples - early)
    start_s = max(0.0, under_way - began - early_writing_s - early * sample_s)
    return SourceSample(spec.num_samples, start_s, (sample_s + writing_s / spec.num_samples) / len(views))


@contextmanager
def _scratch(features: Path | str) -> Iterator[Path]:
    """A folder on the disk where the caches will lie; the system's own where they go to a bucket."""
    place = as_place(features)
    if not isinstance(place, LocalPlace):
        with tempfile.TemporaryDirectory(prefix="sak-plan-") as folder:
            yield Path(folder)
        return
    made = [place.path, *place.path.parents]
    missing = [path for path in made if not path.exists()]
    place.path.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=place.path) as folder:
            yield Path(folder)
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def measure_source(request: CacheRequest, spec: SourceSpec) -> SourceSample:
    """Decode, draw and write some samples as the run will: enough for a few blocks of each decoding process."""
    decoders = num_decoders(request.decoders)
    blocks = max(LEAST_BLOCKS, BLOCKS_A_DECODER * decoders)
    row = sum(array.row_bytes for array in source_arrays(spec)) * request.views
    rows = min(blocks * ROWS_PER_BLOCK, max(2, MOST_BYTES // row), spec.num_samples)
    with sample_store(request.source, request.features, rows, request.views, decoders) as (_, sample):
        return sample


def as_coded(amounts: Sequence[PartAmount], measured: Mapping[str, TeacherSample]) -> list[PartAmount]:
    """`amounts` with the bytes that entropy coding leaves of each teacher's part, by the samples of `measured`."""
    return [coded(part, measured[part.part].ratios) if part.part in measured else part for part in amounts]


def measure_teachers(
    request: CacheRequest, spec: SourceSpec, teachers: Sequence[RunningTeacher]
) -> dict[str, TeacherSample]:
    """Each teacher's sample by the name of its part in the store."""
    measured: dict[str, TeacherSample] = {}
    for teacher in teachers:
        name = teacher.provenance["name"]
        say(f"{name}: measuring")
        sample = measure_teacher(teacher, request.source, request.features, spec.num_samples)
        say(f"{name}: measured on {sample.rows} rows")
        measured[teacher_part(name)] = sample
        teacher.teacher.to("cpu")
    return measured


def measure_teacher(
    running: RunningTeacher, source: DatasetRequest, features: Path | str, num_samples: int
) -> TeacherSample:
    """A teacher's sample, of a data set of `num_samples`, on the disk of `features`."""
    with sample_store(source, features, running.request.batch_size) as (store, _):
        rows, first_s = warmed_up(running, store, num_samples)
    with sample_store(source, features, rows) as (store, _):
        writer = TeacherWriter(store, running.provenance, running.levels)
        began = time.monotonic()
        writer.write_calibration(calibrate(store, running))
        calibration_s = (time.monotonic() - began) / rows
        stored = Source(store, 1)
        extract_s = write_shards(stored, writer, running, stored.order).seconds / rows
        # a sample of two calibrates on one row and measures on the other: every row once, as in the real run
        ratios = array_ratios(store, writer.name, running.levels)
        return TeacherSample(rows, first_s, calibration_s, extract_s, ratios)


def warmed_up(running: RunningTeacher, store: Store, num_samples: int) -> tuple[int, float]:
    """Rows that keep the teacher busy for `ENOUGH_S`, at least two, and `FITTED_ROWS` for a codec that is fitted; and
    the seconds that its first rows took more than the next.

    On a CPU a row takes about as long in a batch of any size: one is timed, and the sample may be less than a batch.
    """
    size = running.request.batch_size
    is_small = running.device.type == "cpu" and not running.request.compile
    timed = 1 if is_small else min(size, store.spec.num_samples)
    pixels = store.pixels[:timed, 0]
    seconds = []
    for _ in range(2):  # the first one sets things up
        began = time.monotonic()
        running.forward(pixels)
        seconds.append(time.monotonic() - began)
    is_fitted = any(get_codec(level.codec).is_fitted for level in running.levels)
    enough = round(ENOUGH_S / max(seconds[1] / timed, 1e-6))
    rows = min(max(enough, FITTED_ROWS if is_fitted else 2), MOST_ROWS)
    if rows >= size or not is_small:
        rows = -(-rows // size) * size  # whole batches
    return min(rows, num_samples), max(0.0, seconds[0] - seconds[1])


def measure_codecs(
    running: RunningTeacher, request: CacheRequest, num_rows: int, codecs: Iterable[str]
) -> dict[str, CodecSample]:
    """Each of `codecs` that keeps its promise, measured on `num_rows` rows of a teacher."""
    values = sum(level.grid[0] * level.grid[1] * level.width for level in running.levels)
    num_rows = min(num_rows, max(2, MOST_FEATURE_BYTES // (4 * values)))
    measured = {}
    with sample_store(request.source, request.features, num_rows) as (store, _):
        shards = [shard_features(store, running, 0, shard) for shard in range(store.spec.num_shards)]
        features = [np.concatenate(level) for level in zip(*shards, strict=True)]
        for codec in codecs:
            levels = level_specs(running.teacher, replace(running.request, codec=codec))
            try:
                measured[codec] = _measure_codec(store, codec, levels, features)
            except CacheError as error:
                say(f"{running.request.name}: no {codec}: {error}")
    running.teacher.to("cpu")
    return measured


def _measure_codec(
    store: Store, codec: str, levels: tuple[LevelSpec, ...], features: Sequence[npt.NDArray[Any]]
) -> CodecSample:
    fitted, measured = calibration_rows(store.valid(1), store.spec.seed, CALIBRATION_ROWS)
    arrays = calibrated(levels, [level[fitted] for level in features], [level[measured] for level in features])
    writer = TeacherWriter(store, {"name": codec.replace("+", "-")}, levels)
    writer.write_calibration(arrays)
    for shard in range(store.spec.num_shards):
        rows = store.spec.rows(shard)
        writer.write_shard(0, shard, [level[rows.start : rows.stop] for level in features])
    figures = [Fidelity.from_array(arrays[f"{level.array}/fidelity"]) for level in levels]
    lowest = min(min(figure.cosine, figure.centred_cosine) for figure in figures)
    return CodecSample(levels, array_ratios(store, writer.name, levels), lowest)


def array_ratios(store: Store, name: str, levels: Sequence[LevelSpec]) -> dict[str, float]:
    """Array of a level -> bytes of view 0 on disk as a share of what its layout takes before coding."""
    spec, ratios = store.spec, {}
    entries = store.part(teacher_part(name)).view(0)
    for level, array in zip(levels, teacher_arrays(name, levels), strict=True):
        files = (entries.file(shard, array.path).num_bytes for shard in range(spec.num_shards))
        rows = sum(files) - spec.num_shards * index_bytes(spec.rows_per_shard)
        ratios[level.array] = rows / (array.stride * spec.num_samples)
    return ratios
