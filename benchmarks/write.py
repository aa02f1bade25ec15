"""Shards of 64 rows of 602 kB, made durable: our writer beside a bare writev and fsync of the same bytes."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Result, Side, measure
from benchmarks.read import LEVEL, make_source
from cache.calibration.statistics import calibrated
from cache.format.layout import shard_buffers, teacher_arrays
from cache.format.spec import SourceSpec
from cache.store import Store
from cache.writing.source_writer import TeacherWriter
from cache.writing.teacher_writer import EncodedRows

GOAL = "at least 0.8 of a raw writev + fsync of the same bytes"
SHARDS = 4
"""Written in a round."""
PARTS = 4
"""Batches that a shard's features come in."""

Array = npt.NDArray[Any]


def run(quick: bool) -> Result:
    """Write `SHARDS` new shards a round with either side."""
    rounds = 5 if quick else 11
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
        spec = SourceSpec("bench", "train", (1, 1), {}, 0, SHARDS * (rounds + 1) * 64, "")
        store = make_source(Path(folder), spec)
        features = np.random.default_rng(0).standard_normal((64, *LEVEL.grid, LEVEL.width), np.float32)
        sides = [raw_limit(store, features), this_cache(store, features)]
        rows = measure(sides, rounds)
    speeds = {row.side: statistics.median(row.rates) for row in rows}
    value = {"of_limit": speeds["this cache"] / speeds["raw writev + fsync"]}
    return Result("write", GOAL, value, value["of_limit"] >= 0.8, rows)


def _shards_of(number: int) -> range:
    return range(number * SHARDS, (number + 1) * SHARDS)


def raw_limit(store: Store, features: Array) -> Side:
    """The bytes of a shard's file, assembled before, by one writev into a new file, then fsync."""
    (array,) = teacher_arrays("t", [LEVEL])
    stored = features.astype(np.float16)
    buffers = shard_buffers(array, [stored], 64)
    folder = Path(str(store)).parent / "raw"
    folder.mkdir()

    def batches(number: int) -> Iterator[Any]:
        for shard in _shards_of(number):
            descriptor = os.open(folder / f"{shard}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            assert os.writev(descriptor, buffers) == sum(memoryview(buffer).nbytes for buffer in buffers)
            os.fsync(descriptor)
            os.close(descriptor)
            if number == 0:
                raw = np.fromfile(folder / f"{shard}", np.uint8)[: 64 * array.stride].reshape(64, array.stride)
                yield raw[:, : array.row_bytes]

    return Side("raw writev + fsync", batches, note="one call a file, not committed")


def this_cache(store: Store, features: Array) -> Side:
    """Encoded rows to a committed shard: assembled, checksummed, hashed, written, fsynced, renamed, its entry too."""
    writer = TeacherWriter(store, {"name": "t"}, [LEVEL])
    writer.write_calibration(calibrated([LEVEL], [features[:1]], [features[1:2]]))

    def parts(shard: int) -> list[EncodedRows]:
        step = 64 // PARTS
        rows = [range(shard * 64 + first, shard * 64 + first + step) for first in range(0, 64, step)]
        return [writer.encode(0, part, [features[part.start - shard * 64 : part.stop - shard * 64]]) for part in rows]

    encoded = parts(0)

    def batches(number: int) -> Iterator[Any]:
        for shard in _shards_of(number):
            moved = [
                EncodedRows(range(part.rows.start + shard * 64, part.rows.stop + shard * 64), part.stored, part.clipped)
                for part in encoded
            ]
            writer.write_encoded(0, shard, moved)
            if number == 0:
                stored = store.features("t", 0).stored[shard * 64 : (shard + 1) * 64, 0]
                yield stored.reshape(64, -1).view(np.uint8)

    return Side("this cache", batches, note="checksums, digests, rename, committed")
