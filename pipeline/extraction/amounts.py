"""What a run will write: the rows and bytes of a part that are not committed yet, and whether the disk holds them."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.codecs import get_codec
from cache.format.layout import ArraySpec, source_arrays, teacher_arrays
from cache.format.manifest import SOURCE, PartManifest, teacher_part
from cache.format.spec import LevelSpec, SourceSpec
from cache.places.addresses import as_place
from cache.places.files import free_files
from cache.places.local import LocalPlace
from cache.store import Store
from pipeline.console import amount
from pipeline.errors import UserError

CODED_MARGIN = 0.1
"""Of entropy-coded arrays, kept free beside their measured bytes."""

_STATISTICS = 7  # tables that every level's calibration has
_FILES_OF_A_PART = 20  # groups, folders, lock and metadata, at most


@dataclass(frozen=True)
class PartAmount:
    """Rows, bytes and files of one part over the views that are asked for.

    Attributes:
        part: ``source`` or ``teachers/<name>``.
        rows, pending_rows: all of them, and those that are not committed.
        array_bytes: path of an array -> bytes of its files when all rows are there; of entropy-coded ones the most that
            they can be, until `coded` knows better.
        pending_bytes: bytes still to be written, all arrays and the calibration together.
        calibration_bytes: of these, the calibration's.
        margin_bytes: what a measured `pending_bytes` may be off by.
        pending_files: files and folders still to be made, at most: each takes an inode.
    """

    part: str
    rows: int
    pending_rows: int
    array_bytes: dict[str, int]
    pending_bytes: int
    calibration_bytes: int = 0
    margin_bytes: int = 0
    pending_files: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays when all rows are there."""
        return sum(self.array_bytes.values())

    @property
    def needed_bytes(self) -> int:
        """What must be free for it: what is to be written, and the margin."""
        return self.pending_bytes + self.margin_bytes


def existing_store(features: Path | str, spec: SourceSpec) -> Store | None:
    """The store for `spec` below `features`, if there is one."""
    place = as_place(features) / spec.store_name
    return Store.open(place) if PartManifest(place, SOURCE).exists else None


def source_amount(spec: SourceSpec, store: Store | None, num_views: int) -> PartAmount:
    """Pixels, labels and facts of `num_views` views."""
    return _amount(spec, store, SOURCE, source_arrays(spec), num_views)


def teacher_amount(
    spec: SourceSpec, store: Store | None, name: str, levels: Sequence[LevelSpec], num_views: int
) -> PartAmount:
    """A teacher's levels over `num_views` views."""
    part = teacher_part(name)
    found = _amount(spec, store, part, teacher_arrays(name, levels), num_views)
    if is_calibrated(store, part):
        return found
    calibration = sum(calibration_bytes(level) for level in levels)
    return replace(
        found,
        pending_bytes=found.pending_bytes + calibration,
        calibration_bytes=calibration,
        pending_files=found.pending_files + sum(_calibration_files(level) for level in levels),
    )


def _calibration_files(level: LevelSpec) -> int:
    """Files and folders of a level's calibration, at most: each table is a folder with two files."""
    codec = get_codec(level.codec)
    tables = (*codec.needs, *codec.may_need) if codec.is_fitted else ()
    return 3 * (_STATISTICS + len(tables) + (level.predicts_from is not None)) + 2


def is_calibrated(store: Store | None, part: str) -> bool:
    """Whether the calibration of a teacher's `part` is committed."""
    return store is not None and store.part(part).exists and store.part(part).calibration() is not None


def calibration_bytes(level: LevelSpec) -> int:
    """Bytes of a level's calibration: channel statistics, float32 (C,) but for the covariance, float64 (C, C); what its
    codec is fitted with, float32; the map from the level below, float16 (C, C)."""
    codec, grid, width = get_codec(level.codec), level.grid, level.width
    tables = 4 * sum(math.prod(codec.table_shape(name, grid, width)) for name in codec.needs) if codec.is_fitted else 0
    return 8 * width**2 + 20 * width + tables + (0 if level.predicts_from is None else 2 * width**2)


