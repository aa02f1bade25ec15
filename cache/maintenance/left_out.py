"""Putting back the pixels and labels that a store was published without, see `Store.left_out`.

Whoever has the data set renders them again, shard by shard, each held to its recorded SHA-256 before it is written
(`cache.writing.source_writer`). The store says that they are missing until every one of them is there.
"""

from __future__ import annotations

from collections.abc import Callable

from cache.errors import CorruptFile, LeftOut
from cache.faults import fault_point
from cache.format.manifest import SOURCE
from cache.format.parts import array_json
from cache.places.files import FileDigest, digest_of
from cache.store import Store


def missing_files(store: Store) -> dict[tuple[int, int], dict[str, FileDigest]]:
    """(view, shard) -> the files of left-out arrays that are not there as they were committed, and what was; reads all
    that are there."""
    return _missing(store, lambda name, digest: store.place.digest(name) == digest)


def _missing(store: Store, is_right: Callable[[str, FileDigest], bool]) -> dict[tuple[int, int], dict[str, FileDigest]]:
    manifest = store.part(SOURCE)
    here = store.place.sizes()
    found: dict[tuple[int, int], dict[str, FileDigest]] = {}
    for view in range(store.num_views):
        entries = manifest.view(view, refresh=True)
        arrays = [array for array in manifest.metadata.arrays_of(view) if array.path in manifest.left_out]
        for shard in sorted(entries.shards):
            files = {array.file(view, shard): entries.file(shard, array.path) for array in arrays}
            left = {
                name: digest
                for name, digest in files.items()
                if here.get(name) != digest.num_bytes or not is_right(name, digest)
            }
            if left:
                found[view, shard] = left
    return found


def put_back(store: Store) -> None:
    """Make a store whole whose left-out files are there again; the caller holds the lock of its source, and has found
    or written each of them.

    Raises:
        LeftOut: some are not there, by their names and sizes.
        CorruptFile: the metadata of an array would not be what was committed.
    """
    manifest = store.part(SOURCE)
    if _missing(store, lambda name, digest: True):
        raise LeftOut(store, manifest.left_out)
    metadata = manifest.metadata
    files = {
        f"{path}/zarr.json": array_json(
            metadata.arrays[path], metadata.num_views, metadata.num_samples, metadata.rows_per_shard
        )
        for path in sorted(manifest.left_out)
    }
    for name, data in files.items():
        if digest_of([data]) != metadata.files[name]:
            raise CorruptFile(store.place.show(name), "what the manifest says of this array is not what was committed")
    store.place.write({name: [data] for name, data in files.items()}, replace=True)
    fault_point("join")
    manifest.leave_out(())
