"""Shuffled single rows of 602 kB in batches of 64, from a warm page cache: our loader beside its peers."""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Result, Row, Side, measure
from cache.calibration.statistics import calibrated
from cache.format.spec import LevelSpec, SourceSpec
from cache.loading.loader import Loader
from cache.loading.ring import Slot
from cache.store import Store
from cache.writing.source_writer import SourceWriter, TeacherWriter

GOAL = "at least 4x the best of zarrs, litdata and tensorstore, and at least 0.65 of the preadv limit"
PEERS = ("zarrs", "litdata", "litdata, its loader", "tensorstore")
"""The sides that the goal is about."""
LEVEL = LevelSpec(0, (14, 14), 1536, "fp16")  # 602,112 bytes a row
BATCH = 64
NUM_THREADS = 2

Array = npt.NDArray[Any]


def run(quick: bool) -> Result:
    """Write the same rows for every side that is installed, check that all deliver them, and time them."""
    num_rows, rounds = (256, 3) if quick else (1024, 7)
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
        store = make_store(Path(folder), num_rows)
        sides, missing = [], []
        for name, (package, make) in SIDES.items():
            if package is None or importlib.util.find_spec(package):
                sides.append(make(name, store, Path(folder)))
            else:
                missing.append(Row(name, package, "not installed"))
        rows = measure(sides, rounds)
    speeds = {row.side: statistics.median(row.rates) for row in rows}
    ours = speeds["this cache"]
    value = {"of_limit": ours / speeds["preadv limit"]}
    peers = [speeds[name] for name in PEERS if name in speeds]
    if peers:
        value["times_best_peer"] = ours / max(peers)
    holds = value["of_limit"] >= 0.65 and value.get("times_best_peer", 0) >= 4
    complete = len(peers) == len(PEERS)
    return Result("read", GOAL, value, holds if complete else None, [*rows, *missing])


def values(store: Store) -> Array:
    """All rows, float16 (N, h, w, C), in a new array."""
    return store.features("t", 0).stored[:, 0]


def make_source(folder: Path, spec: SourceSpec) -> Store:
    """A store for `spec` whose source part is complete for one view; its pixels are black."""
    store = Store.create(folder, spec)
    store.ensure_views(1)
    source = SourceWriter(store)
    for _, shard in source.pending(1):
        source.write_shard(0, shard, black_rows(spec, shard))
    return store


def black_rows(spec: SourceSpec, shard: int) -> dict[str, Any]:
    """The source arrays of a shard of view 0, its pixels black."""
    count = len(spec.rows(shard))
    return {
        "pixels": np.zeros((count, *spec.size, 3), np.uint8),
        "views/box": np.zeros((count, 4), np.float32),
        "views/flip": np.zeros(count, np.uint8),
        "views/colour": np.zeros((count, 5), np.float32),
        "samples/ids": [str(sample) for sample in spec.rows(shard)],
        "samples/size": np.ones((count, 2), np.int32),
        "samples/digest": np.zeros((count, 32), np.uint8),
    }


def make_store(folder: Path, num_rows: int, level: LevelSpec = LEVEL) -> Store:
    """A store of `num_rows` random rows of one level."""
    store = make_source(folder, SourceSpec("bench", "train", (1, 1), {}, 0, num_rows, ""))
    teacher = TeacherWriter(store, {"name": "t"}, [level])
    rng = np.random.default_rng(0)
    for _, shard in teacher.pending(1):
        features = rng.standard_normal((len(store.spec.rows(shard)), *level.grid, level.width), np.float32)
        if shard == 0:
            teacher.write_calibration(calibrated([level], [features[:1]], [features[1:2]]))
        teacher.write_shard(0, shard, [features])
    return store


def batches_of(number: int, num_rows: int) -> Iterator[list[int]]:
    """Rows of each batch of a round, all of them in random order."""
    order = np.random.default_rng(number).permutation(num_rows).tolist()
    return (order[first : first + BATCH] for first in range(0, num_rows, BATCH))


# ---- the sides -----------------------------------------------------------------------------------------------------


