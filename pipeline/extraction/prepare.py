"""The source part of a store: every sample decoded once, its views drawn and applied, pixels and labels stored.

A vanished or changed file cannot disturb what is there: teachers and training read pixels from the store alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from cache.calibration.statistics import Validity
from cache.format.layout import source_arrays
from cache.format.spec import LabelSpec, SourceSpec, id_width, samples_digest
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from pipeline.console import amount, progress, say, warn
from pipeline.errors import UserError
from pipeline.extraction.amounts import check_disk, existing_store, source_amount
from pipeline.extraction.contents import check_contents
from pipeline.extraction.files import check_files
from pipeline.extraction.samples import Block, DatasetRequest, Task, blocks_in_flight, join, make_blocks, num_decoders
from sak_core.interfaces.dataset import Dataset, FirstSamples, LeavesImages
from sak_core.tasks import KINDS
from sak_core.tasks import Task as DatasetTask

ROWS_PER_SHARD = 64
ROWS_PER_BLOCK = 8
"""Samples that a decoding process takes at a time."""
FEW_SHARDS = 8
"""So many are decoded sooner than processes start."""
MEMORY_BYTES = 2_000_000_000
"""Pixels and labels that preparing may hold at once. Where all pending views of a shard do not fit, it is decoded
once for as many of them as do."""


def source_spec(dataset: Dataset, request: DatasetRequest) -> SourceSpec:
    """The facts that decide a store's source part."""
    ids = list(dataset.ids)
    labels = {task.name: _label_spec(task) for task in dataset.tasks}
    return SourceSpec(
        dataset=dataset.name,
        split=dataset.split,
        size=request.size or dataset.default_size,
        policy=dataset.policy.to_dict(),
        seed=request.seed,
        num_samples=len(ids),
        samples_digest=samples_digest(ids, list(dataset.fingerprints)),
        labels=labels,
        rows_per_shard=ROWS_PER_SHARD,
        fill=dataset.policy.fill,
        id_width=id_width(ids),
        dataset_info=dict(dataset.info),
    )


def say_left_alone(dataset: Dataset) -> None:
    """Say which images of `dataset`'s are no inputs, such as masks in tars."""
    whole = dataset.dataset if isinstance(dataset, FirstSamples) else dataset
    if isinstance(whole, LeavesImages) and whole.left_alone:
        counts = ", ".join(f"{count} {ending}" for ending, count in whole.left_alone.items())
        say(f"{dataset.name} {dataset.split}: images left alone: {counts} (--images says which endings are inputs)")


def _label_spec(task: DatasetTask) -> LabelSpec:
    kind = KINDS[task.kind]
    return LabelSpec(kind.label_dtype.name, kind.label_channels, task.kind, task.classes)


