"""Single bits flipped anywhere in a store: found, named, kept from readers, nothing else refused, repaired."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.extraction.prepare
from cache.calibration.statistics import needed_tables
from cache.errors import CacheError
from cache.format.layout import index_bytes
from cache.maintenance.verification import Problem, verify_store
from cache.store import Store
from pipeline.api import cache_request
from pipeline.commands.cache import cache
from pipeline.extraction.caching import run_cache
from pipeline.maintenance.repair import RepairRequest, repair_store
from tests.cache_toy import flip
from tests.small_images import cache_arguments, make_images

NUM_IMAGES, ROWS_PER_SHARD = 10, 4
PREDICTED = ("--codec", "klt", "--fidelity", "0.99", "--predict-levels")
"""Options of a store whose rows are coded to lengths of their own, and whose levels are coded against each other."""
Row = tuple[str, int, int]
"""(array, sample, view)"""
Values = dict[Row, np.ndarray[Any, np.dtype[Any]]]


@dataclass(frozen=True)
class Flip:
    """One bit of one file."""

    file: str
    byte: int
    bit: int

    def apply(self, store: Path) -> None:
        """Turn it over."""
        flip(store / self.file, self.byte, self.bit)


@dataclass(frozen=True)
class Expected:
    """What a flip must come to, worked out from the layout alone.

    Attributes:
        part, level, view, shard, rows: what `sak verify` must name.
        refused: the rows that must raise.
    """

    part: str
    level: str | None
    view: int | None
    shard: int | None
    rows: tuple[int, ...]
    refused: frozenset[Row]


def make_store(folder: Path, codec: Sequence[str] = ()) -> tuple[Path, Path]:
    """A store with everything to damage, in shards of a few rows, and the images it was made from.

    Views of 150x150 px are more than 64,000 bytes, so that pixels have padding; int8, the codec unless `codec` says
    otherwise, needs its calibration.
    """
    images = make_images(folder / "images", NUM_IMAGES)
    arguments = cache_arguments(images, folder / "out", teachers=["mini-dino"])
    arguments[arguments.index("--size") + 1] = "150"
    arguments += codec
    options = cache.make_context("cache", arguments[1:]).params
    options.pop("as_json")
    options.pop("dry_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.extraction.prepare, "ROWS_PER_SHARD", ROWS_PER_SHARD)
        run_cache(cache_request(**{**options, "levels": None}))
    return next((folder / "out").glob("*.zarr")), images


def read_everything(path: Path) -> tuple[Values, set[Row]]:
    """Every row of every array through the reader, and the rows that it refuses."""
    values: Values = {}
    refused: set[Row] = set()
    arrays = {"pixels": "pixels"}
    arrays |= {f"views/{name}": name for name in ("box", "flip", "colour")}
    arrays |= {f"samples/{name}": name for name in ("ids", "size", "digest", "valid")}
    arrays |= {f"teachers/mini-dino/level_{level}": str(level) for level in range(4)}
    try:
        store: Store | None = Store.open(path)
    except CacheError:
        store = None
    for array, name in arrays.items():
        for view in range(1 if array.startswith("samples/") else 2):
            for sample in range(NUM_IMAGES):
                try:
                    values[array, sample, view] = _read(store, array, name, sample, view)
                except CacheError:
                    refused.add((array, sample, view))
    return values, refused


def _read(store: Store | None, array: str, name: str, sample: int, view: int) -> np.ndarray[Any, np.dtype[Any]]:
    if store is None:
        raise CacheError("it does not open")
    if array == "pixels":
        return store.pixels[sample, view]
    if array.startswith("views/"):
        return store.views[name][sample, view]
    if array.startswith("samples/"):
        return store.samples[name][sample]
    return store.features("mini-dino", int(name))[sample, view]


def expected(store: Store, all_rows: frozenset[Row], flip: Flip) -> Expected:
    """What `flip` must come to."""
    file = flip.file
    part = "teachers/mini-dino" if "teachers/mini-dino/" in file else "source"
    mine = frozenset(row for row in all_rows if row[0].startswith("teachers/") == (part != "source"))
    if file.startswith("manifest/") and file != "manifest/zarr.json":
        if match := re.search(r"view_(\d+)\.json$", file):
            view = int(match[1])
            return Expected(part, None, view, None, (), frozenset(row for row in mine if row[2] == view))
        if file.endswith("calibration.json"):
            return Expected(part, None, None, None, (), mine)
        return Expected(part, None, None, None, (), mine if part != "source" else all_rows)
    if match := re.match(r"teachers/mini-dino/calibration/level_(\d)/(\w+)/", file):
        spec = store.level("mini-dino", int(match[1]))
        reach = _leaning_on(store, spec.level) if match[2] in needed_tables(spec) else set()
        return Expected(part, None, None, None, (), frozenset(row for row in mine if row[0] in reach))
    if file == "zarr.json":
        return Expected(part, None, None, None, (), all_rows)
    if file == "teachers/mini-dino/zarr.json":
        return Expected(part, None, None, None, (), mine)
    if file.endswith("zarr.json") or "/calibration/" in file:  # what no reader of rows needs
        return Expected(part, None, None, None, (), frozenset())
    return _in_a_shard(store, part, flip)


def _in_a_shard(store: Store, part: str, flip: Flip) -> Expected:
    path, _, place = flip.file.rpartition("/c.")
    array = store.part(part).metadata.arrays[path]
    numbers = [int(number) for number in place.split(".")]
    view, shard = (numbers[0], numbers[1]) if array.has_views else (0, numbers[0])
    rows = tuple(store.spec.rows(shard))
    raw = (store.path / flip.file).read_bytes()
    if array.sharded and flip.byte < len(raw) - index_bytes(ROWS_PER_SHARD):
        # what the index says, by numpy alone: u64 (offset, bytes) a row, then its crc32c
        index = np.frombuffer(raw[-index_bytes(ROWS_PER_SHARD) : -4], "<u8").reshape(-1, 2)[: len(rows)]
        rows = tuple(row for row, (at, size) in zip(rows, index, strict=True) if at <= flip.byte < at + size)
    level = path.removeprefix(f"{part}/")
    reach = _leaning_on(store, int(level[-1])) if part != "source" else {path}
    return Expected(part, level, view, shard, rows, frozenset((p, sample, view) for p in reach for sample in rows))


def _leaning_on(store: Store, level: int) -> set[str]:
    """Paths of a level and of those that are coded against it, or against one that is."""
    reach = {level}
    for spec in store.teacher("mini-dino").maps:  # shallowest first
        if spec.predicts_from in reach:
            reach.add(spec.level)
    return {f"teachers/mini-dino/level_{number}" for number in reach}


def check(store: Path, intact: Path, values: Values, flip: Flip) -> Problem:
    """Flip, and hold what verifying and reading say to what is expected; the flip stays.

    Raises:
        AssertionError: it was missed, named wrong, read as if nothing were, or refused more than it touched.
    """
    flip.apply(store)
    wanted = expected(Store.open(intact), frozenset(values), flip)
    problems = verify_store(store)
    assert [problem.file for problem in problems] == [flip.file], (flip, problems)
    problem = problems[0]
    named = (problem.part, problem.level, problem.view, problem.shard, problem.rows)
    assert named == (wanted.part, wanted.level, wanted.view, wanted.shard, wanted.rows), (flip, problem)
    found, refused = read_everything(store)
    assert refused == wanted.refused, (flip, refused ^ wanted.refused)
    for row, value in found.items():
        assert np.array_equal(value, values[row]), (flip, row)
    return problem


def draw_flip(draw: random.Random, sizes: Mapping[str, int], by_bytes: bool) -> Flip:
    """A bit of a file: of files drawn evenly, or in proportion to their bytes."""
    names = list(sizes)
    weights = list(sizes.values()) if by_bytes else None
    file = draw.choices(names, weights)[0]
    return Flip(file, draw.randrange(sizes[file]), draw.randrange(8))


def kind_of(flip: Flip, problem: Problem) -> str:
    """Where a flip landed, for the table."""
    if flip.file.startswith("manifest/"):
        return "manifest"
    if flip.file.endswith("zarr.json"):
        return "zarr.json"
    if "/calibration/" in flip.file:
        return "calibration"
    if "padding" in problem.what:
        return "padding"
    if "index" in problem.what:
        return "index"
    return "rows of one sample" if len(problem.rows) == 1 else "rows of one chunk"


def run_flips(folder: Path, count: int, seed: int = 0, codec: Sequence[str] = ()) -> dict[str, Any]:
    """Flip `count` single bits, one at a time, half of them in files drawn evenly; check and repair each.

    ``log.jsonl`` and the times of the data set's files (``manifest/source/files``), which are outside of every digest,
    and the empty lock files are left out.

    Raises:
        AssertionError: see `check`; or a repaired store differs from the intact one.
    """
    draw = random.Random(seed)
    store, images = make_store(folder, codec)
    intact = Path(shutil.copytree(store, folder / "intact.zarr"))
    values, refused = read_everything(store)
    assert not refused and verify_store(store) == []
    sizes = {
        path.relative_to(store).as_posix(): path.stat().st_size
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name not in ("log.jsonl", "files", "lock")
    }
    kinds: Counter[str] = Counter()
    # every kind of place is drawn, however small: indexes, paddings and manifests are a few bytes in many
    forced = [Flip(name, size - 9, 3) for name, size in sizes.items() if "pixels/c." in name]
    forced += [Flip(name, 150 * 150 * 3 + 100, 5) for name in sizes if "pixels/c." in name]
    forced += [Flip(name, draw.randrange(sizes[name]), 0) for name in sizes if name.startswith("manifest/")]
    for number in range(count):
        flip = forced[number] if number < len(forced) else draw_flip(draw, sizes, by_bytes=number % 2 == 0)
        kinds[kind_of(flip, check(store, intact, values, flip))] += 1
        result = repair_store(store, RepairRequest(root=images))
        assert result["mended"] == [flip.file] and not result["left"], (flip, result)
        assert (store / flip.file).read_bytes() == (intact / flip.file).read_bytes(), flip
    untouched = {name: (store / name).read_bytes() == (intact / name).read_bytes() for name in sizes}
    assert all(untouched.values()), "a repair changed another file"
    return {"flips": count, "found_named_and_repaired": sum(kinds.values()), "by_place": dict(sorted(kinds.items()))}