def preadv_limit(name: str, store: Store, folder: Path) -> Side:
    """The same rows by bare `preadv` into the same kind of memory, nothing parsed and nothing checked."""
    rows = store.rows("teachers/t", "teachers/t/level_0")
    array = rows.array
    files = [os.open(store.path / array.file(0, s), os.O_RDONLY) for s in range(store.spec.num_shards)]
    slots = [Slot([rows], BATCH, pin=False) for _ in range(3)]
    per_shard, stride = store.spec.rows_per_shard, array.stride
    pool = ThreadPoolExecutor(NUM_THREADS)

    def part(slot: Slot, numbers: list[int], first: int) -> None:
        for row in range(first, len(numbers), NUM_THREADS):
            shard, place = divmod(numbers[row], per_shard)
            os.preadv(files[shard], [slot.targets[0][row]], place * stride)

    def batches(number: int) -> Iterator[Any]:
        todo = list(batches_of(number, store.spec.num_samples))
        if number == 0:  # to be checked: a batch at a time
            for numbers in todo:
                for thread in range(NUM_THREADS):
                    part(slots[0], numbers, thread)
                yield slots[0].tensors[0][: len(numbers)]
            return

        def share(thread: int) -> None:  # to be timed: no thread waits for another
            for count, numbers in enumerate(todo):
                part(slots[count % 3], numbers, thread)

        list(pool.map(share, range(NUM_THREADS)))

    return Side(name, batches, note=f"{NUM_THREADS} threads, no checksums")


def this_cache(name: str, store: Store, folder: Path) -> Side:
    """Our loader as training uses it, every row checked."""
    loader = feature_loader(store, num_threads=NUM_THREADS)
    return Side(name, lambda number: epoch(loader, number), note=f"{NUM_THREADS} threads, crc32c checked")


def feature_loader(store: Store, **options: Any) -> Loader:
    """Whole epochs of the features alone, any row after any unless `options` say so."""
    return Loader(store, ["t"], batch_size=BATCH, num_views=1, pixels=False, pin=False, **options)


def epoch(loader: Loader, number: int) -> Iterator[Any]:
    """The features of an epoch's batches."""
    loader.set_epoch(number)
    return (batch.features["t"][0] for batch in loader)


def _zarr(name: str, package: str, store: Store, pipeline: str) -> Side:
    import zarr

    def batches(number: int) -> Iterator[Any]:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.open_array(store.path / "teachers/t/level_0", mode="r")
            for numbers in batches_of(number, store.spec.num_samples):
                out = np.empty((len(numbers), *array.shape[2:]), array.dtype)
                for place, row in enumerate(numbers):
                    out[place] = array[0, row]
                yield out

    return Side(name, batches, package, "a slice a row")


def zarr_python(name: str, store: Store, folder: Path) -> Side:
    """zarr-python, a slice a row."""
    return _zarr(name, "zarr", store, "zarr.core.codec_pipeline.BatchedCodecPipeline")


def zarrs(name: str, store: Store, folder: Path) -> Side:
    """zarr-python over the zarrs pipeline."""
    return _zarr(name, "zarrs", store, "zarrs.ZarrsCodecPipeline")


def tensorstore(name: str, store: Store, folder: Path) -> Side:
    """tensorstore, all rows of a batch asked for at once."""
    import tensorstore as ts

    context = {"data_copy_concurrency": {"limit": NUM_THREADS}, "file_io_concurrency": {"limit": NUM_THREADS}}
    path = f"{store.path / 'teachers/t/level_0'}/"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}, "context": context}
    array = ts.open(spec, open=True).result()

    def batches(number: int) -> Iterator[Any]:
        for numbers in batches_of(number, store.spec.num_samples):
            reads = [array[0, row].read() for row in numbers]
            yield np.stack([read.result() for read in reads])

    return Side(name, batches, "tensorstore", "a batch's rows at once")


def memmap(name: str, store: Store, folder: Path) -> Side:
    """numpy.memmap of one file, fancy-indexed."""
    np.save(folder / "rows.npy", values(store))
    array = np.load(folder / "rows.npy", mmap_mode="r")

    def batches(number: int) -> Iterator[Any]:
        for numbers in batches_of(number, store.spec.num_samples):
            yield array[numbers]

    return Side(name, batches, "numpy", "no checksums")


def h5py(name: str, store: Store, folder: Path) -> Side:
    """h5py, a chunk a row, read into one array a batch."""
    import h5py as h5

    data = values(store)
    with h5.File(folder / "rows.h5", "w") as file:
        file.create_dataset("rows", data=data, chunks=(1, *data.shape[1:]), fletcher32=True)
    dataset = h5.File(folder / "rows.h5", "r")["rows"]

    def batches(number: int) -> Iterator[Any]:
        for numbers in batches_of(number, store.spec.num_samples):
            out = np.empty((len(numbers), *data.shape[1:]), data.dtype)
            for place, row in enumerate(numbers):
                dataset.read_direct(out, np.s_[row], np.s_[place])
            yield out

    return Side(name, batches, "h5py", "fletcher32 checked")


