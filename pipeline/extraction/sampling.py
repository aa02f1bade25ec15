"""A run in small: a few samples, spread over the data set, prepared and extracted into a store that is thrown away.

What it measures are the seconds and bytes a row of the real thing, on this machine and on the disk that it will use.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cache.layout import index_bytes, teacher_arrays
from cache.places import LocalPlace, as_place
from cache.store import Store
from cache.teacher_writer import TeacherWriter
from cache.writer import SourceWriter
from pipeline.errors import UserError
from pipeline.extraction.extract import calibrate, write_shards
from pipeline.extraction.prepare import Source, source_spec
from pipeline.extraction.running import RunningTeacher
from pipeline.extraction.samples import DatasetRequest, Task, join, make_block

ENOUGH_S = 5.0
"""Seconds of a teacher's work that are worth extrapolating."""
MOST_ROWS = 256


@dataclass(frozen=True)
class SourceSample:
    """Seconds that one process takes to decode a sample and make all its views, and to write a row."""

    rows: int
    decode_s: float
    write_s: float


@dataclass(frozen=True)
class TeacherSample:
    """Measured on some rows of one teacher.

    Attributes:
        rows: so many.
        calibration_s, extract_s: seconds a row, of calibrating and of extracting.
        array_ratios: path of an array -> its bytes on disk as a share of what its layout takes before coding.
    """

    rows: int
    calibration_s: float
    extract_s: float
    array_ratios: dict[str, float]


@contextmanager
def sample_store(
    request: DatasetRequest, features: Path | str, num_rows: int, num_views: int
) -> Iterator[tuple[Store, SourceSample]]:
    """A store of `num_rows` samples, evenly spread, with view 0, on the disk of `features`; gone after the block.

    Raises `UserError` where none of them can be read.
    """
    dataset = request.open()
    full = source_spec(dataset, request)
    count = min(num_rows, full.num_samples)
    chosen = range(0, count * (full.num_samples // count), full.num_samples // count)
    began = time.monotonic()
    block = make_block(dataset, full, Task(chosen, tuple(range(num_views))))
    decode_s = (time.monotonic() - began) / count
    if len(block.invalid) == count:
        raise UserError(f"none of {count} samples can be read: {next(iter(block.invalid.values()))}")
    spec = replace(full, num_samples=count, samples_digest="", rows_per_shard=max(count, 1))
    with _scratch(features) as folder:
        store = Store.create(folder, spec)
        store.ensure_views(1)
        began = time.monotonic()
        invalid = {place: block.invalid[sample] for place, sample in enumerate(chosen) if sample in block.invalid}
        SourceWriter(store).write_shard(0, 0, join([block], 0), invalid)
        yield store, SourceSample(count, decode_s, (time.monotonic() - began) / count)


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


def rows_worth_measuring(running: RunningTeacher, store: Store, num_samples: int) -> int:
    """Rows that keep the teacher busy for `ENOUGH_S`: whole batches, at least one; it is warm afterwards."""
    batch = min(running.request.batch_size, store.spec.num_samples)
    pixels = store.pixels[:batch, 0]
    seconds = 0.0
    for _ in range(2):  # the first one sets things up
        began = time.monotonic()
        running.forward(pixels)
        seconds = time.monotonic() - began
    batches = max(1, min(round(ENOUGH_S / max(seconds, 1e-3)), MOST_ROWS // running.request.batch_size))
    return min(batches * running.request.batch_size, num_samples)


def measure_teacher(running: RunningTeacher, store: Store) -> TeacherSample:
    """Calibrate and extract the rows of a sample's store."""
    count = store.spec.num_samples
    writer = TeacherWriter(store, running.provenance, running.levels)
    began = time.monotonic()
    writer.write_calibration(calibrate(store, running))
    calibrated = time.monotonic()
    write_shards(Source(store, 1), writer, running, [(0, 0)])
    extract_s = (time.monotonic() - calibrated) / count
    # a sample of two calibrates on one row and measures on the other: every row once, as in the real run
    return TeacherSample(count, (calibrated - began) / count, extract_s, _ratios(store, running))


def _ratios(store: Store, running: RunningTeacher) -> dict[str, float]:
    spec, ratios = store.spec, {}
    entries = store.part(f"teachers/{running.provenance['name']}").view(0)
    for array in teacher_arrays(running.provenance["name"], running.levels):
        rows = entries.file(0, array.path).num_bytes - index_bytes(spec.rows_per_shard)
        ratios[array.path] = rows / (array.stride * spec.num_samples)
    return ratios
