"""Copying a store to a folder, and to a bucket and back: durable, digests checked; beside plain copies."""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Result, Side, measure
from benchmarks.read import make_store
from cache.maintenance.store_copy import copy_store, plan_copy, select
from cache.places.place import Place
from cache.store import Store

GOAL = "none is set: the share of a plain durable copy's rate that is left with every digest checked"


def run(quick: bool) -> Result:
    """Copy the same store with every side into a new folder a round."""
    num_rows, rounds = (1024, 3) if quick else (4096, 7)
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
        store = make_store(Path(folder) / "source", num_rows)
        sides = [plain(store, Path(folder)), ours(store, Path(folder))]
        if importlib.util.find_spec("obstore"):
            sides += through_memory(store, Path(folder))
        rows = measure(sides, rounds)
    speeds = {row.side: statistics.median(row.rates) for row in rows}
    value = {"of_plain": speeds["this cache"] / speeds["plain copy and fsync"]}
    return Result("copy", GOAL, value, None, rows)


def _contents(place: Place) -> Iterator[Any]:
    """The store's shards as they are at a place, for the checksum."""
    for name in place.sizes():
        if name.startswith("teachers/t/level_0/c."):
            yield np.frombuffer(place.read(name), np.uint8)[None]


def plain(store: Store, folder: Path) -> Side:
    """shutil.copyfile and fsync, two files at once."""

    def copy(task: tuple[Path, Path]) -> None:
        shutil.copyfile(*task)
        descriptor = os.open(task[1], os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def batches(number: int) -> Iterator[Any]:
        target = folder / "plain"
        files = [(store.path / name, target / name) for name in store.place.sizes()]
        for parent in {path.parent for _, path in files}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(copy, files))
        if number == 0:
            yield from _contents(type(store.place)(target))

    return Side("plain copy and fsync", batches, note="2 threads, no digests", before=lambda: _remove(folder / "plain"))


def ours(store: Store, folder: Path) -> Side:
    """`sak copy` from folder to folder."""

    def batches(number: int) -> Iterator[Any]:
        copy = copy_store(plan_copy(store, folder / "ours", select(store)))
        if number == 0:
            yield from _contents(copy.place)

    return Side("this cache", batches, note="SHA-256 checked", before=lambda: _remove(folder / "ours"))


def through_memory(store: Store, folder: Path) -> list[Side]:
    """`sak copy` into a bucket in this process's memory, and back: what the command itself costs beside a network."""
    from obstore.store import MemoryStore

    from cache.places.objects import ObjectPlace

    full = copy_store(plan_copy(store, ObjectPlace(MemoryStore()), select(store)))

    def there(number: int) -> Iterator[Any]:
        copy = copy_store(plan_copy(store, ObjectPlace(MemoryStore()), select(store)))
        if number == 0:
            yield from _contents(copy.place)

    def back(number: int) -> Iterator[Any]:
        copy = copy_store(plan_copy(full, folder / "back", select(full)))
        if number == 0:
            yield from _contents(copy.place)

    return [
        Side("this cache, into a bucket in memory", there, "obstore", "SHA-256 checked"),
        Side("this cache, from it to a folder", back, "obstore", "SHA-256 checked", lambda: _remove(folder / "back")),
    ]


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
