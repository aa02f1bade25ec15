"""Copying a store, or the teachers, levels and views of it that somebody reads, from one place to another.

A copy is written as a store is: a shard's files first, whole and durable, then its manifest entry. So it can be
killed and gone on with, opens for reading what has arrived, and a whole copy is the same store byte for byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cache.calibration.stored import calibration_folder, calibration_format
from cache.errors import BadInput, CorruptFile, LeftOut, SpecMismatch
from cache.format.documents import parse_json
from cache.format.entries import ViewEntries
from cache.format.groups import with_lower
from cache.format.layout import ArraySpec
from cache.format.manifest import SOURCE, PartManifest, can_be_left_out, teacher_part
from cache.format.parts import ATTRIBUTE, committed_attributes, create_part, grow_part
from cache.places.addresses import as_target
from cache.places.files import FileDigest, digest_of
from cache.places.place import Place
from cache.store import Store
from cache.writing.shard_files import clean_part
from sak_common.differences import first_difference

_IN_FLIGHT = 2
"""Batches of shards in memory at once: one is read while another is written."""
BATCH_BYTES = 64 << 20
"""Shards of so many bytes together, or a single larger one, are made durable and then committed at once: a disk takes
many small files together in about the time of one."""


@dataclass(frozen=True)
class Selection:
    """What of a store is copied; its source part always is.

    Attributes:
        num_views: the first so many views.
        teachers: name -> levels, ascending.
        left_out: arrays whose files are not copied, see `Store.left_out`.
    """

    num_views: int
    teachers: Mapping[str, tuple[int, ...]]
    left_out: frozenset[str] = frozenset()


def select(
    store: Store,
    num_views: int | None = None,
    teachers: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    pixels: bool = True,
) -> Selection:
    """A selection, by default of everything; without `pixels`, of features without the images and their labels.

    Raises:
        UnknownName: a teacher, or a level of one, is not in the store.
        BadInput: the store has fewer views.
    """
    if num_views is not None and not 1 <= num_views <= store.num_views:
        raise BadInput(f"{num_views} views asked for; {store} has {store.num_views}")
    chosen = {}
    for name in store.teachers if teachers is None else teachers:
        stored = store.teacher(name).maps
        wanted = [spec.level for spec in stored] if levels is None else levels
        chosen[name] = tuple(with_lower(stored, [store.level(name, level).level for level in wanted]))
    arrays = store.part(SOURCE).metadata.arrays
    left_out = store.left_out if pixels else frozenset(filter(can_be_left_out, arrays))
    return Selection(num_views or store.num_views, chosen, left_out)


@dataclass(frozen=True)
class _Shard:
    """A shard that is still to be copied.

    Attributes:
        files: array -> what is committed of its file.
        left_out: those of them whose files are not copied.
    """

    view: int
    shard: int
    files: Mapping[str, FileDigest]
    left_out: frozenset[str]

    @property
    def copied(self) -> dict[str, FileDigest]:
        return {path: file for path, file in self.files.items() if path not in self.left_out}

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.copied.values())


@dataclass(frozen=True)
class _Part:
    """One part of a copy: its arrays, and its shards that are committed in the source and not in the copy."""

    name: str
    arrays: Mapping[str, ArraySpec]
    num_views: int
    shards: Sequence[_Shard]


@dataclass(frozen=True)
class CopyPlan:
    """A copy to be made.

    Attributes:
        store: to copy from.
        root: the folder of caches to copy into.
        selection: what of it.
        parts: source and teachers.
    """

    store: Store
    root: Place
    selection: Selection
    parts: Sequence[_Part]

    @property
    def target(self) -> Place:
        """Where the copy lies."""
        return self.root / self.store.spec.store_name

    @property
    def num_bytes(self) -> int:
        """Bytes of shards that are still to be copied."""
        return sum(shard.num_bytes for part in self.parts for shard in part.shards)

    @property
    def num_shards(self) -> int:
        """Shards still to be copied, of all parts."""
        return sum(len(part.shards) for part in self.parts)


def plan_copy(store: Store, root: Place | Path | str, selection: Selection) -> CopyPlan:
    """What copying `selection` of `store` into the folder of caches `root` still takes; writes nothing.

    Raises:
        BadInput: `root` is a web server's or a fixed revision of a repository, or the store there was made from other
            pixels or labels.
        LeftOut: `root` holds the store without images that are asked for, or has room for more of them than there are.
        CorruptFile: a manifest file of either side is damaged.
        SpecMismatch: the target holds a store of this name with other bytes.
    """
    root = as_target(root)
    target = root / store.spec.store_name
    parts = []
    for part in (SOURCE, *map(teacher_part, selection.teachers)):
        manifest = store.part(part)
        arrays = manifest.metadata.arrays
        if part != SOURCE:
            name = part.removeprefix("teachers/")
            specs = store.teacher(name).levels
            kept = {f"{part}/{spec.array}" for spec in specs if spec.level in selection.teachers[name]}
            every = {f"{part}/{spec.array}" for spec in specs}
            arrays = {path: array for path, array in arrays.items() if path in kept or path not in every}
        num_views = min(selection.num_views, manifest.metadata.num_views)
        left_out = selection.left_out if part == SOURCE else frozenset()
        shards = list(_shards(manifest, PartManifest(target, part), arrays, num_views, left_out))
        parts.append(_Part(part, arrays, num_views, shards))
    if PartManifest(target, SOURCE).exists:
        _check_same_source(store, Store.open(target), selection, is_whole=not parts[0].shards)
    return CopyPlan(store, root, selection, parts)


def _check_same_source(store: Store, there: Store, selection: Selection, is_whole: bool) -> None:
    """That the store in the copy's place has the same images as are asked for; where `is_whole`, and all of them."""
    if there.spec != store.spec:  # creating the copy says so
        return
    if not there.left_out <= selection.left_out:
        raise LeftOut(there, there.left_out)
    if not (is_whole or selection.left_out <= there.left_out):
        raise LeftOut(store, selection.left_out - there.left_out)
    ours, theirs = store.part(SOURCE), there.part(SOURCE)
    for view in range(min(selection.num_views, there.num_views)):
        mine, other = ours.view(view), theirs.view(view)
        for shard in sorted(mine.shards.keys() & other.shards.keys()):
            for array in ours.metadata.arrays_of(view):
                if mine.file(shard, array.path) != other.file(shard, array.path):
                    rows = store.spec.rows(shard)
                    raise BadInput(
                        f"{array.path} of {there} and of {store} differ in view {view}, samples {rows.start} to "
                        f"{rows.stop - 1}: they were made from other images or labels, or by other libraries"
                    )


