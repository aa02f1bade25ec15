"""Writing the source part, a shard at a time: files whole and durable first, then the manifest's entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import BadInput
from cache.format.layout import ArraySpec
from cache.format.manifest import SOURCE
from cache.format.spec import IGNORE, encode_ids
from cache.store import Store
from cache.writing.shard_files import clean_part, write_arrays
from cache.writing.teacher_writer import TeacherWriter

__all__ = ["SourceWriter", "TeacherWriter"]

Array = npt.NDArray[Any]


class SourceWriter:
    """Writes samples, views, pixels and labels. Memory in flight: the arrays of one shard.

    Opening one tidies what a killed run left (temporary files, a view whose manifest was not compacted); one that
    is opened with `helps` leaves that, and the lock, to another process that holds it meanwhile.
    """

    def __init__(self, store: Store, helps: bool = False) -> None:
        self.store = store
        self._manifest = store.part(SOURCE)
        self.pending = self._manifest.pending  # the (view, shard) of so many views that are not committed
        if not helps:
            with store.lock(SOURCE):
                clean_part(store, self._manifest)

    def write_shard(
        self,
        view: int,
        shard: int,
        arrays: Mapping[str, Array | Sequence[str]],
        invalid: Mapping[int, str] | None = None,
    ) -> None:
        """Write and commit one shard; returns when it is durable.

        A shard that is committed already must come out the same; its files are then written again where they are
        damaged.

        Args:
            view: below `store.num_views` (see `Store.ensure_views`).
            shard: its rows are `store.spec.rows(shard)`.
            arrays: for its n rows ``pixels`` uint8 (n, H, W, 3); ``labels/<task>`` (n, H, W[, c]) each;
                ``views/box`` float32 (n, 4), ``views/flip`` uint8 (n,), ``views/colour`` float32 (n, 5); and
                with view 0 ``samples/ids`` (n strings, or uint8 (n, id_width)), ``samples/size`` int32 (n, 2)
                px, ``samples/digest`` uint8 (n, 32), ``samples/valid`` uint8 (n,), the last made from
                `invalid` if it is left out.
            invalid: sample -> why it could not be read. Their rows are filled (pixels with `spec.fill`,
                labels with 255, the rest with zeros) whatever `arrays` hold there.

        Raises:
            BadInput: wrong keys, shapes or dtypes, each named; rows outside of the shard in `invalid`.
            RemadeDiffers: the shard is committed, and differs.
            StoreFull: no space; nothing of the shard is committed.
        """
        if view >= self.store.num_views:
            raise BadInput(f"view {view}: the store has room for {self.store.num_views}; call ensure_views first")
        rows = self.store.spec.rows(shard)
        invalid = dict(invalid or {})
        if strangers := [sample for sample in invalid if sample not in rows]:
            raise BadInput(f"invalid samples {strangers} are not in shard {shard} ({rows.start}..{rows.stop - 1})")
        given = dict(arrays)
        bad = [sample - rows.start for sample in sorted(invalid)]
        if view == 0:
            if "samples/ids" in given and not isinstance(given["samples/ids"], np.ndarray):
                given["samples/ids"] = encode_ids(given["samples/ids"], self.store.spec.id_width)
            valid = np.ones(len(rows), np.uint8)
            valid[bad] = 0
            given.setdefault("samples/valid", valid)
        specs = self._manifest.metadata.arrays_of(view)
        checked = _checked(specs, given, len(rows), f"view {view}, shard {shard}")
        if bad:
            checked = {path: self._filled(path, array, bad) for path, array in checked.items()}
        parts = {path: [array] for path, array in checked.items()}
        files = write_arrays(self.store, self._manifest, specs, view, shard, parts, "prepare")
        if files is not None:
            self._manifest.commit_shard(view, shard, files, invalid)

    def _filled(self, path: str, array: Array, bad: Sequence[int]) -> Array:
        if path == "samples/ids":
            return array
        array = array.copy()
        if path == "pixels":
            array[bad] = np.array(self.store.spec.fill, np.uint8)
        else:
            array[bad] = IGNORE if path.startswith("labels/") else 0
        return array


def _checked(specs: Sequence[ArraySpec], given: Mapping[str, Any], count: int, where: str) -> dict[str, Array]:
    """The given arrays by path, if they are what the specs ask for."""
    needed = {spec.path: spec for spec in specs}
    if missing := sorted(needed.keys() - given.keys()):
        raise BadInput(f"{where}: {', '.join(missing)} missing")
    if extra := sorted(given.keys() - needed.keys()):
        raise BadInput(f"{where}: {', '.join(extra)} not in this store; it takes {', '.join(sorted(needed))}")
    for path, spec in needed.items():
        array = given[path]
        if not isinstance(array, np.ndarray):
            raise BadInput(f"{where}, {path}: a numpy array is needed, not {type(array).__name__}")
        if array.dtype != np.dtype(spec.dtype) or array.shape != (count, *spec.row_shape):
            raise BadInput(
                f"{where}, {path}: {array.dtype} {array.shape} given, {spec.dtype} {(count, *spec.row_shape)} needed"
            )
    return {path: given[path] for path in needed}