class Source:
    """The source part of a store while it is being prepared by a thread: what is committed can be read.

    Attributes:
        store: open.
        num_views: asked for.
        order: every (view, shard) of them, in the order in which they are prepared.
    """

    def __init__(self, store: Store, num_views: int, first: Sequence[int] = ()) -> None:
        self.store, self.num_views = store, num_views
        early = sorted({sample // store.spec.rows_per_shard for sample in first})
        shards = dict.fromkeys([*early, *range(store.spec.num_shards)])
        self.order = [(view, shard) for shard in shards for view in range(num_views)]
        self._left: set[tuple[int, int]] = set()
        self._changed = threading.Condition()
        self._job: Future[None] | None = None
        self._is_stopped = False

    def start(self, work: Callable[[], None], left: Iterable[tuple[int, int]]) -> None:
        """Let a thread do `work`, which calls `committed` for each of `left`."""
        self._left = set(left)
        pool = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._job = pool.submit(work)
        self._job.add_done_callback(lambda _: self._tell())
        pool.shutdown(wait=False)

    def committed(self, view: int, shard: int) -> None:
        """A shard is committed.

        Raises:
            InterruptedError: nobody waits for more.
        """
        self._left.discard((view, shard))
        self._tell()
        if self._is_stopped:
            raise InterruptedError("preparing was stopped")

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, view: int, shard: int) -> None:
        """Return when a shard is committed.

        Raises:
            InterruptedError: after `stop`. Where the shard never will be, what stopped the thread is raised.
        """

        def is_decided() -> bool:
            return (view, shard) not in self._left or self._is_stopped or (self._job is not None and self._job.done())

        with self._changed:
            self._changed.wait_for(is_decided)
        if (view, shard) in self._left:
            self.finish()
            raise InterruptedError("preparing was stopped")

    def validity(self) -> Validity:
        """Which samples are valid in view 0; waits for a sample's shard when it is asked for."""
        return _Validity(self)

    def finish(self) -> None:
        """Wait for everything. What stopped the thread is raised here."""
        if self._job is not None:
            self._job.result()

    def stop(self) -> None:
        """End the thread early, and wait until it has ended."""
        self._is_stopped = True
        self._tell()
        if self._job is not None:
            wait([self._job])


class _Validity:
    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return self._source.store.spec.num_samples

    def __getitem__(self, sample: int) -> bool:
        store = self._source.store
        self._source.wait_for(0, sample // store.spec.rows_per_shard)
        return sample not in store.part("source").view(0).invalid


@contextmanager
def preparing(
    request: DatasetRequest,
    features: Path | str,
    num_views: int,
    *,
    decoders: int | None = None,
    strict: bool = False,
    first: Callable[[SourceSpec], Sequence[int]] = lambda spec: (),
) -> Iterator[Source]:
    """Make (or finish, or extend to `num_views`) the source part of the store for `request`, beside the block.

    `decoders` processes decode and draw views (see `num_decoders`); the bytes do not depend on them. Shards with the
    samples `first` come first. Unreadable samples keep their rows, filled and marked invalid, and are listed; with
    `strict` they stop the run. Leaving the block waits for the end; leaving it by an error stops in the middle.

    Raises:
        UserError: an image or a label of what is there already has changed since, see `check_files`.
    """
    dataset = request.open()
    say_left_alone(dataset)
    spec = source_spec(dataset, request)
    needed = source_amount(spec, existing_store(features, spec), num_views)
    check_disk(features, needed.pending_bytes, "pixels and labels", needed.pending_files)
    store = Store.create(features, spec, on_wait=say)
    source = Source(store, num_views, first(spec))
    held = ExitStack()
    held.enter_context(store.lock("source", on_wait=say))
    with held:
        check_files(store, dataset, request, decoders)
        store.ensure_views(num_views)
        writer = SourceWriter(store)
        left = set(writer.pending(num_views))
        if left:
            work = partial(_prepare, source, writer, dataset, request, num_decoders(decoders), strict, held.pop_all())
            source.start(work, left)
        else:
            say(f"source: {spec.num_samples * num_views} rows already in {store.name}")
    try:
        yield source
        source.finish()
    finally:
        source.stop()


def prepare(request: DatasetRequest, features: Path | str, num_views: int, *, decoders: int | None = None) -> Store:
    """The store for `request` with its source part complete; see `preparing`."""
    with preparing(request, features, num_views, decoders=decoders) as source:
        return source.store


def _prepare(
    source: Source,
    writer: SourceWriter,
    dataset: Dataset,
    request: DatasetRequest,
    decoders: int,
    strict: bool,
    held: ExitStack,
) -> None:
    """Write what is left of the source part, while the lock `held` is held."""
    store, spec = source.store, source.store.spec
    unreadable: dict[str, str] = {}
    with held:
        left = set(writer.pending(source.num_views))
        pending = [place for place in source.order if place in left]
        total, rows = spec.num_samples * source.num_views, sum(len(spec.rows(shard)) for _, shard in pending)
        memory = amount(memory_bytes(spec, views_at_once(spec, source.num_views, decoders), decoders))
        say(f"source: {rows} rows to prepare, {decoders or 1} processes, at most {memory} of them in memory")
        start = time.monotonic()
        with (
            progress("source", total, "rows", total - rows) as advance,
            closing(shards(request, spec, pending, decoders)) as made,
        ):
            for shard, blocks in made:
                invalid = {sample: why for block in blocks for sample, why in block.invalid.items()}
                unreadable |= {dataset.ids[sample]: why for sample, why in invalid.items()}
                if strict and unreadable:
                    name, reason = next(iter(unreadable.items()))
                    raise UserError(f"{name}: {reason} (--strict stops at the first unreadable sample)")
                if 0 not in blocks[0].task.views:  # further views are of the image that the first was made of
                    for block in blocks:
                        check_contents(store, block)
                for view in blocks[0].task.views:
                    writer.write_shard(view, shard, join(blocks, view), invalid)
                    advance(len(spec.rows(shard)))
                    source.committed(view, shard)
        store.log({"stage": "prepare", "rows": rows, "seconds": round(time.monotonic() - start, 2)})
    for name, reason in sorted(unreadable.items()):
        warn(f"unreadable, its rows are marked invalid: {name}: {reason}")


def shards(
    request: DatasetRequest, spec: SourceSpec, pending: Sequence[tuple[int, int]], decoders: int | None = None
) -> Generator[tuple[int, list[Block]]]:
    """Each shard's blocks, complete: of all its `pending` views together, or of as many as `MEMORY_BYTES` allows.

    Args:
        decoders: processes; when None as many as there are cores, or this one for `FEW_SHARDS`.
    """
    if decoders is None:
        decoders = num_decoders(None) if len(pending) > FEW_SHARDS else 0
    tasks = list(_tasks(spec, pending, decoders))
    with closing(make_blocks(request, spec, tasks, decoders)) as made:
        blocks: list[Block] = []
        for block in made:
            blocks.append(block)
            shard = block.task.samples.start // spec.rows_per_shard
            if block.task.samples.stop == spec.rows(shard).stop:
                yield shard, blocks
                blocks = []


def _tasks(spec: SourceSpec, pending: Sequence[tuple[int, int]], decoders: int) -> Iterator[Task]:
    views: dict[int, list[int]] = {}
    for view, shard in pending:
        views.setdefault(shard, []).append(view)
    for shard in views:
        at_once = views_at_once(spec, len(views[shard]), decoders)
        rows = spec.rows(shard)
        for first in range(0, len(views[shard]), at_once):
            group = tuple(views[shard][first : first + at_once])
            for start in range(rows.start, rows.stop, ROWS_PER_BLOCK):
                yield Task(range(start, min(start + ROWS_PER_BLOCK, rows.stop)), group)


def views_at_once(spec: SourceSpec, num_views: int, decoders: int) -> int:
    """Views of a shard that are made together: all of `num_views`, or as many as `MEMORY_BYTES` allows."""
    fits = (views for views in range(num_views, 1, -1) if memory_bytes(spec, views, decoders) <= MEMORY_BYTES)
    return next(fits, 1)


def memory_bytes(spec: SourceSpec, num_views: int, decoders: int) -> int:
    """Bytes of pixels and labels that preparing `num_views` views at once holds: a shard's blocks, one view of it
    joined, and the blocks in flight."""
    row = sum(array.row_bytes for array in source_arrays(spec))
    rows = min(spec.rows_per_shard, spec.num_samples)
    return row * (num_views * (rows + ROWS_PER_BLOCK * blocks_in_flight(decoders)) + rows)
