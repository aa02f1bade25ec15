"""The source part of a store: every sample decoded once, its views drawn and applied, pixels and labels stored.

A vanished or changed file cannot disturb what is there: teachers and training read pixels from the store alone.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.places import LocalPlace, Place, as_place
from cache.spec import LabelSpec, SourceSpec, encode_ids, id_width, samples_digest
from cache.store import Store
from cache.writer import SourceWriter
from pipeline.console import amount, progress, say, start_worker, warn
from pipeline.errors import UserError
from sak_core.datasets import open_dataset
from sak_core.datasets.base import Dataset, UnreadableSample
from sak_core.tasks import IGNORE, KINDS, Task
from sak_core.views import ViewPolicy, apply_view, draw_view

ROWS_PER_SHARD = 64
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DatasetRequest:
    """Which samples, seen how: enough for a worker process to open the same data set again."""

    name: str
    split: str
    size: tuple[int, int] | None = None
    root: Path | None = None
    limit: int | None = None
    seed: int = 0

    def open(self) -> Dataset:
        """The data set. Raises `sak_core` errors for unknown names and missing folders."""
        return open_dataset(self.name, self.split, root=self.root, size=self.size, limit=self.limit)


@dataclass
class ShardArrays:
    """One shard of the source part, ready to be written."""

    view: int
    shard: int
    arrays: dict[str, Array] = field(default_factory=dict)
    invalid: dict[int, str] = field(default_factory=dict)


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


def _label_spec(task: Task) -> LabelSpec:
    kind = KINDS[task.kind]
    return LabelSpec(kind.label_dtype.name, kind.label_channels, task.kind, task.classes)


def source_bytes(spec: SourceSpec, num_views: int) -> int:
    """Bytes that pixels and labels of `num_views` views take."""
    height, width = spec.size
    row = height * width * (3 + sum(_label_bytes(label) for label in spec.labels.values()))
    return row * spec.num_samples * num_views


def _label_bytes(label: LabelSpec) -> int:
    return np.dtype(label.dtype).itemsize * max(label.channels, 1)


def prepare(
    request: DatasetRequest, features: Path | str, num_views: int, *, workers: int | None = None, strict: bool = False
) -> Store:
    """Make (or finish, or extend to `num_views`) the source part of the store for `request`, and return the store.

    `workers` processes decode and draw views (all cores when None, none for 0); the bytes do not depend on them.
    Unreadable samples keep their rows, filled and marked invalid, and are listed; with `strict` they stop the run.
    """
    dataset = request.open()
    spec = source_spec(dataset, request)
    check_disk(features, source_bytes(spec, num_views), "pixels and labels")
    store = Store.create(features, spec)
    with store.lock("source"):
        store.ensure_views(num_views)
        writer = SourceWriter(store)
        pending = list(writer.pending(num_views))
        total = spec.num_samples * num_views
        done = total - sum(len(spec.rows(shard)) for _, shard in pending)
        if not pending:
            say(f"source: {total} rows already in {store.name}")
            return store
        start, unreadable = time.monotonic(), dict[str, str]()
        with progress("source", total, "rows", done) as advance:
            for made in _shards(request, spec, pending, workers):
                for sample, reason in made.invalid.items():
                    unreadable[dataset.ids[sample]] = reason
                if strict and unreadable:
                    name, reason = next(iter(unreadable.items()))
                    raise UserError(f"{name}: {reason} (--strict stops at the first unreadable sample)")
                writer.write_shard(made.view, made.shard, made.arrays, made.invalid)
                advance(len(spec.rows(made.shard)))
        seconds = time.monotonic() - start
        store.log({"stage": "prepare", "rows": total - done, "seconds": round(seconds, 2)})
    for name, reason in sorted(unreadable.items()):
        warn(f"unreadable, its rows are marked invalid: {name}: {reason}")
    return store


def _shards(
    request: DatasetRequest, spec: SourceSpec, pending: list[tuple[int, int]], workers: int | None
) -> Iterator[ShardArrays]:
    """Shards in order, made by worker processes a few ahead of the one being written."""
    workers = min(len(pending), (os.cpu_count() or 1) if workers is None else workers)
    if workers <= 1:
        dataset = request.open()
        yield from (make_shard(dataset, spec, view, shard) for view, shard in pending)
        return
    with _pool(workers, request, spec) as pool:
        ahead: list[Future[ShardArrays]] = []
        for view, shard in pending:
            ahead.append(pool.submit(_make_in_worker, view, shard))
            if len(ahead) > workers + 1:
                yield ahead.pop(0).result()
        while ahead:
            yield ahead.pop(0).result()


@contextmanager
def _pool(workers: int, request: DatasetRequest, spec: SourceSpec) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_open_in_worker, initargs=(request, spec))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}


def _open_in_worker(request: DatasetRequest, spec: SourceSpec) -> None:
    start_worker()
    _worker.update(dataset=request.open(), spec=spec)


def _make_in_worker(view: int, shard: int) -> ShardArrays:
    return make_shard(_worker["dataset"], _worker["spec"], view, shard)


def make_shard(dataset: Dataset, spec: SourceSpec, view: int, shard: int) -> ShardArrays:
    """Decode the shard's samples and apply their view `view`.

    Raises `UserError` if a label's shape is not its image's, naming sample and task.
    """
    rows = spec.rows(shard)
    made = ShardArrays(view, shard, _filled(spec, len(rows), view))
    arrays = made.arrays
    policy = ViewPolicy.from_dict(spec.policy)
    kinds = {task: label.kind for task, label in spec.labels.items()}
    for i, sample in enumerate(rows):
        try:
            loaded = dataset.load(sample)
        except UnreadableSample as error:
            made.invalid[sample] = error.reason
            continue
        shape = loaded.image.shape[:2]
        for task in spec.labels:
            if loaded.labels[task].shape[:2] != shape:
                made.invalid[sample] = f"label {task} is {loaded.labels[task].shape[:2]}, the image {shape}"
        if sample in made.invalid:
            continue
        drawn = draw_view(policy, spec.seed, sample, view, shape, spec.size, loaded.labels.get("semseg"))
        pixels, labels = apply_view(policy, drawn, loaded.image, loaded.labels, kinds, spec.size)
        arrays["pixels"][i] = pixels
        for name, value in drawn.to_arrays().items():
            arrays[f"views/{name}"][i] = value
        for task, label in labels.items():
            arrays[f"labels/{task}"][i] = label
        if view == 0:
            arrays["samples/size"][i] = shape
            arrays["samples/digest"][i] = _content_digest(loaded.image)
            arrays["samples/valid"][i] = 1
    if view == 0:
        arrays["samples/ids"][:] = encode_ids([dataset.ids[s] for s in rows], spec.id_width)
    return made


def _filled(spec: SourceSpec, count: int, view: int) -> dict[str, Array]:
    """Arrays as an unreadable sample leaves them: padding pixels, labels that count for nothing."""
    height, width = spec.size
    arrays: dict[str, Array] = {
        "pixels": np.broadcast_to(np.array(spec.fill, np.uint8), (count, height, width, 3)).copy(),
        "views/box": np.zeros((count, 4), np.float32),
        "views/flip": np.zeros(count, np.uint8),
        "views/colour": np.zeros((count, 5), np.float32),
    }
    for task, label in spec.labels.items():
        shape = (count, height, width, *((label.channels,) if label.channels else ()))
        arrays[f"labels/{task}"] = np.full(shape, IGNORE, label.dtype)
    if view == 0:
        arrays["samples/ids"] = np.zeros((count, spec.id_width), np.uint8)
        arrays["samples/size"] = np.zeros((count, 2), np.int32)
        arrays["samples/digest"] = np.zeros((count, 32), np.uint8)
        arrays["samples/valid"] = np.zeros(count, np.uint8)
    return arrays


def _content_digest(image: Array) -> Array:
    import hashlib

    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest(), np.uint8)


def check_disk(where: Place | Path | str, needed_bytes: int, what: str) -> None:
    """Raise `UserError` if the disk of `where` has less than `needed_bytes` free; buckets have no end."""
    place = as_place(where)
    if not isinstance(place, LocalPlace):
        return
    folder = place.path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise UserError(
            f"{what} need {amount(needed_bytes)}, but the disk of {place.shown} has {amount(free)} free. "
            "Free some, choose another --out, or store less (--grid, --codec, --views, --limit)"
        )
