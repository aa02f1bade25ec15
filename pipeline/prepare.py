"""The source part of a store: every sample decoded once, its views drawn and applied, pixels and labels stored.

A vanished or changed file cannot disturb what is there: teachers and training read pixels from the store alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from cache.layout import source_arrays
from cache.spec import LabelSpec, SourceSpec, id_width, samples_digest
from cache.store import Store
from cache.writer import SourceWriter
from pipeline.amounts import check_disk, existing_store, source_amount
from pipeline.console import amount, progress, say, warn
from pipeline.errors import UserError
from pipeline.samples import Block, DatasetRequest, Task, blocks_in_flight, join, make_blocks, num_decoders
from sak_core.datasets.base import Dataset
from sak_core.tasks import KINDS
from sak_core.tasks import Task as DatasetTask

ROWS_PER_SHARD = 64
ROWS_PER_BLOCK = 8
"""Samples that a decoding process takes at a time."""
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


def _label_spec(task: DatasetTask) -> LabelSpec:
    kind = KINDS[task.kind]
    return LabelSpec(kind.label_dtype.name, kind.label_channels, task.kind, task.classes)


def prepare(
    request: DatasetRequest, features: Path | str, num_views: int, *, decoders: int | None = None, strict: bool = False
) -> Store:
    """Make (or finish, or extend to `num_views`) the source part of the store for `request`, and return the store.

    `decoders` processes decode and draw views (see `num_decoders`); the bytes do not depend on them.
    Unreadable samples keep their rows, filled and marked invalid, and are listed; with `strict` they stop the run.
    """
    dataset = request.open()
    spec = source_spec(dataset, request)
    needed = source_amount(spec, existing_store(features, spec), num_views).pending_bytes
    check_disk(features, needed, "pixels and labels")
    store = Store.create(features, spec, on_wait=say)
    with store.lock("source", on_wait=say):
        store.ensure_views(num_views)
        writer = SourceWriter(store)
        pending = writer.pending(num_views)
        total = spec.num_samples * num_views
        done = total - sum(len(spec.rows(shard)) for _, shard in pending)
        if not pending:
            say(f"source: {total} rows already in {store.name}")
            return store
        processes = num_decoders(decoders)
        held = amount(memory_bytes(spec, _views_at_once(spec, num_views, processes), processes))
        say(f"source: {total - done} rows to prepare, {processes or 1} processes, at most {held} of them in memory")
        start, unreadable = time.monotonic(), dict[str, str]()
        with progress("source", total, "rows", done) as advance:
            for shard, blocks in shards(request, spec, pending, processes):
                invalid = {sample: why for block in blocks for sample, why in block.invalid.items()}
                unreadable |= {dataset.ids[sample]: why for sample, why in invalid.items()}
                if strict and unreadable:
                    name, reason = next(iter(unreadable.items()))
                    raise UserError(f"{name}: {reason} (--strict stops at the first unreadable sample)")
                for view in blocks[0].task.views:
                    writer.write_shard(view, shard, join(blocks, view), invalid)
                    advance(len(spec.rows(shard)))
        seconds = time.monotonic() - start
        store.log({"stage": "prepare", "rows": total - done, "seconds": round(seconds, 2)})
    for name, reason in sorted(unreadable.items()):
        warn(f"unreadable, its rows are marked invalid: {name}: {reason}")
    return store


def shards(
    request: DatasetRequest, spec: SourceSpec, pending: Sequence[tuple[int, int]], decoders: int
) -> Iterator[tuple[int, list[Block]]]:
    """Each shard's blocks, complete: of all its `pending` views together, or of as many as `MEMORY_BYTES` allows."""
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
    for shard in sorted(views):
        at_once = _views_at_once(spec, len(views[shard]), decoders)
        rows = spec.rows(shard)
        for first in range(0, len(views[shard]), at_once):
            group = tuple(views[shard][first : first + at_once])
            for start in range(rows.start, rows.stop, ROWS_PER_BLOCK):
                yield Task(range(start, min(start + ROWS_PER_BLOCK, rows.stop)), group)


def _views_at_once(spec: SourceSpec, num_views: int, decoders: int) -> int:
    fits = (views for views in range(num_views, 1, -1) if memory_bytes(spec, views, decoders) <= MEMORY_BYTES)
    return next(fits, 1)


def memory_bytes(spec: SourceSpec, num_views: int, decoders: int) -> int:
    """Bytes of pixels and labels that preparing `num_views` views at once holds: a shard's blocks, one view of it
    joined, and the blocks in flight."""
    row = sum(array.row_bytes for array in source_arrays(spec))
    rows = min(spec.rows_per_shard, spec.num_samples)
    return row * (num_views * (rows + ROWS_PER_BLOCK * blocks_in_flight(decoders)) + rows)
