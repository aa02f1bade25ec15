"""Rows of 4 to 64 kB from a warm page cache, shuffled: where the cost of a request rules, not that of its bytes."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.harness import Result, Row, measure
from benchmarks.read import LEVEL, make_store, memmap, preadv_limit, this_cache
from cache.format.spec import LevelSpec

GOAL = "none is set: at which size of a row the rate comes to half of that at 602 kB"
LEVELS = {
    4: LevelSpec(0, (4, 4), 128, "fp16"),
    8: LevelSpec(0, (4, 4), 256, "fp16"),
    16: LevelSpec(0, (8, 8), 128, "fp16"),
    32: LevelSpec(0, (8, 8), 256, "fp16"),
    64: LevelSpec(0, (16, 16), 128, "fp16"),
    602: LEVEL,
}
"""kB of a row -> a level of such rows."""


def run(quick: bool) -> Result:
    """For each size, time our loader beside bare `preadv` and numpy.memmap."""
    total_bytes, rounds = (16 << 20, 3) if quick else (256 << 20, 7)
    rows: list[Row] = []
    speeds: dict[int, float] = {}
    value: dict[str, float] = {}
    for size, level in LEVELS.items():
        row_bytes = level.grid[0] * level.grid[1] * level.width * 2
        with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
            store = make_store(Path(folder), max(128, total_bytes // row_bytes // 64 * 64), level)
            makers = {"preadv limit": preadv_limit, "this cache": this_cache, "numpy.memmap": memmap}
            sides = [make(f"{size} kB, {name}", store, Path(folder)) for name, make in makers.items()]
            measured = measure(sides, rounds)
        limit, ours, _ = (statistics.median(row.rates) for row in measured)
        speeds[size] = ours
        value[f"of_limit_{size}_kb"] = ours / limit
        value[f"krows_per_s_{size}_kb"] = ours * 1e6 / row_bytes
        rows += measured
    value["bend_kb"] = min(size for size, speed in speeds.items() if speed >= speeds[602] / 2)
    return Result("read-small", GOAL, value, None, rows)
