"""Files of a data set that have changed since a store was made from them, though they are as large: contents decide.

A store keeps, beside its manifest and outside of every digest, eight bytes a sample: a hash of the sizes and times of
change of the sample's files, as they were before it was decoded. The next run looks at sizes and times alone, about a
second for a million files of a local disk; only samples of which these differ are decoded again and compared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cache.format.manifest import FOLDER, SOURCE
from cache.store import Store
from pipeline.console import progress, say
from pipeline.extraction.contents import check_contents
from pipeline.extraction.samples import DatasetRequest, Task, make_blocks, num_decoders
from sak_core.interfaces.dataset import Dataset, FirstSamples, HasArchives, HasFiles

RECORD = f"{FOLDER}/{SOURCE}/files"
"""Of a store: a little-endian uint64 a sample, see `stamps_of`."""
ROWS_AT_ONCE = 8
FEW_SAMPLES = 64
"""So many are decoded sooner than processes start."""

Stamps = npt.NDArray[np.uint64]


def check_files(store: Store, dataset: Dataset, request: DatasetRequest, decoders: int | None = None) -> None:
    """Compare what is committed of a store with the files of its data set, where these may have changed since, and
    keep their times; the caller holds the lock of the store's source.

    Args:
        decoders: processes that decode, see `num_decoders`.

    Raises:
        UserError: an image or a label is no longer what the store was made from; it is named.
    """
    now = stamps_of(dataset)
    if now is None:
        return
    before = _read(store, len(now))
    if before is not None and np.array_equal(before, now):
        return
    committed = _committed(store)
    changed = np.ones(len(now), np.bool_) if before is None else before != now
    tasks = list(_tasks(store, np.flatnonzero(changed), committed))
    if tasks:
        total = sum(len(task.samples) for task in tasks)
        why = "keeps no times of its files" if before is None else f"may be older than {total} of its samples' files"
        say(f"{store.name} {why}: what they hold is compared")
        processes = num_decoders(decoders) if total > FEW_SAMPLES else 0
        with (
            progress("files", total, "samples") as advance,
            closing(make_blocks(request, store.spec, tasks, processes)) as blocks,
        ):
            for block in blocks:
                check_contents(store, block)
                advance(len(block.task.samples))
    store.place.write({RECORD: [now.astype("<u8").tobytes()]}, replace=True)


def stamps_of(dataset: Dataset) -> Stamps | None:
    """uint64 (N,): a hash of the sizes and times of change of each sample's files; None where no files are read.

    Samples that lie in archives have the stamp of all archives together.
    """
    count = len(dataset.ids)
    while isinstance(dataset, FirstSamples):
        dataset = dataset.dataset
    if isinstance(dataset, HasFiles):
        found = (_stamp(list(dataset.files(index).values())) for index in range(count))
        return np.fromiter(found, np.uint64, count)
    if isinstance(dataset, HasArchives):
        return np.full(count, _stamp(dataset.archives), np.uint64)
    return None


def _stamp(paths: Sequence[Path]) -> int:
    sha = hashlib.sha256()
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116  a million times
        except OSError:
            sha.update(b"nothing;")
            continue
        # the time of change is the file system's own: copies and unpacked archives set the other one as they like
        sha.update(f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns};".encode())
    return int.from_bytes(sha.digest()[:8], "little")


def _read(store: Store, count: int) -> Stamps | None:
    try:
        raw = store.place.read(RECORD)
    except OSError:
        return None
    return np.frombuffer(raw, "<u8") if len(raw) == 8 * count else None


def _committed(store: Store) -> dict[int, tuple[int, ...]]:
    """shard -> its committed views."""
    found: dict[int, tuple[int, ...]] = {}
    for view in range(store.num_views):
        for shard in store.part(SOURCE).view(view).shards:
            found[shard] = (*found.get(shard, ()), view)
    return found


def _tasks(store: Store, samples: npt.NDArray[np.intp], committed: dict[int, tuple[int, ...]]) -> Iterator[Task]:
    """The committed ones of `samples`, neighbours together; their views are made again where there are labels."""
    run: list[int] = []
    for sample in samples.tolist():
        shard = sample // store.spec.rows_per_shard
        if run and (sample != run[-1] + 1 or len(run) == ROWS_AT_ONCE or shard != run[0] // store.spec.rows_per_shard):
            yield _task(store, run, committed)
            run = []
        if shard in committed:
            run.append(sample)
    if run:
        yield _task(store, run, committed)


def _task(store: Store, run: Sequence[int], committed: dict[int, tuple[int, ...]]) -> Task:
    views = committed[run[0] // store.spec.rows_per_shard] if store.spec.labels else ()
    return Task(range(run[0], run[-1] + 1), views)