def _shards(
    source: PartManifest,
    target: PartManifest,
    arrays: Mapping[str, ArraySpec],
    num_views: int,
    left_out: frozenset[str],
) -> Iterator[_Shard]:
    exists = target.exists
    for view in range(num_views):
        entries = source.view(view, refresh=True)
        there = target.view(view) if exists else ViewEntries()
        paths = [array.path for array in source.metadata.arrays_of(view) if array.path in arrays]
        for shard in sorted(entries.shards.keys() & there.shards.keys()):
            for path in there.sizes.keys() & set(paths) if source.part != SOURCE else ():  # see _check_same_source
                mine, theirs = entries.file(shard, path), there.file(shard, path)
                if mine != theirs:  # features of other pixels are not of these
                    field = f"sha256 of {path}, view {view}, shard {shard}"
                    raise SpecMismatch(f"what {target.place.shown} holds", field, theirs.sha256, mine.sha256)
        for shard in sorted(entries.shards.keys() - there.shards.keys()):
            yield _Shard(view, shard, {path: entries.file(shard, path) for path in paths}, left_out)


def copy_store(plan: CopyPlan, progress: Callable[[int], None] | None = None) -> Store:
    """Make the copy, or go on with one that was interrupted, and return it.

    Memory in flight: the files of two shards, or twice `BATCH_BYTES`. `progress` is told the bytes of each shard that
    is committed.

    Raises:
        CorruptFile: a file of the source is not what was committed; nothing of its shard is copied.
        SpecMismatch: the target holds this store or teacher made otherwise, or with other levels.
        StoreFull, WriteFailed: the target refuses bytes.
    """
    copy = Store.create(plan.root, plan.store.spec, left_out=plan.selection.left_out)
    for part in plan.parts:
        with copy.lock(part.name):
            _copy_metadata(plan, part, copy)
            _copy_shards(plan.store, part, copy, progress)
    copy.place.finish()
    return copy


