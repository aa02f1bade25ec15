"""Shuffled single rows of 602 kB that are not in the page cache, beside the best sequential read of the same files."""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.block import Order, loader
from benchmarks.harness import Result, Side, measure
from benchmarks.read import epoch, make_store
from cache.format.layout import ALIGNMENT
from cache.places.local import LocalPlace
from cache.store import Store

GOAL = "in exact order, through the page cache or past it, at least 0.8 of the best sequential read"
PIECE = 8 << 20


def run(quick: bool) -> Result:
    """Drop the files from the page cache before every round of every side."""
    num_rows, rounds = (512, 5) if quick else (2048, 7)
    with tempfile.TemporaryDirectory(prefix="sak-bench-", dir=_disk()) as folder:
        store = make_store(Path(folder), num_rows)
        os.sync()  # only clean pages can be dropped
        sides = [sequential(store, threads, direct) for direct in (False, True) for threads in (1, 2, 4)]
        sides += [ours(store, "exact", threads) for threads in (2, 4)]
        sides += [ours(store, "exact", threads, direct=True) for threads in (4, 8, 16)]
        sides += [ours(store, "block", threads) for threads in (2, 8)]
        rows = measure(sides, rounds)
    speeds = {row.side: statistics.median(row.rates) for row in rows}
    best = max(speed for name, speed in speeds.items() if name.startswith("sequential"))
    value = {
        order: max(speed for name, speed in speeds.items() if name.startswith(f"this cache, {order}, ")) / best
        for order in ("exact, buffered", "exact, O_DIRECT", "block, buffered")
    }
    exact = max(value["exact, buffered"], value["exact, O_DIRECT"])
    return Result("read-cold", GOAL, value, exact >= 0.8, rows)


def _disk() -> str | None:
    """A folder on a disk: where temporary files lie in memory, the one that this runs in."""
    temporary = Path(tempfile.gettempdir()).stat().st_dev
    return str(Path.cwd()) if temporary == Path("/dev/shm").stat().st_dev else None


def _files(store: Store) -> list[Path]:
    array = store.rows("teachers/t", "teachers/t/level_0").array
    return [store.path / array.file(0, shard) for shard in range(store.spec.num_shards)]


def dropper(store: Store) -> Callable[[], None]:
    """What drops the store's files from the page cache."""

    def drop() -> None:
        for path in _files(store):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    return drop


def sequential(store: Store, threads: int, direct: bool) -> Side:
    """Whole files from front to back in pieces of 8 MiB, a file a thread; only the first round looks at the rows."""
    rows = store.rows("teachers/t", "teachers/t/level_0").array
    per_shard, row_bytes = store.spec.rows_per_shard, rows.row_bytes
    pool = ThreadPoolExecutor(threads)
    buffers = [mmap.mmap(-1, PIECE) for _ in range(threads)]

    def read(path: Path) -> None:
        buffer = buffers.pop()
        descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        start, size = 0, os.fstat(descriptor).st_size
        while start < size // ALIGNMENT * ALIGNMENT:  # what is left is the index
            start += os.preadv(descriptor, [buffer], start)
        os.close(descriptor)
        buffers.append(buffer)

    def batches(number: int) -> Iterator[Any]:
        if number:
            yield from pool.map(read, _files(store))
            return
        for path in _files(store):
            data = np.fromfile(path, np.uint8)
            yield np.stack([data[row * rows.stride :][:row_bytes] for row in range(per_shard)])

    how = "O_DIRECT" if direct else "buffered"
    return Side(f"sequential, {how}, {threads} threads", batches, note="nothing checked", before=dropper(store))


def ours(store: Store, order: Order, threads: int, direct: bool = False) -> Side:
    """Our loader in one of its orders."""
    reading = loader(Store.open(LocalPlace(store.path, direct)), order, threads)
    note = "single rows in random order" if order == "exact" else "runs of neighbours through a buffer"
    how = "O_DIRECT" if direct else "buffered"
    side = f"this cache, {order}, {how}, {threads} threads"
    return Side(side, lambda number: epoch(reading, number), note=note, before=dropper(store))
