"""The teachers' parts of a store: cached pixels through each teacher once, coded and written shard by shard.

Reading, the teacher, encoding and writing overlap: a thread reads pixels ahead of the teacher, one encodes features
behind it, one writes finished shards. The teacher stays in the thread that called.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cache.calibration.statistics import Calibrator, Validity, calibration_rows
from cache.format.layout import teacher_arrays
from cache.format.manifest import teacher_part
from cache.format.spec import SourceSpec
from cache.store import Store
from cache.writing.teacher_writer import EncodedRows, TeacherWriter, check_storable
from pipeline.console import amount, progress, say, warn
from pipeline.extraction.amounts import is_calibrated
from pipeline.extraction.overlap import Ahead, Behind
from pipeline.extraction.prepare import Source
from pipeline.extraction.probed import (
    Probing,
    check_promised,
    coded,
    labelled_rows,
    maps_of,
    probe_teacher,
    settle,
    tables,
)
from pipeline.extraction.running import RunningTeacher, batches, with_fidelity
from pipeline.extraction.stored_fidelity import StoredFidelity
from pipeline.probes.kept import kept_losses

CALIBRATION_ROWS = 256
"""Rows of view 0 that a teacher's channel statistics are fitted on."""
BATCHES_READ_AHEAD = 2
BATCHES_TO_ENCODE = 2
"""Batches of features that wait to be encoded or are being encoded; the one the teacher makes comes on top."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Timing:
    """Where the time of writing a teacher's shards went.

    Attributes:
        rows, seconds: written, taken; with Dask's workers, the seconds of all their tasks together.
        busy: share of the time in which the teacher computed.
        pixels: share in which it waited for rows to be decoded or read.
        encoding, disk: share in which it waited for features to be encoded, or for shards to be written.
    """

    rows: int
    seconds: float
    busy: float
    pixels: float
    encoding: float
    disk: float

    def __str__(self) -> str:
        return (
            f"{self.rows} rows in {self.seconds:.1f} s; the teacher was busy {self.busy:.1%} of it, and waited "
            f"{self.pixels:.1%} for pixels, {self.encoding:.1%} for encoding, {self.disk:.1%} for the disk"
        )


def extract(source: Source, running: RunningTeacher) -> Timing | None:
    """Write the part of one teacher for the source's views: calibration first, then every shard not yet committed.

    Returns:
        Where the time went, or None where nothing was left to write.

    Raises:
        NonFiniteFeature: a feature is NaN or infinite; sample, view and level are named.
        SpecMismatch: the store holds this teacher with another provenance.
    """
    store, request, provenance = source.store, running.request, running.provenance
    say(f"{request.name}: {provenance['device']}, {torch.get_num_threads()} threads, {request.precision}")
    if running.teacher.spec.is_random:
        warn(f"{request.name} runs with random weights: good for trials, meaningless as a teacher")
    with store.lock(f"teachers/{provenance['name']}", on_wait=say):
        calibration = None
        if request.promised and not is_calibrated(store, teacher_part(provenance["name"])):
            running, calibration = keep_promise(store, running, source.validity())
        writer = TeacherWriter(store, running.provenance, running.levels)
        if request.probes and writer.calibration() is not None and not kept_losses(store, writer.name):
            warn(f"{request.name} was calibrated without probes; `sak verify --probes` measures what tasks lose")
        left = set(writer.pending(source.num_views))
        if not left:
            say(f"{request.name}: {store.spec.num_samples * source.num_views} rows already cached")
            return None
        say(f"{request.name}: at most {amount(memory_bytes(store.spec, running))} of pixels and features in memory")
        if writer.calibration() is None:
            writer.write_calibration(calibration or calibrate_and_probe(store, running, source.validity()))
            for task, loss in kept_losses(store, writer.name).items():
                say(f"{writer.name}: {task} {loss}")
        writer.ensure_views(source.num_views)  # here, by the thread that holds the lock: shards are written by another
        timing = write_shards(source, writer, running, [place for place in source.order if place in left])
    running.teacher.to("cpu")
    store.log({"stage": "extract", "teacher": request.name, **asdict(timing)})
    say(f"{request.name}: {timing}")
    return timing


def memory_bytes(spec: SourceSpec, running: RunningTeacher) -> int:
    """Bytes of pixels and features that `extract` holds at most: batches read ahead, batches of features (float32),
    a shard being filled and one being written. What the teacher itself takes comes on top."""
    rows = min(running.request.batch_size, spec.rows_per_shard, spec.num_samples)
    pixels = spec.size[0] * spec.size[1] * 3 * rows * (BATCHES_READ_AHEAD + 1)
    values = sum(level.grid[0] * level.grid[1] * level.width for level in running.levels)
    stored = sum(array.row_bytes for array in teacher_arrays(running.provenance["name"], running.levels))
    shard = min(spec.rows_per_shard, spec.num_samples) * stored
    return pixels + values * 4 * rows * (BATCHES_TO_ENCODE + 1) + 2 * shard


def calibrate(store: Store, running: RunningTeacher, valid: Validity | None = None) -> dict[str, Array]:
    """Channel statistics and fidelity a level, from rows of view 0 that the store's seed draws.

    `valid` says which samples are, where the source is still being prepared.
    """
    return _observed(store, running, valid).arrays()


def calibrate_and_probe(store: Store, running: RunningTeacher, valid: Validity | None = None) -> dict[str, Array]:
    """As `calibrate`, and the probes that the teacher's request asks for, see `pipeline.extraction.probed.tables`."""
    arrays = calibrate(store, running, valid)
    return arrays | _probes(running, _probing(store, running, valid), arrays) if running.request.probes else arrays


