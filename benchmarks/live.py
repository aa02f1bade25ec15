"""Training from the cache beside `source = "live"`, which decodes JPEGs, draws fresh views and runs the teachers in
the step; and beside the student's step alone, which is the limit of both."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.extract import make_photographs
from benchmarks.harness import Result, Row, installed
from benchmarks.step import SMALL_STEM
from benchmarks.training import DEVICE, FILL, Trainee, add_checksum, endless, make_trainee, plain_batch, time_steps
from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.store import Store, find_stores
from pipeline.training.fresh import FreshBatches
from pipeline.training.live import LiveBatches, start_teachers

GOAL = "training from the cache (real towers, published sizes) reaches at least 0.97 of the student's step alone"
LEAST = 0.97


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        size: side of the square views, px.
        teachers: their names.
        options: of `sak cache`.
        stem: timm's name, or a custom one's dimensions.
        rows: in the store.
        steps, live_steps: timed a round, and with live teachers.
    """

    size: int
    teachers: tuple[str, ...]
    options: tuple[str, ...]
    stem: str | Mapping[str, int]
    batch_size: int
    rows: int
    steps: int
    live_steps: int
    rounds: int


FULL = Case(384, ("dinov2", "clip", "sam"), ("--random-weights",), "vit_base_patch16_384", 1, 6, 4, 1, 3)
QUICK = Case(96, ("mini-dino", "mini-clip", "mini-sam"), (), SMALL_STEM, 4, 24, 3, 3, 3)


def run(quick: bool) -> Result:
    """Cache the teachers' features, check that every side gets the same, and time the three sides in turns."""
    case = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
        # of the size that photographs of ImageNet have in the middle
        root = make_photographs(Path(folder) / "images", case.rows, 500, 375)
        store = _cached(case, root, Path(folder))
        teachers = start_teachers(store, case.teachers, DEVICE)

        def cached(shuffle: bool = True) -> Loader:
            return Loader(store, case.teachers, batch_size=case.batch_size, num_views=1, shuffle=shuffle)

        pixels = Loader(store, batch_size=case.batch_size, num_views=1, shuffle=False)
        live = endless(LiveBatches(FreshBatches(pixels, (), root), teachers))  # its decoders start once
        note = f"{DEVICE.type}, batch {case.batch_size}, {case.size} px, {', '.join(case.teachers)}"
        rows = [Row(name, installed("torch"), note, unit="steps/s") for name in ("student alone", "cache", "live")]
        resident = plain_batch(store, cached(shuffle=False))
        # in the order of extraction, and as the codec holds them: a row's last bits depend on its batch
        rows[2].note += "; JPEGs decoded and views drawn by processes beside the step"
        for row, batch in zip(rows, (resident, next(endless(cached(shuffle=False))), next(live)), strict=True):
            add_checksum(row, [batch], half=True)
            assert row.checksum == rows[0].checksum, f"{row.side} delivers other features than {rows[0].side}"
        trainee = make_trainee(store, case.stem)
        for _ in range(case.rounds):
            _time(rows[0], trainee, lambda: resident, case.steps)
            _time(rows[1], trainee, endless(cached()).__next__, case.steps)
            _time(rows[2], trainee, live.__next__, case.live_steps, fill=0)
        live.close()
    alone, from_cache, with_teachers = (statistics.median(row.rates) for row in rows)
    value = {"of_limit": from_cache / alone, "times_live": from_cache / with_teachers}
    return Result("live", GOAL, value, value["of_limit"] >= LEAST, rows)


def _time(row: Row, trainee: Trainee, next_batch: Callable[[], Batch], steps: int, fill: int = FILL) -> None:
    row.amount = steps
    row.seconds.append(time_steps(trainee, next_batch, steps, fill=fill))


def _cached(case: Case, root: Path, folder: Path) -> Store:
    """The images with the teachers' features in fp16, as `sak cache` writes them."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pipeline", "cache", "--dataset", "folder", "--root", str(root)),
            *("--size", str(case.size), "--views", "1", "--batch-size", str(case.batch_size)),
            *("--teacher", ",".join(case.teachers), "--codec", "fp16", "--out", str(folder), *case.options),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return Store.open(find_stores(folder, "folder", "train")[0].path)
