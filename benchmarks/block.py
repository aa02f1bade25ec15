"""Block order beside exact order where every request takes 20 ms longer, as over a network or on a spinning disk."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.harness import Result, Side, SlowPlace, measure
from benchmarks.read import epoch, feature_loader, make_store
from cache.loading.loader import Loader
from cache.loading.sampler import epoch_requests
from cache.store import Store

GOAL = "faster than exact order at 20 ms a request, with 4 threads and with 32; how far rows travel is printed"
DELAY_S = 0.02
THREADS = (4, 32)
BUFFER_ROWS = 256
Order = Literal["exact", "block"]


def run(quick: bool) -> Result:
    """Read the same rows in both orders, with few threads and many, with the delay and without."""
    num_rows, rounds = (768, 2) if quick else (4096, 3)
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
        store = make_store(Path(folder), num_rows)
        slow = Store.open(SlowPlace(store.path, DELAY_S))
        orders: tuple[Order, ...] = ("exact", "block")
        sides = [side(order, slow, threads, f"20 ms, {threads} threads") for threads in THREADS for order in orders]
        sides += [side(order, store, THREADS[0], "no delay, 4 threads") for order in orders]
        rows = measure(sides, rounds)
        distances = {f"{order}_{key}": value for order in orders for key, value in travel(store, order).items()}
    speeds = {row.side: statistics.median(row.rates) for row in rows}
    value = {
        f"times_exact_{threads}_threads": speeds[f"block, 20 ms, {threads} threads"]
        / speeds[f"exact, 20 ms, {threads} threads"]
        for threads in THREADS
    }
    value["times_exact_no_delay"] = speeds["block, no delay, 4 threads"] / speeds["exact, no delay, 4 threads"]
    holds = all(value[f"times_exact_{threads}_threads"] > 1 for threads in THREADS)
    return Result("block", GOAL, {**value, **distances}, holds, rows)


def loader(store: Store, order: Order, threads: int) -> Loader:
    """Whole epochs in an order; in block order blocks are shards, and 256 rows are shuffled at once."""
    shuffle: bool | Literal["block"] = "block" if order == "block" else True
    return feature_loader(store, shuffle=shuffle, num_threads=threads, buffer_rows=BUFFER_ROWS)


def side(order: Order, store: Store, threads: int, where: str) -> Side:
    """One order, on one kind of store."""
    reading = loader(store, order, threads)
    return Side(f"{order}, {where}", lambda number: epoch(reading, number))


def travel(store: Store, order: Order) -> dict[str, float]:
    """How far rows travel in an epoch.

    ``moved``: mean distance, as a share of the epoch, between a row's places in the store and in the epoch (a third
    where any may follow any). ``apart``: mean distance in rows, in the epoch, of two neighbours of one shard.
    ``shards_a_batch``: from how many shards a batch's rows come, on average.
    """
    requests = epoch_requests(store.valid(1), loader(store, order, 2).config, 0)
    place = np.argsort(requests.samples.ravel())
    shard = np.arange(len(place)) // store.spec.rows_per_shard
    together = shard[1:] == shard[:-1]
    return {
        "moved": float(np.abs(place - np.arange(len(place))).mean() / len(place)),
        "apart": float(np.abs(np.diff(place))[together].mean()),
        "shards_a_batch": float(np.mean([len(np.unique(shard[batch])) for batch in requests.samples])),
    }
