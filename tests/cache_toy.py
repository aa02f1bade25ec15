"""A small store whose every number is a function of its place, so that a misplaced row fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.calibration.statistics import calibrated, calibration_rows
from cache.format.manifest import FOLDER, LOG, SOURCE, PartManifest, teacher_part
from cache.format.spec import LabelSpec, LevelSpec, SourceSpec
from cache.places.addresses import as_place
from cache.places.place import Place
from cache.store import Store
from cache.writing.source_writer import SourceWriter, TeacherWriter

Array = npt.NDArray[Any]

LEVELS = (LevelSpec(0, (5, 4), 6, "fp16"), LevelSpec(1, (5, 4), 6, "int8"), LevelSpec(3, (3, 2), 8, "bf16"))
OTHER_LEVELS = (LevelSpec(0, (2, 2), 5, "fp32"),)
INVALID = {4: "truncated", 10: "zero bytes"}


def toy_spec(num_samples: int = 13, rows_per_shard: int = 4, **fields: Any) -> SourceSpec:
    """13 samples in 4 shards of 4, the last one short; two tasks."""
    defaults: dict[str, Any] = {
        "dataset": "toy",
        "split": "train",
        "size": (6, 7),
        "policy": {"kind": "random-resized-crop", "scale": [0.5, 1.0]},
        "seed": 3,
        "samples_digest": "ab12",
        "labels": {"semseg": LabelSpec("uint8", 0, "classes", ("wall", "floor")), "normals": LabelSpec("float32", 3)},
        "fill": (9, 8, 7),
    }
    return SourceSpec(num_samples=num_samples, rows_per_shard=rows_per_shard, **{**defaults, **fields})


def pixels(spec: SourceSpec, sample: int, view: int) -> Array:
    """What a row's pixels are."""
    return np.random.default_rng([1, sample, view]).integers(0, 256, (*spec.size, 3)).astype(np.uint8)


def label(spec: SourceSpec, task: str, sample: int, view: int) -> Array:
    """What a row's labels are."""
    stored = spec.labels[task]
    shape = (*spec.size, stored.channels) if stored.channels else spec.size
    return np.random.default_rng([2, len(task), sample, view]).integers(0, 9, shape).astype(stored.dtype)


def features(level: LevelSpec, sample: int, view: int) -> Array:
    """What a row's features are, float32 (h, w, C)."""
    # Evenly spread, so that a few rows tell int8 nearly the whole range.
    draw = np.random.default_rng([3, level.level, level.width, sample, view])
    values = draw.uniform(1, 5, (*level.grid, level.width))
    return values.astype(np.float32)


def source_arrays(spec: SourceSpec, view: int, shard: int) -> dict[str, Any]:
    """What `SourceWriter.write_shard` takes."""
    rows = spec.rows(shard)
    draws = [np.random.default_rng([4, sample, view]) for sample in rows]
    arrays: dict[str, Any] = {
        "pixels": np.stack([pixels(spec, sample, view) for sample in rows]),
        "views/box": np.stack([draw.random(4) for draw in draws]).astype(np.float32),
        "views/flip": np.array([sample % 2 for sample in rows], np.uint8),
        "views/colour": np.stack([draw.random(5) for draw in draws]).astype(np.float32),
    }
    for task in spec.labels:
        arrays[f"labels/{task}"] = np.stack([label(spec, task, sample, view) for sample in rows])
    if view == 0:
        arrays["samples/ids"] = [f"folder/image-{sample}-é" for sample in rows]
        arrays["samples/size"] = np.array([(100 + sample, 200) for sample in rows], np.int32)
        arrays["samples/digest"] = np.stack([draw.integers(0, 256, 32) for draw in draws]).astype(np.uint8)
    return arrays


def write_source(store: Store, num_views: int, invalid: dict[int, str] | None = None) -> None:
    """Write what is pending of the source part."""
    store.ensure_views(num_views)
    writer = SourceWriter(store)
    for view, shard in writer.pending(num_views):
        bad = {sample: why for sample, why in (invalid or {}).items() if sample in store.spec.rows(shard)}
        writer.write_shard(view, shard, source_arrays(store.spec, view, shard), bad)


def write_teacher(
    store: Store, num_views: int, name: str = "mini-dino", levels: Sequence[LevelSpec] = LEVELS, **provenance: Any
) -> None:
    """Calibrate if need be and write what is pending of a teacher."""
    writer = TeacherWriter(store, {"name": name, "weights": "sha256:00", **provenance}, levels)
    if writer.calibration() is None:
        halves = [
            [np.stack([features(level, int(sample), 0) for sample in rows]) for level in levels]
            for rows in calibration_rows(store.valid(1), store.spec.seed, 8)
        ]
        writer.write_calibration(calibrated(levels, *halves))
    for view, shard in writer.pending(num_views):
        rows = store.spec.rows(shard)
        writer.write_shard(view, shard, [np.stack([features(level, s, view) for s in rows]) for level in levels])


def make_store(root: Place | Path, num_views: int = 2, **fields: Any) -> Store:
    """A whole store: source with two invalid samples, two teachers."""
    store = Store.create(root, toy_spec(**fields))
    write_source(store, num_views, INVALID)
    write_teacher(store, num_views)
    write_teacher(store, num_views, "mini-clip", OTHER_LEVELS)
    return store


def same_batches(one: Store, other: Store) -> None:
    """That a pass over both stores gives the same rows in the same order."""
    from cache.loading.loader import Loader  # torch, which not every process that imports this needs

    options: dict[str, Any] = {"batch_size": 2, "num_views": 2, "seed": 4}
    loaders = (Loader(store, store.teachers, ("semseg", "normals"), **options) for store in (one, other))
    for mine, theirs in zip(*loaders, strict=True):
        assert mine.samples.tolist() == theirs.samples.tolist()
        np.testing.assert_array_equal(mine.pixels, theirs.pixels)
        for task in ("semseg", "normals"):
            np.testing.assert_array_equal(mine.labels[task], theirs.labels[task])
        for teacher in one.teachers:
            for left, right in zip(mine.features[teacher], theirs.features[teacher], strict=True):
                np.testing.assert_array_equal(left, right)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below `path` but the log, with its bytes."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "log.jsonl"
    }


def content(where: Place | Path) -> dict[str, bytes]:
    """Every file of a store, or of a folder of stores, with its bytes, but the log and locks."""
    files = tree(where) if isinstance(where, Path) else {name: where.read(name) for name in where.sizes()}
    return {name: data for name, data in files.items() if not name.endswith(("/lock", "log.jsonl"))}


def flip(path: Path, byte: int, bit: int = 0) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def unlisted_files(path: Place | Path | str) -> list[str]:
    """Files below a store that its manifest does not list: leftovers of a killed run, or strangers.

    Manifest, locks and the log are not meant.
    """
    place = as_place(path)
    listed = {LOG}
    for part in (SOURCE, *map(teacher_part, place.folders(f"{FOLDER}/teachers"))):
        manifest = PartManifest(place, part)
        if manifest.exists:
            metadata = manifest.metadata
            listed |= {*metadata.files, *(manifest.calibration() or {})}
            for view in range(metadata.num_views):
                shards = manifest.view(view).shards
                listed |= {array.file(view, shard) for array in metadata.arrays_of(view) for shard in shards}
    names = (name for name in place.sizes() if not name.startswith(f"{FOLDER}/") or name.endswith(".tmp"))
    return [name for name in names if name not in listed]
