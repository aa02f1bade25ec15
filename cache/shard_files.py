"""The files of one shard, and what a killed run may have left of a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from cache.faults import fault_point
from cache.files import Buffers, FileDigest
from cache.layout import ArraySpec, shard_buffers
from cache.manifest import PartManifest
from cache.store import Store

Array = npt.NDArray[Any]


def write_arrays(
    store: Store, specs: Sequence[ArraySpec], view: int, shard: int, arrays: Mapping[str, Array], phase: str
) -> dict[str, FileDigest]:
    """Write the files of one shard, durable but not committed; returns array -> digest."""
    buffers: dict[str, Buffers] = {
        spec.file(view, shard): shard_buffers(spec, arrays[spec.path], store.spec.rows_per_shard) for spec in specs
    }
    digests = store.place.write(buffers, before_commit=lambda: fault_point(phase))
    fault_point("commit")
    return {spec.path: digests[spec.file(view, shard)] for spec in specs}


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
