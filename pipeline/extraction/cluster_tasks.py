"""What a Dask worker does for `sak cache`: one task a shard. The process that submits tasks holds the store's locks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from distributed import WorkerPlugin

from cache.codecs.fidelity import FidelityMeter
from cache.errors import CacheError
from cache.format.manifest import SOURCE
from cache.format.spec import LevelSpec
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from cache.writing.teacher_writer import EncodedRows, TeacherWriter
from pipeline.advice import advised
from pipeline.console import silence, start_worker
from pipeline.errors import UserError
from pipeline.extraction.contents import check_contents
from pipeline.extraction.extract import calibrate
from pipeline.extraction.prepare import source_spec, views_at_once
from pipeline.extraction.request import TeacherRequest
from pipeline.extraction.running import RunningTeacher, batches, start_teacher
from pipeline.extraction.samples import DatasetRequest, Task, join, make_block
from pipeline.extraction.sampling import TeacherSample, measure_teacher
from pipeline.extraction.stored_fidelity import StoredFidelity
from sak_common.differences import first_difference
from sak_common.names import UnknownName
from sak_core.errors import DatasetError, TeacherUnavailable
from sak_core.interfaces.dataset import Dataset


@dataclass(frozen=True)
class Job:
    """One run of `sak cache`.

    Attributes:
        run: a name of its own, so that nothing an earlier run read is taken for fresh.
        store: path or address, the same on all machines.
        source: of the data set, reachable from all machines.
        strict: stop at the first unreadable sample.
    """

    run: str
    store: str
    source: DatasetRequest
    strict: bool = False


@dataclass(frozen=True)
class Described:
    """What a worker says of a teacher it has loaded: what its features would be made with, and their levels."""

    provenance: dict[str, Any]
    levels: tuple[LevelSpec, ...]


@dataclass
class ShardWork:
    """What a worker says of one shard that it wrote.

    Attributes:
        rows: of the shard.
        seconds: for ``pixels`` (read), ``busy`` (the teacher), ``encoding`` and ``disk``, one after the other.
        meters: what the shard's first stored row is worth, a level each.
    """

    rows: int
    seconds: dict[str, float] = field(default_factory=dict)
    meters: list[FidelityMeter] = field(default_factory=list)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the block's time as spent on `what`."""
        began = time.monotonic()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - began


class Setup(WorkerPlugin):
    """Makes a worker leave speaking, and Ctrl-C, to the process that submits tasks.

    Args:
        is_child: whether that process started the worker; it then ends with that process.
    """

    def __init__(self, is_child: bool) -> None:
        self.is_child = is_child

    def setup(self, worker: Any) -> None:
        silence()
        if self.is_child:
            start_worker()


_lock = threading.Lock()
_loaded: dict[tuple[TeacherRequest, tuple[int, int]], RunningTeacher] = {}


def _teacher(request: TeacherRequest, size: tuple[int, int]) -> RunningTeacher:
    """The teacher, loaded once; another one takes its place in memory. Call it with `_lock` held."""
    if (request, size) not in _loaded:
        _loaded.clear()
        _loaded[request, size] = start_teacher(request, size)
    running = _loaded[request, size]
    if running.provenance["threads"]:
        torch.set_num_threads(running.provenance["threads"])  # holds for a thread, and tasks come in several
    return running


@lru_cache(maxsize=1)
def _store(job: Job) -> Store:
    return Store.open(job.store)


@lru_cache(maxsize=1)
def _dataset(job: Job) -> Dataset:
    dataset = job.source.open()
    here = source_spec(dataset, job.source).to_dict()
    if difference := first_difference(_store(job).spec.to_dict(), here):
        what, wanted, found = difference
        raise UserError(f"this worker sees another data set: {what} is {found!r} here, {wanted!r} in the store")
    return dataset


