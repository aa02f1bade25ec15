"""Checking every byte of a store against its manifest, and saying what is damaged as exactly as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.errors import CorruptFile, NotCalibrated, StoreNotFound
from cache.format.checksums import CRC_BYTES, matches
from cache.format.documents import MOST_METADATA_BYTES
from cache.format.entries import PartMetadata
from cache.format.layout import ArraySpec, index_bytes, parse_index
from cache.format.manifest import FOLDER, SOURCE, PartManifest, can_be_left_out, teacher_part, view_and_shard
from cache.format.parts import is_interrupted_growth, who_wrote
from cache.places.addresses import as_place
from cache.places.files import FileDigest
from cache.places.place import Place
from cache.store import Store

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was committed.

    Attributes:
        part: ``source`` or ``teachers/<name>``.
        level: the array below the part, e.g. ``pixels`` or ``level_2``; None for metadata.
        view, shard: where they apply.
        file: path below the store.
        what: in words.
        rows: samples whose bytes are damaged, where that can be told; empty where it cannot, or where the
            damage is in padding only.
    """

    part: str
    level: str | None
    view: int | None
    shard: int | None
    file: str
    what: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        place = [self.part, *([self.level] if self.level else [])]
        place += [
            f"{name} {value}" for name, value in (("view", self.view), ("shard", self.shard)) if value is not None
        ]
        rows = f" (samples {', '.join(map(str, self.rows))})" if self.rows else ""
        return f"{', '.join(place)}: {self.file}: {self.what}{rows}"


@dataclass(frozen=True)
class _Check:
    """One committed file, still to be checked."""

    part: str
    file: str
    digest: FileDigest
    metadata: PartMetadata | None = None
    array: ArraySpec | None = None
    view: int | None = None
    shard: int | None = None


def verify_store(path: Place | Path | str, progress: Progress | None = None, everything: bool = True) -> list[Problem]:
    """Check every committed file of a store: existence, size, SHA-256, and a damaged shard's rows by crc32c.

    Works on a store that does not open any more. What is not committed is no problem, nor what `Store.left_out` names.

    Args:
        progress: is told (bytes checked, bytes in all) as it goes.
        everything: the shards' files, too; else manifest, ``zarr.json`` and calibration.

    Raises:
        StoreNotFound: there is no store at `path`.
    """
    place = as_place(path)
    if not place.sizes(f"{FOLDER}/{SOURCE}"):
        raise StoreNotFound(f"{place.shown} is no store: it has no manifest")
    problems: list[Problem] = []
    checks: list[_Check] = []
    for part in _parts(place):
        for item in _plan(place, part):
            if isinstance(item, Problem):
                problems.append(item)
            elif everything or item.array is None:
                checks.append(item)
    total = sum(check.digest.num_bytes for check in checks)
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    for check in checks:
        if problem := _check_file(place, check, count):
            problems.append(problem)
    if all(problem.level is not None for problem in problems):
        problems += _misfits(place)
    return problems


def _parts(place: Place) -> list[str]:
    return [SOURCE, *map(teacher_part, place.folders(f"{FOLDER}/teachers"))]


def _plan(place: Place, part: str) -> Iterator[_Check | Problem]:
    """The committed files of a part, or why they cannot be known."""
    manifest = PartManifest(place, part)
    told = set()
    for name in manifest.entry_files():
        try:
            manifest.read(name)
        except CorruptFile as error:
            told.add(name)
            yield Problem(part, None, *view_and_shard(name), name, error.what)
    if not manifest.exists:
        if manifest.entry_files():
            file = f"{manifest.folder}/metadata.json"
            yield Problem(part, None, None, None, file, "it is missing, so the part cannot be read")
        return
    try:
        metadata = manifest.metadata
    except CorruptFile as error:
        file = f"{manifest.folder}/metadata.json"
        if file not in told:  # whole, but a stranger's
            yield Problem(part, None, None, None, file, error.what)
        return
    try:
        left_out = manifest.left_out
    except CorruptFile as error:
        left_out = frozenset(filter(can_be_left_out, metadata.arrays))  # until it can be read, nothing is known of them
        if (file := f"{manifest.folder}/left_out.json") not in told:
            yield Problem(part, None, None, None, file, error.what)
    for file, digest in metadata.files.items():
        if file.removesuffix("/zarr.json") not in left_out:
            yield _Check(part, file, digest, metadata)
    try:
        for file, digest in (manifest.calibration() or {}).items():
            yield _Check(part, file, digest)
    except CorruptFile as error:
        file = f"{manifest.folder}/calibration.json"
        if file not in told:
            yield Problem(part, None, None, None, file, error.what)
    for view in range(metadata.num_views):
        try:
            entries = manifest.view(view)
        except CorruptFile as error:
            if (name := _name(place, error)) not in told:
                yield Problem(part, None, *view_and_shard(name), name, error.what)
            continue
        for shard, why in entries.damaged.items():
            if (name := _name(place, why)) not in told:
                yield Problem(part, None, view, shard, name, why.what)
        for array in metadata.arrays_of(view):
            for shard in sorted(entries.shards) if array.path not in left_out else ():
                digest = entries.file(shard, array.path)
                yield _Check(part, array.file(view, shard), digest, metadata, array, view, shard)