def keep_promise(store: Store, running: RunningTeacher, valid: Validity) -> tuple[RunningTeacher, dict[str, Array]]:
    """The teacher with the token cosine at which tasks lose no more than it was asked for, and its calibration.

    Raises:
        UserError: there is none.
    """
    promised, probing = dict(running.request.promised), _probing(store, running, valid)
    check_promised(probing, promised)
    fidelity, arrays = settle(_observed(store, running, valid), probing, promised)
    if fidelity is not None:
        say(f"{running.request.name}: a token cosine of {fidelity} keeps what is promised")
    running = with_fidelity(running, fidelity)
    return running, arrays | _probes(running, probing, arrays)


def _probing(store: Store, running: RunningTeacher, valid: Validity | None) -> Probing:
    rows = labelled_rows(running.request.probes or "own", store, valid)
    return probe_teacher(rows, running.forward, running.levels, running.request.batch_size)


def _probes(running: RunningTeacher, probing: Probing, calibration: Mapping[str, Array]) -> dict[str, Array]:
    decoded = coded(maps_of(running.levels), calibration, probing.raw)
    return tables(probing, probing.losses(decoded))


def _observed(store: Store, running: RunningTeacher, valid: Validity | None) -> Calibrator:
    """A calibrator that has seen the rows to calibrate on."""
    fitted, measured = calibration_rows(store.valid(1) if valid is None else valid, store.spec.seed, CALIBRATION_ROWS)
    calibrator = Calibrator(running.levels)
    request = running.request
    total = len(fitted) + len(measured)
    with progress(f"{request.name} calibration", total, "rows") as advance:
        for rows, use in ((fitted, calibrator.fit), (measured, calibrator.measure)):
            for start in range(0, len(rows), request.batch_size):
                chosen = rows[start : start + request.batch_size]
                features = running.forward(store.pixels[chosen, 0])
                for level, maps in zip(running.levels, features, strict=True):
                    check_storable(store, running.provenance["name"], 0, chosen, level, maps)
                use(features)
                advance(len(chosen))
    return calibrator


def shard_features(store: Store, running: RunningTeacher, view: int, shard: int) -> list[Array]:
    """The features of one shard's rows, from the store's own pixels: float32 (n, h, w, C) a level."""
    parts: list[list[Array]] = []
    for rows in batches(store.spec.rows(shard), running.request.batch_size):
        parts.append(running.forward(store.pixels[rows.start : rows.stop, view]))
    return [np.concatenate(level) for level in zip(*parts, strict=True)]


@dataclass(frozen=True)
class _Batch:
    view: int
    shard: int
    rows: range
    pixels: Array


def _batches(source: Source, pending: Sequence[tuple[int, int]], batch_size: int) -> Iterator[_Batch]:
    """The pixels of every batch, read as soon as their shard is committed."""
    for view, shard in pending:
        source.wait_for(view, shard)
        for rows in batches(source.store.spec.rows(shard), batch_size):
            yield _Batch(view, shard, rows, source.store.pixels[rows.start : rows.stop, view])


def write_shards(
    source: Source, writer: TeacherWriter, running: RunningTeacher, pending: Sequence[tuple[int, int]]
) -> Timing:
    """Write these (view, shard); reading, the teacher, encoding and writing overlap."""
    spec = source.store.spec
    total = spec.num_samples * source.num_views
    left = sum(len(spec.rows(shard)) for _, shard in pending)
    begin, busy, disk_waits = time.monotonic(), 0.0, 0.0
    parts: list[EncodedRows] = []
    ahead = Ahead(_batches(source, pending, running.request.batch_size), BATCHES_READ_AHEAD, "read")
    disk, encoder = Behind(1, "write"), Behind(BATCHES_TO_ENCODE, "encode")

    fidelity = StoredFidelity(source.store, writer.name, writer.levels)
    first_row: list[Array] = []

    def encode(batch: _Batch, features: Sequence[Array]) -> None:
        parts.append(writer.encode(batch.view, batch.rows, features))
        if batch.rows.start == spec.rows(batch.shard).start:
            first_row[:] = [level[0].copy() for level in features]
        if batch.rows.stop == spec.rows(batch.shard).stop:
            disk.submit(partial(write, batch.view, batch.shard, list(parts), list(first_row)))
            parts.clear()

    def write(view: int, shard: int, encoded: Sequence[EncodedRows], features: Sequence[Array]) -> None:
        writer.write_encoded(view, shard, encoded)
        fidelity.add(spec.rows(shard).start, view, features)

    with progress(running.request.name, total, "rows", total - left) as advance, ahead as read, disk:
        with encoder:
            for batch in read:
                began = time.monotonic()
                features = running.forward(batch.pixels)
                busy += time.monotonic() - began
                encoder.submit(partial(encode, batch, features))
                advance(len(batch.rows))
        disk_waits = disk.waited_s
    seconds = time.monotonic() - begin
    fidelity.log()
    # the encoder waits for the disk, and the teacher for the encoder: what of the latter's wait was the disk's
    at_the_end = disk.waited_s - disk_waits
    behind_disk = min(disk_waits, encoder.waited_s)
    shares = (busy, ahead.waited_s, encoder.waited_s - behind_disk, behind_disk + at_the_end)
    return Timing(left, round(seconds, 2), *(round(share / seconds, 4) for share in shares))