class _plain_errors:
    """Errors that a user can mend as `UserError`, which travels between processes."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, CacheError | DatasetError | TeacherUnavailable | UnknownName):
            raise UserError(advised(error)) from None


def describe(request: TeacherRequest, size: tuple[int, int]) -> Described:
    """Load the teacher, and say what its features would be made with here."""
    with _plain_errors(), _lock:
        running = _teacher(request, size)
        return Described(running.provenance, running.levels)


def measure(request: TeacherRequest, source: DatasetRequest, features: str) -> TeacherSample:
    """A run in small of the teacher here, on the disk of `features`: what entropy coding leaves of its levels."""
    with _plain_errors(), _lock:
        spec = source_spec(source.open(), source)
        return measure_teacher(_teacher(request, spec.size), source, features, spec.num_samples)


def prepare_shard(job: Job, shard: int, views: tuple[int, ...]) -> dict[str, str]:
    """Write and commit these views of a source shard; returns the samples that cannot be read, and why.

    Raises:
        UserError: there is such a sample and the job is strict; or as `check_contents`.
    """
    with _plain_errors():
        store, dataset = _store(job), _dataset(job)
        writer = SourceWriter(store, helps=True)
        rows, unreadable = store.spec.rows(shard), dict[str, str]()
        at_once = views_at_once(store.spec, len(views), 0)
        for first in range(0, len(views), at_once):
            block = make_block(dataset, store.spec, Task(rows, views[first : first + at_once]))
            unreadable |= {dataset.ids[sample]: why for sample, why in block.invalid.items()}
            if job.strict and unreadable:
                name, reason = next(iter(unreadable.items()))
                raise UserError(f"{name}: {reason} (--strict stops at the first unreadable sample)")
            if 0 not in block.task.views:
                check_contents(store, block)
            for view in block.task.views:
                writer.write_shard(view, shard, join([block], view), block.invalid)
        return unreadable


def calibrate_teacher(job: Job, request: TeacherRequest, provenance: Mapping[str, Any], after: object) -> None:
    """Calibrate a teacher, and commit that; `after` are results that must be there before."""
    with _plain_errors(), _lock:
        store = Store.open(job.store)  # anew: it must know every sample that cannot be read
        running = _checked(request, store, provenance)
        TeacherWriter(store, provenance, running.levels, helps=True).write_calibration(calibrate(store, running))


def extract_shard(
    job: Job, request: TeacherRequest, provenance: Mapping[str, Any], view: int, shard: int, after: object
) -> ShardWork:
    """Write and commit one shard of a teacher; `after` are results that must be there before."""
    with _plain_errors():
        store = _store(job)
        store.part(SOURCE).is_committed(view, shard)
        with _lock:
            running = _checked(request, store, provenance)
        writer = TeacherWriter(store, provenance, running.levels, helps=True)
        mine = store.spec.rows(shard)
        parts: list[EncodedRows] = []
        first_row: list[npt.NDArray[Any]] = []
        work = ShardWork(len(mine))
        for rows in batches(mine, request.batch_size):
            with work.timed("pixels"):
                pixels = store.pixels[rows.start : rows.stop, view]
            with _lock, work.timed("busy"):
                features = _checked(request, store, provenance).forward(pixels)
            first_row = first_row or [level[0].copy() for level in features]
            with work.timed("encoding"):
                parts.append(writer.encode(view, rows, features))
        with work.timed("disk"):
            writer.write_encoded(view, shard, parts)
        stored = StoredFidelity(store, writer.name, writer.levels)
        stored.add(mine.start, view, first_row)
        work.meters = stored.meters
        return work


def _checked(request: TeacherRequest, store: Store, provenance: Mapping[str, Any]) -> RunningTeacher:
    """The teacher, if what it makes here is what the other workers make."""
    running = _teacher(request, store.spec.size)
    if difference := first_difference(provenance, running.provenance):
        what, others, here = difference
        raise UserError(f"{request.name}: {what} is {here!r} on this worker and {others!r} on the others")
    return running


def portable(path: Path | str) -> str:
    """A path that means the same in a worker's working directory, or an address as it is."""
    return str(Path(path).resolve()) if "://" not in str(path) else str(path)