def coded(part: PartAmount, ratios: Mapping[str, float]) -> PartAmount:
    """A teacher's `part` with the bytes that entropy coding leaves of it, and `CODED_MARGIN` of them as a margin.

    Args:
        ratios: array of a level -> bytes on disk as a share of those before coding, as measured.
    """
    arrays = {path: round(size * ratios[path.rpartition("/")[2]]) for path, size in part.array_bytes.items()}
    rows = part.pending_bytes - part.calibration_bytes
    left = round(rows * sum(arrays.values()) / max(part.num_bytes, 1))
    changed = sum(arrays[path] for path, size in part.array_bytes.items() if arrays[path] != size)
    margin = round(CODED_MARGIN * left * changed / max(sum(arrays.values()), 1))
    return replace(part, array_bytes=arrays, pending_bytes=left + part.calibration_bytes, margin_bytes=margin)


def _amount(
    spec: SourceSpec, store: Store | None, part: str, arrays: Sequence[ArraySpec], num_views: int
) -> PartAmount:
    everything = [(view, shard) for view in range(num_views) for shard in range(spec.num_shards)]
    is_there = store is not None and store.part(part).exists
    pending = store.part(part).pending(num_views) if store is not None and is_there else everything
    return PartAmount(
        part,
        spec.num_samples * num_views,
        sum(len(spec.rows(shard)) for _, shard in pending),
        {array.path: _file_bytes(spec, [array], everything) for array in arrays},
        _file_bytes(spec, arrays, pending),
        pending_files=_num_files(arrays, pending) + (0 if is_there else 2 * len(arrays) + _FILES_OF_A_PART),
    )


def _num_files(arrays: Sequence[ArraySpec], shards: Sequence[tuple[int, int]]) -> int:
    """Files of `arrays` for these (view, shard), an entry of the manifest for each, and two more for each view."""
    files = sum(array.has_views or view == 0 for view, _ in shards for array in arrays)
    return files + len(shards) + 2 * len({view for view, _ in shards})


def _file_bytes(spec: SourceSpec, arrays: Sequence[ArraySpec], shards: Iterable[tuple[int, int]]) -> int:
    """Bytes of the files of `arrays` for these (view, shard): shards of equal size are counted together."""
    alike = Counter((len(spec.rows(shard)), view == 0) for view, shard in shards)
    return sum(
        count * array.file_bytes(rows, spec.rows_per_shard)
        for (rows, is_first), count in alike.items()
        for array in arrays
        if array.has_views or is_first
    )


def check_disk(where: Path | str, needed_bytes: int, what: str, needed_files: int = 0) -> None:
    """Check that there is room on the disk of `where`.

    Args:
        what: it is for, in the plural, for the error.

    Raises:
        UserError: it has not `needed_bytes` free, or takes fewer than `needed_files`.
    """
    left = files_left(where)
    if left is not None and needed_files > left:
        raise UserError(
            f"{what} need {needed_files:,} more files, but the disk of {where} has inodes for {left:,}, however "
            "much of it is free. Delete files that nobody needs, choose another --out, or store less (--views, --limit)"
        )
    free = free_bytes(where)
    if free is not None and needed_bytes > free:
        raise UserError(
            f"{what} need {amount(needed_bytes)} more, but the disk of {where} has {amount(free)} free. "
            "Free some, choose another --out, or store less (--grid, --codec, --views, --limit); "
            "`sak plan` says what would fit"
        )


def files_left(where: Path | str) -> int | None:
    """How many files more the disk of the folder `where` takes; None where it sets no limit."""
    place = as_place(where)
    return free_files(place.path) if isinstance(place, LocalPlace) else None


def free_bytes(where: Path | str) -> int | None:
    """Bytes free on the disk where the folder `where` is, or will be made; None for buckets, which have no end."""
    place = as_place(where)
    if not isinstance(place, LocalPlace):
        return None
    folder = place.path
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
