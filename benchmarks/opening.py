"""Opening a store of 1.28 million rows, three base teachers of four levels at 224 px; its first batch of 64 rows."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Result, Row
from cache.format.checksums import CRC_BYTES, crc_suffix
from cache.format.entries import ViewEntries
from cache.format.layout import ArraySpec
from cache.format.manifest import SOURCE, teacher_part
from cache.format.parts import grow_part
from cache.format.seals import seal
from cache.format.spec import LevelSpec, SourceSpec
from cache.places.files import FileDigest, digest_of_file
from cache.store import Store
from cache.writing.teacher_writer import TeacherWriter

GOAL = "open in under 1 s and 300 MB, first batch in under 2 s"
NUM_ROWS = 1_280_000
TEACHERS = ("a", "b", "c")
LEVELS = tuple(LevelSpec(level, (14, 14), 768, "fp16") for level in range(4))
SIZE = (224, 224)

OPEN = """
import json, sys, time
from cache.store import Store
start = time.perf_counter()
store = Store.open(sys.argv[1])
complete = [store.is_complete(part, 1) for part in ("source", *(f"teachers/{name}" for name in store.teachers))]
seconds = time.perf_counter() - start
assert complete == [True] * 4
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
from cache.format.checksums import crc32c  # what follows is not timed
arrays = [("source", "pixels")] + [
    (f"teachers/{name}", f"teachers/{name}/level_{level}") for name in store.teachers for level in range(4)
]
total = sum(crc32c(store.rows(*array).read(sample, 0).tobytes()) for array in arrays for sample in range(64))
print(json.dumps([seconds, int(peak.split()[1]) * 1024 / 1e6, total % 2**64]))
"""
BATCH = """
import json, sys, time
from cache.format.checksums import crc32c
from cache.loading.loader import Loader
from cache.store import Store
start = time.perf_counter()
store = Store.open(sys.argv[1])
loader = Loader(store, store.teachers, batch_size=64, num_views=1, seed=int(sys.argv[2]))
batch = next(iter(loader))
seconds = time.perf_counter() - start
tensors = [batch.pixels, *(level for levels in batch.features.values() for level in levels)]
sums = [crc32c(row.numpy().tobytes()) for tensor in tensors for row in tensor]
print(json.dumps([seconds, sum(tensor.numel() * tensor.element_size() for tensor in tensors), sum(sums) % 2**64]))
"""


def run(quick: bool) -> Result:
    """Each round in a process of its own; importing libraries is not counted."""
    rounds = 3 if quick else 9
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
        store = make_store(Path(folder))
        opened = [_process(OPEN, store) for _ in range(rounds)]
        first = [_process(BATCH, store, number) for number in range(rounds)]
    memory = max(megabytes for _, megabytes, _ in opened)
    rows = [
        Row("open", "-", f"every manifest read; {memory:.0f} MB in all", unit="stores/s", amount=1),
        Row("open and first batch", "-", "64 rows, 13 arrays", unit="batches/s", amount=1),
    ]
    rows[0].seconds = [seconds for seconds, *_ in opened]
    rows[1].seconds = [seconds for seconds, *_ in first]
    checksums = {total for *_, total in [*opened, *first]}
    assert len(checksums) == 1, "rows are all alike here"
    for row in rows:
        row.num_bytes, row.checksum = int(first[0][1]), f"{first[0][2]:016x}"
    value = {
        "open_s": statistics.median(rows[0].seconds),
        "open_mb": memory,
        "first_batch_s": statistics.median(rows[1].seconds),
    }
    holds = value["open_s"] < 1 and value["open_mb"] < 300 and value["first_batch_s"] < 2
    return Result("open", GOAL, value, holds, rows)


def _process(code: str, store: Store, *arguments: int) -> list[Any]:
    command = [sys.executable, "-c", code, str(store), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    values: list[Any] = json.loads(done.stdout)
    return values


def make_store(folder: Path) -> Store:
    """Metadata, manifests and shard indexes as the writer makes them; all shards of an array are one sparse file."""
    spec = SourceSpec("bench", "train", SIZE, {}, 0, NUM_ROWS, "")
    store = Store.create(folder, spec)
    store.ensure_views(1)
    _commit(store, SOURCE)
    for name in TEACHERS:
        writer = TeacherWriter(store, {"name": name}, LEVELS)
        statistics_of = {f"{level.array}/mean": np.zeros(level.width, np.float32) for level in LEVELS}
        writer.write_calibration(statistics_of)
        grow_part(store.place, store.part(teacher_part(name)), 1)
        _commit(store, teacher_part(name))
    return store


def _commit(store: Store, part: str) -> None:
    """All shards of a part's view 0, as one compacted manifest."""
    manifest = store.part(part)
    count = store.spec.num_shards
    entries = ViewEntries({shard: shard for shard in range(count)})
    for array in manifest.metadata.arrays_of(0):
        digest = _zeros(store, array)
        entries.sizes[array.path] = [digest.num_bytes] * count
        entries.digests[array.path] = [digest.sha256] * count
    store.place.write({f"{manifest.folder}/view_0000.json": [seal(entries.to_dict(part, 0))]})
    manifest.forget()


def _zeros(store: Store, array: ArraySpec) -> FileDigest:
    """Every shard of an array, zeros with right checksums: one file with holes, under all names."""
    rows_per_shard = store.spec.rows_per_shard
    first = store.path / array.file(0, 0)
    with first.open("wb") as file:
        if array.sharded:
            crc = crc_suffix(bytes(array.row_bytes))
            for row in range(rows_per_shard):
                file.seek(row * array.stride + array.row_bytes)
                file.write(crc)
            places = [(row * array.stride, array.row_bytes + CRC_BYTES) for row in range(rows_per_shard)]
            index = np.array(places, "<u8").tobytes()
            file.seek(rows_per_shard * array.stride)
            file.write(index + crc_suffix(index))
        else:
            data = bytes(array.row_bytes * rows_per_shard)
            file.write(data + crc_suffix(data))
    for shard in range(1, store.spec.num_shards):
        os.link(first, store.path / array.file(0, shard))
    return digest_of_file(first)