def _copy_metadata(plan: CopyPlan, part: _Part, copy: Store) -> None:
    store, manifest, theirs = plan.store, plan.store.part(part.name), copy.part(part.name)
    if part.name != SOURCE:
        name = part.name.removeprefix("teachers/")
        group = f"{part.name}/zarr.json"
        attributes = committed_attributes(store.place, manifest, group)
        levels = plan.selection.teachers[name]
        asked = {**attributes, "levels": [spec for spec in attributes["levels"] if spec["level"] in levels]}
        if theirs.exists:
            if difference := first_difference(committed_attributes(copy.place, theirs, group), asked):
                raise SpecMismatch(f"teacher {name} in {copy}", *difference)
        else:
            documents = {
                path: parse_json(_checked(store.place, path, digest), store.place.show(path))
                for path, digest in manifest.metadata.files.items()
                if path.removesuffix("/zarr.json") not in manifest.metadata.arrays
            }
            documents[group]["attributes"][ATTRIBUTE] = asked
            metadata = manifest.metadata
            copy.place.discard(part.name)
            create_part(
                copy.place, theirs, documents, part.arrays.values(), metadata.num_samples, metadata.rows_per_shard
            )
        if theirs.calibration() is None:
            _copy_calibration(store, name, levels, copy)
    clean_part(copy, theirs)
    grow_part(copy.place, theirs, part.num_views)


def _copy_calibration(store: Store, teacher: str, levels: Sequence[int], copy: Store) -> None:
    folder = calibration_folder(teacher)
    others = [spec.array for spec in store.teacher(teacher).levels if spec.level not in levels]
    files = {
        path: [_checked(store.place, path, digest)]
        for path, digest in (store.part(teacher_part(teacher)).calibration() or {}).items()
        if not any(path.startswith(f"{folder}/{array}/") for array in others)
    }
    if files:
        copy.part(teacher_part(teacher)).commit_calibration(copy.place.write(files), calibration_format(files))


def _copy_shards(store: Store, part: _Part, copy: Store, progress: Callable[[int], None] | None) -> None:
    manifest, theirs = store.part(part.name), copy.part(part.name)
    waiting: deque[tuple[Sequence[_Shard], Future[None]]] = deque()
    with ThreadPoolExecutor(store.place.num_readers) as readers, ThreadPoolExecutor(_IN_FLIGHT) as writers:

        def carry(batch: Sequence[_Shard]) -> None:
            names = {
                part.arrays[path].file(shard.view, shard.shard): file
                for shard in batch
                for path, file in shard.copied.items()
            }
            contents = readers.map(lambda name: store.place.read_committed(name, names[name].num_bytes), names)
            files = {name: [data] for name, data in zip(names, contents, strict=True)}
            copy.place.write(files, before_commit=lambda found: _check(store.place, found, names))

        def finish() -> None:
            batch, written = waiting.popleft()
            written.result()
            theirs.commit_entries([(shard.view, _entry(store, manifest, shard)) for shard in batch])
            if progress is not None:
                for shard in batch:
                    progress(shard.num_bytes)

        try:
            for batch in _batches(part.shards):
                if len(waiting) == _IN_FLIGHT:
                    finish()
                waiting.append((batch, writers.submit(carry, batch)))
            while waiting:
                finish()
        finally:
            for _, written in waiting:
                written.cancel()


def _batches(shards: Sequence[_Shard]) -> Iterator[list[_Shard]]:
    """Neighbouring shards of at most `BATCH_BYTES` together, or a larger one by itself."""
    batch: list[_Shard] = []
    for shard in shards:
        if batch and sum(other.num_bytes for other in batch) + shard.num_bytes > BATCH_BYTES:
            yield batch
            batch = []
        batch.append(shard)
    if batch:
        yield batch


def _entry(store: Store, manifest: PartManifest, shard: _Shard) -> ViewEntries:
    """What is to be committed of a shard that was copied from the part of `manifest`."""
    entries = manifest.view(shard.view)
    rows, position = store.spec.rows(shard.shard), entries.shards[shard.shard]
    return ViewEntries.of_shard(
        shard.shard,
        shard.files,
        {sample: why for sample, why in entries.invalid.items() if sample in rows},
        {path: counts[position] for path, counts in entries.clipped.items() if path in shard.files},
    )


def _checked(place: Place, name: str, digest: FileDigest) -> bytes:
    """A committed file's bytes."""
    data = place.read_committed(name, digest.num_bytes)
    _check(place, {name: digest_of([data])}, {name: digest})
    return data


def _check(place: Place, found: Mapping[str, FileDigest], committed: Mapping[str, FileDigest]) -> None:
    for name, digest in found.items():
        if digest != committed[name]:
            raise CorruptFile(place.show(name), "it is not the file that was committed")