def _name(place: Place, error: CorruptFile) -> str:
    """The path, below the store, of the file that an error is about."""
    return str(error.path).removeprefix(place.show(""))


def _misfits(place: Place) -> Iterator[Problem]:
    """What whole metadata says that does not fit together, as no writer of this project leaves it."""
    if not PartManifest(place, SOURCE).exists:
        return
    part = SOURCE
    try:
        store = Store.open(place)
        for name in store.teachers:
            part = teacher_part(name)
            store.calibration(name)
            for level in store.teacher(name).levels:
                with suppress(NotCalibrated):
                    store.features(name, level.level, level.prefix)
    except CorruptFile as error:
        yield Problem(part, None, None, None, _name(place, error), error.what)


def _check_file(place: Place, check: _Check, count: Callable[[int], None]) -> Problem | None:
    level = check.array.path.removeprefix(f"{check.part}/") if check.array else None

    def problem(what: str, rows: tuple[int, ...] = ()) -> Problem:
        return Problem(check.part, level, check.view, check.shard, check.file, what, rows)

    try:
        found = place.digest(check.file, count, check.digest.num_bytes)
    except FileNotFoundError:
        return problem("it is missing", _all_rows(check))
    except OSError as error:
        return problem(f"it cannot be read: {error}", _all_rows(check))
    if found == check.digest:
        return None
    if check.array is None:
        if check.metadata is not None and is_interrupted_growth(check.metadata, check.file, found):
            return None
        writer = who_wrote(place.read(check.file)) if found.num_bytes <= MOST_METADATA_BYTES else ""
        return problem(f"its bytes are not those that were committed{writer}")
    if found.num_bytes != check.digest.num_bytes:
        what = f"it has {found.num_bytes} bytes, {check.digest.num_bytes} were committed"
        return problem(what, _all_rows(check))
    return problem(*_damage(place, check))


def _all_rows(check: _Check) -> tuple[int, ...]:
    if check.metadata is None or check.shard is None:
        return ()
    return tuple(check.metadata.rows(check.shard))


def _damage(place: Place, check: _Check) -> tuple[str, tuple[int, ...]]:
    """What is wrong in a shard's file that has the right size, and which samples it touches."""
    assert check.array is not None and check.metadata is not None
    rows = _all_rows(check)
    if not check.array.sharded or check.digest.num_bytes < index_bytes(check.metadata.rows_per_shard):
        return "its bytes are not those that were committed", rows
    size = index_bytes(check.metadata.rows_per_shard)
    file = place.open(check.file, check.digest.num_bytes)
    try:
        index = parse_index(file.read(check.digest.num_bytes - size, size), file.shown)
    except CorruptFile:
        return "its index is damaged", rows
    damaged = []
    for row, sample in enumerate(rows):
        offset, num_bytes = (int(value) for value in index[row])
        is_inside = offset + num_bytes <= check.digest.num_bytes - size
        data = file.read(offset, num_bytes) if is_inside else b""
        if not matches(data[:-CRC_BYTES], data[-CRC_BYTES:]):
            damaged.append(sample)
    if damaged:
        return "rows fail their crc32c", tuple(damaged)
    return "bytes between rows (padding) are not those that were committed", ()
