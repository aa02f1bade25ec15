"""Taking a teacher or the last views out of a store; whatever moment a kill comes, what is left is a store.

Commitments go first, then bytes, then the metadata that made room for them: at every moment the store is one that a
killed extraction could have left, and the same call goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cache.errors import BadInput
from cache.faults import fault_point
from cache.format.manifest import SOURCE, PartManifest, teacher_part
from cache.format.parts import array_json, is_interrupted_growth
from cache.places.files import digest_of
from cache.places.place import Place
from cache.store import Store
from sak_common.names import UnknownName, unknown


def drop_teacher(store: Store, name: str) -> None:
    """Take a teacher out, damaged or not, or what an interrupted `drop_teacher` left of it. The lock file stays.

    Raises:
        UnknownName: the store has no such teacher.
        StoreLocked: another process writes it.
    """
    part = teacher_part(name)
    if name not in store.teachers and not store.place.sizes(part):
        raise UnknownName(unknown(f"teacher in {store.name}", name, store.teachers))
    with store.lock(part, wait=False):
        manifest = store.part(part)
        # By their names alone, so that a damaged part can go too: entries, views, calibration, metadata.
        first = [name for name in manifest.entry_files() if not name.endswith(("/calibration.json", "/metadata.json"))]
        store.place.delete([name for name in first if "/view_" in name.rpartition("/")[0]])
        store.place.delete(first)
        fault_point("drop")
        store.place.delete([f"{manifest.folder}/calibration.json"])
        store.place.delete([f"{manifest.folder}/metadata.json"])
        manifest.forget()
        fault_point("drop")
        for folder in store.place.folders(manifest.folder):
            store.place.remove(f"{manifest.folder}/{folder}")
        store.place.remove(part)


def drop_views(store: Store, num_views: int, teacher: str | None = None) -> None:
    """Keep the first `num_views` views of the whole store, or of one teacher.

    Raises:
        BadInput: none would be left.
        UnknownName: the store has no such teacher.
        StoreLocked: another process writes one of the parts.
    """
    if num_views < 1:
        raise BadInput(f"{num_views} views: at least one must be left")
    if teacher is not None:
        store.teacher(teacher)
    # Teachers first: their rows need the source's.
    parts = [teacher_part(name) for name in ([teacher] if teacher else store.teachers)] + ([] if teacher else [SOURCE])
    for part in parts:
        with store.lock(part, wait=False):
            _shrink(store.place, store.part(part), num_views)


def views_of(store: Store, part: str, views: range) -> Iterator[str]:
    """The files of some views of a part, whether they exist or not, except those that all views share."""
    metadata = store.part(part).metadata
    for array in metadata.arrays.values():
        if array.has_views:
            for view in views:
                yield from (array.file(view, shard) for shard in range(metadata.num_shards))


def settle_growth(store: Store) -> list[str]:
    """Finish what a killed growth or drop left: arrays whose ``zarr.json`` names more views than the manifest does.

    Returns:
        The parts in which there was something to finish.
    """
    parts = [teacher_part(name) for name in store.teachers] + [SOURCE]
    settled = []
    for part in parts:
        with store.lock(part, wait=False):
            if _write_arrays_json(store.place, store.part(part)):
                settled.append(part)
    return settled


def _shrink(place: Place, manifest: PartManifest, num_views: int) -> None:
    old = manifest.metadata
    if num_views >= old.num_views:
        _write_arrays_json(place, manifest)
        return
    for view in reversed(range(num_views, old.num_views)):
        manifest.uncommit(view)
    fault_point("drop")
    for array in old.arrays.values():
        if array.has_views:
            for view in range(num_views, old.num_views):
                place.delete([array.file(view, shard) for shard in range(old.num_shards)])
    fault_point("drop")
    files = {
        f"{path}/zarr.json": digest_of([array_json(array, num_views, old.num_samples, old.rows_per_shard)])
        for path, array in old.arrays.items()
        if array.has_views
    }
    manifest.commit_metadata(replace(old, num_views=num_views, files={**old.files, **files}), replace=True)
    fault_point("drop")
    _write_arrays_json(place, manifest)


def _write_arrays_json(place: Place, manifest: PartManifest) -> bool:
    """Write the metadata of arrays that promise more views than the manifest; whether there were any."""
    metadata = manifest.metadata
    stale = {}
    for path, array in metadata.arrays.items():
        name = f"{path}/zarr.json"
        is_here = array.has_views and path not in manifest.left_out
        if is_here and is_interrupted_growth(metadata, name, place.digest(name)):
            stale[name] = [array_json(array, metadata.num_views, metadata.num_samples, metadata.rows_per_shard)]
    if stale:
        place.write(stale, replace=True)
    return bool(stale)
