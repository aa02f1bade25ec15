"""The files of one shard, and what a killed run may have left of a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from cache.errors import RemadeDiffers
from cache.faults import fault_point
from cache.format.layout import ArraySpec, shard_buffers
from cache.format.manifest import PartManifest
from cache.places.files import Buffers, FileDigest, digest_of
from cache.store import Store

Array = npt.NDArray[Any]


def write_arrays(
    store: Store,
    manifest: PartManifest,
    specs: Sequence[ArraySpec],
    view: int,
    shard: int,
    arrays: Mapping[str, Sequence[Array]],
    phase: str,
) -> dict[str, FileDigest] | None:
    """Write the files of one shard, durable but not committed; returns array -> digest.

    Of a shard that is committed already, only the files that are not as they were committed are written, and None is
    returned: there is nothing to commit.

    Args:
        arrays: path -> the shard's rows, in one part or several.

    Raises:
        RemadeDiffers: the shard is committed, and `arrays` give other bytes.
    """
    buffers: dict[str, Buffers] = {
        spec.file(view, shard): shard_buffers(spec, arrays[spec.path], store.spec.rows_per_shard) for spec in specs
    }
    if manifest.is_committed(view, shard):
        entries = manifest.view(view)
        _write_damaged(store, buffers, {spec.file(view, shard): entries.file(shard, spec.path) for spec in specs})
        return None
    digests = store.place.write(buffers, before_commit=lambda _: fault_point(phase))
    fault_point("commit")
    return {spec.path: digests[spec.file(view, shard)] for spec in specs}


def _write_damaged(store: Store, buffers: Mapping[str, Buffers], committed: Mapping[str, FileDigest]) -> None:
    """Write those files again that are damaged on the disk, if what was made for them is what was committed."""
    damaged: dict[str, Buffers] = {}
    for file, digest in committed.items():
        if digest_of(buffers[file]) != digest:
            raise RemadeDiffers(
                f"{store.place.show(file)}: what was made again is not what was committed; the images, the teacher, "
                "the device, the number of threads or a library is not the one that made it. Nothing was written"
            )
        try:
            intact = store.place.digest(file) == digest
        except OSError:
            intact = False
        if not intact:
            damaged[file] = buffers[file]
    if damaged:
        store.place.write(damaged, replace=True, before_commit=lambda _: fault_point("repair"))


def clean_part(store: Store, manifest: PartManifest) -> None:
    """Tidy what a killed run left of a part: temporary files, complete views that are not compacted."""
    metadata = manifest.metadata
    files = [*metadata.files, *metadata.arrays, *(manifest.calibration() or ())]
    folders = {path.rpartition("/")[0] for path in files} | set(metadata.arrays)
    views = [f"{manifest.folder}/{name}" for name in store.place.folders(manifest.folder)]
    store.place.remove_temporaries([*folders, manifest.folder, *views])
    for view in range(metadata.num_views):
        manifest.view(view, refresh=True)
        manifest.compact(view)