def safetensors(name: str, store: Store, folder: Path) -> Side:
    """A safetensors file a sample."""
    import torch
    from safetensors.torch import load_file, save_file

    (folder / "samples").mkdir()
    for row, data in enumerate(values(store)):
        save_file({"x": torch.from_numpy(data)}, folder / f"samples/{row}.safetensors")

    def batches(number: int) -> Iterator[Any]:
        for numbers in batches_of(number, store.spec.num_samples):
            yield torch.stack([load_file(folder / f"samples/{row}.safetensors")["x"] for row in numbers])

    return Side(name, batches, "safetensors", "a file a sample, no checksums")


def webdataset(name: str, store: Store, folder: Path) -> Side:
    """webdataset: tar files read in order; it has no random access, so no order is asked of it."""
    import webdataset as wds

    data = values(store)
    with wds.ShardWriter(str(folder / "rows-%04d.tar"), maxcount=64, verbose=0) as sink:
        for row, item in enumerate(data):
            sink.write({"__key__": f"{row:06d}", "x": item.tobytes()})
    last = (len(data) - 1) // 64
    shape, dtype = data.shape[1:], data.dtype

    def batches(number: int) -> Iterator[Any]:
        url = str(folder / f"rows-{{0000..{last:04d}}}.tar")
        return _stacked(
            np.frombuffer(item["x"], dtype).reshape(shape) for item in wds.WebDataset(url, shardshuffle=False)
        )

    return Side(name, batches, "webdataset", "in order, no checksums")


def _stacked(rows: Iterator[Any]) -> Iterator[Any]:
    """Arrays (BATCH, ...) of arrays (...), the last one shorter."""
    while batch := list(islice(rows, BATCH)):
        yield np.stack(batch)


def _write_litdata(folder: Path, items: Iterable[Any], chunk_bytes: int) -> str:
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=chunk_bytes)
    for row, item in enumerate(items):
        cache[row] = item
    cache.done()
    cache.merge()
    return str(folder)


def litdata(name: str, store: Store, folder: Path) -> Side:
    """litdata's streaming format in its fastest form: raw bytes, local, shuffled by itself, batches made by hand."""
    from litdata import StreamingDataset

    data = values(store)
    where = _write_litdata(folder / "litdata", (item.tobytes() for item in data), 64 * data[0].nbytes)

    def batches(number: int) -> Iterator[Any]:
        items = StreamingDataset(where, shuffle=True, seed=number)
        return _stacked(np.frombuffer(item, data.dtype).reshape(data.shape[1:]) for item in items)

    return Side(name, batches, "litdata", "items of raw bytes, no checksums")


def litdata_loader(name: str, store: Store, folder: Path) -> Side:
    """litdata as its users read it: tensors through its own loader, in this process (its workers are slower here)."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset

    data = values(store)
    flat = (torch.from_numpy(item.reshape(-1)) for item in data)  # stored without a header: faster than other shapes
    where = _write_litdata(folder / "litdata-tensors", flat, 64 * data[0].nbytes)

    def batches(number: int) -> Iterator[Any]:
        dataset = StreamingDataset(where, shuffle=True, seed=number)
        for batch in StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0):
            yield batch.reshape(-1, *data.shape[1:])

    return Side(name, batches, "litdata", "tensors by its StreamingDataLoader, no checksums")


SIDES: dict[str, tuple[str | None, Callable[[str, Store, Path], Side]]] = {
    "preadv limit": (None, preadv_limit),
    "this cache": (None, this_cache),
    "zarrs": ("zarrs", zarrs),
    "tensorstore": ("tensorstore", tensorstore),
    "zarr-python": ("zarr", zarr_python),
    "numpy.memmap": (None, memmap),
    "h5py": ("h5py", h5py),
    "safetensors": ("safetensors", safetensors),
    "webdataset": ("webdataset", webdataset),
    "litdata": ("litdata", litdata),
    "litdata, its loader": ("litdata", litdata_loader),
}
"""Name -> (the package that must be installed, what makes the side)."""
