"""Staging: a place whose requests take 20 ms, whose rows stay on this machine's disk when they are first read."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Side, SlowPlace, measure
from benchmarks.read import epoch, feature_loader, make_store
from cache.places.objects import ObjectPlace
from cache.places.stage import Stage
from cache.places.staged import StagedPlace
from cache.store import Store

GOAL = "epochs after the first at 0.9 or more of the local disk's rate, the first at 0.95 or more of the rate without"
DELAY_S = 0.02
NOTE = "20 ms a request"


class FarPlace(SlowPlace):
    """A slow folder that is read by as many threads as a bucket."""

    num_readers = ObjectPlace.num_readers

    def __init__(self, path: Path, delay_s: float = DELAY_S) -> None:
        super().__init__(path, delay_s)


def run(quick: bool) -> Result:
    """Read the same rows from the disk, from far away, and through a stage: empty, and as the first epoch left it."""
    num_rows, rounds = (512, 3) if quick else (2048, 7)
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
        store = make_store(Path(folder) / "store", num_rows)
        empty = Path(folder) / "empty"

        def first(number: int) -> Iterator[Any]:
            return epoch(feature_loader(staged(store, empty)), number)

        filled = feature_loader(staged(store, Path(folder) / "filled"))
        local = feature_loader(store)
        sides = [
            Side("local disk", lambda number: epoch(local, number)),
            Side("stage, later epochs", lambda number: epoch(filled, number), note=NOTE),
            Side("far away", lambda number: epoch(feature_loader(Store.open(FarPlace(store.path))), number), note=NOTE),
            Side("stage, first epoch", first, note=NOTE, before=lambda: shutil.rmtree(empty, ignore_errors=True)),
        ]
        rows = measure(sides, rounds)
    speeds = {row.side: statistics.median(row.rates) for row in rows}
    value = {
        "later_of_local": speeds["stage, later epochs"] / speeds["local disk"],
        "first_of_without": speeds["stage, first epoch"] / speeds["far away"],
        "times_without": speeds["stage, later epochs"] / speeds["far away"],
    }
    holds = value["later_of_local"] >= 0.9 and value["first_of_without"] >= 0.95
    return Result("staging", GOAL, value, holds, rows)


def staged(store: Store, folder: Path) -> Store:
    """The store as from far away, through a stage in `folder` that holds it all."""
    return Store.open(StagedPlace(FarPlace(store.path), Stage(folder, 10**12)))
