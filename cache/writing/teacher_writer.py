"""Writing a teacher's part: provenance, calibration, then its levels a shard at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.calibration.statistics import level_constants
from cache.calibration.stored import calibration_files, calibration_folder, calibration_format, remade_files
from cache.codecs import get_codec
from cache.errors import BadInput, CorruptFile, NonFiniteFeature, SpecMismatch, UncommittedRow
from cache.faults import fault_point
from cache.format.groups import PREDICTOR, check_groups
from cache.format.layout import group_json, teacher_arrays
from cache.format.manifest import SOURCE, teacher_part
from cache.format.parts import ATTRIBUTE, create_part, grow_part
from cache.format.spec import FORMAT_VERSION, LevelSpec, check_name, deciding, to_plain
from cache.store import Store
from cache.writing.shard_files import clean_part, write_arrays
from sak_common.differences import first_difference

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EncodedRows:
    """Neighbouring rows of a shard as they will be stored.

    Attributes:
        rows: their samples.
        stored: array's path -> stored numbers (n, ...).
        clipped: array of a level -> how many values were clipped.
    """

    rows: range
    stored: dict[str, Array] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)


def check_storable(
    store: Store, teacher: str, view: int, samples: Sequence[int] | Array, level: LevelSpec, features: Array
) -> None:
    """Refuse features float32 (n, h, w, C) of `samples` that are not finite, or would not be when stored.

    Raises:
        NonFiniteFeature: names teacher, sample, view, level, channel and cell of the first.
    """
    if unstorable := get_codec(level.codec).find_unstorable(features):
        row, y, x, channel = unstorable.index
        sample = int(samples[row])
        raise NonFiniteFeature(
            f"teacher {teacher}, sample {sample} ({store.ids(sample)[0]}), view {view}, level {level.level}, channel "
            f"{channel}, cell ({y}, {x}): the value is {unstorable.value}; {unstorable.why}"
        )


class TeacherWriter:
    """Writes one teacher's features. Memory in flight: what `write_shard` or `write_encoded` is given.

    Opening one creates the teacher's part, or goes on with the one that is there after tidying what a killed
    run left.

    Args:
        store: whose source rows the features belong to.
        provenance: what makes the features, JSON values; ``provenance["name"]`` names the teacher, ``["notes"]``
            holds what decides none of their bytes, and stays as first written.
        levels: as stored, all of them.
        helps: write for another process that holds the part's lock meanwhile: it has created the part, made room
            for its views, and tidies.

    Raises:
        BadInput: no name, no levels, a level twice, or provenance that JSON cannot hold.
        UnknownName: an unknown codec.
        SpecMismatch: the store has this teacher with other provenance or levels; names the first differing
            field and both values.
    """

    def __init__(
        self, store: Store, provenance: Mapping[str, Any], levels: Sequence[LevelSpec], helps: bool = False
    ) -> None:
        self.store, self.levels, self._helps = store, list(levels), helps
        if not isinstance(provenance.get("name"), str):
            raise BadInput("provenance needs the teacher's name under 'name'")
        self.name = check_name("teacher", provenance["name"])
        check_groups(self.levels)
        numbers = [level.array for level in self.levels]
        if not numbers or len(set(numbers)) < len(numbers):
            raise BadInput(f"teacher {self.name}: levels {numbers} are not one or more different ones")
        self._part = teacher_part(self.name)
        self._manifest = store.part(self._part)
        self.pending = self._manifest.pending  # the (view, shard) of so many views that are not committed
        asked = {
            "format": FORMAT_VERSION,
            "provenance": to_plain(f"provenance of {self.name}", provenance),
            "levels": [level.to_dict() for level in self.levels],
        }
        self._arrays = teacher_arrays(self.name, self.levels)
        with self._lock():
            if not self._manifest.exists and not helps:
                self._create(asked)
            self._compare(asked)
            if not helps:
                clean_part(store, self._manifest)
        self._load_constants()

    def _lock(self) -> AbstractContextManager[None]:
        return nullcontext() if self._helps else self.store.lock(self._part)

    def _load_constants(self) -> None:
        try:
            calibration = self.calibration()
        except CorruptFile:  # `write_calibration` can repair it; no shard is written before
            calibration = None
        self._is_calibrated = calibration is not None
        self._constants: dict[str, dict[str, Array]] = {}
        if calibration is not None:
            self._constants = {level.array: level_constants(level, calibration) for level in self.levels}

    def _compare(self, asked: Mapping[str, Any]) -> None:
        info = self.store.teacher(self.name)
        stored = {
            "format": FORMAT_VERSION,
            "provenance": deciding(info.provenance),
            "levels": [level.to_dict() for level in info.levels],
        }
        if difference := first_difference(stored, {**asked, "provenance": deciding(asked["provenance"])}):
            raise SpecMismatch(f"teacher {self.name} in {self.store}", *difference)

    def _create(self, asked: Mapping[str, Any]) -> None:
        # Nothing of it is committed, so what lies there is from a creation that was killed.
        self.store.place.discard(self._part)
        self.store.place.remove_temporaries([self._manifest.folder])
        create_part(
            self.store.place,
            self._manifest,
            {f"teachers/{self.name}/zarr.json": group_json({ATTRIBUTE: asked})},
            self._arrays,
            self.store.spec.num_samples,
            self.store.spec.rows_per_shard,
        )

    # -- calibration ------------------------------------------------------------------------------

    def calibration(self) -> dict[str, Array] | None:
        """The committed calibration arrays, or None; shapes and errors as `Store.calibration`."""
        return self.store.calibration(self.name)

    def write_calibration(self, arrays: Mapping[str, Array]) -> None:
        """Write and commit calibration arrays (see `Calibrator.arrays`), before the first shard.

        Where a calibration is committed already, the arrays must be the same; where files of it are damaged, these
        must, and are written again.

        Raises:
            BadInput: an array that a codec needs is missing, or has a wrong shape or dtype.
            CacheError: a calibration is committed and differs; says what to do.
            StoreFull: no space; nothing is committed.
        """
        widths = {level.level: level.width for level in self.levels if not level.prefix}
        for level in self.levels:
            lower = level.predicts_from
            level_constants(level, arrays, None if lower is None else widths[lower])
        files = calibration_files(self.name, arrays)
        with self._lock():
            committed = self._manifest.calibration()
            if committed is not None:
                if again := remade_files(self.store.place, self.name, committed, files):
                    self.store.place.write(again, replace=True, before_commit=lambda _: fault_point("repair"))
            else:
                self.store.place.discard(calibration_folder(self.name))
                digests = self.store.place.write(files)
                fault_point("calibrate")
                self._manifest.commit_calibration(digests, calibration_format(digests))
        self._load_constants()

    def ensure_views(self, num_views: int) -> None:
        """Make room for `num_views` views, which writing a shard does for its own; nothing where there is room.

        Raises:
            StoreLocked, StoreFull, WriteFailed, CorruptFile: as `Store.lock` and `Store.ensure_views`.
        """
        if num_views > self._manifest.metadata.num_views:
            with self._lock():
                grow_part(self.store.place, self._manifest, num_views)

    # -- shards -----------------------------------------------------------------------------------

    def write_shard(self, view: int, shard: int, levels: Sequence[Array]) -> dict[str, int]:
        """Encode, write and commit one shard; returns when it is durable.

        Args:
            view, shard: a pair from `pending`; its source must be committed.
            levels: float32 (n, h, w, C) for the shard's n rows, a level each, in the order of `self.levels`;
                (n, 1, P, C) for prefix tokens.

        Returns what `write_encoded` does, and raises what that and `encode` do.
        """
        return self.write_encoded(view, shard, [self.encode(view, self.store.spec.rows(shard), levels)])

    def encode(self, view: int, rows: range, levels: Sequence[Array]) -> EncodedRows:
        """Some neighbouring rows of a shard as they will be stored; nothing is written.

        Args:
            view, rows: which rows.
            levels: float32 (n, h, w, C) for the n rows, a level each, in the order of `self.levels`.

        Raises:
            BadInput: calibration is not committed yet, or shapes or dtypes are wrong.
            NonFiniteFeature: a value is NaN, infinite or too large for the codec; names sample, view, level
                and channel.
        """
        if not self._is_calibrated:
            self._load_constants()  # another machine may have committed it since
        if not self._is_calibrated:
            raise BadInput(f"teacher {self.name}: write_calibration must come before the first shard")
        if len(levels) != len(self.levels):
            raise BadInput(f"teacher {self.name}: {len(levels)} levels given, {len(self.levels)} needed")
        encoded = EncodedRows(rows)
        decoded: dict[int, Array] = {}
        predicted_from = {spec.predicts_from for spec in self.levels}
        for spec, array, features in zip(self.levels, self._arrays, levels, strict=True):
            where = f"teacher {self.name}, view {view}, samples {rows.start}..{rows.stop - 1}, level {spec.level}"
            shape = (len(rows), *spec.grid, spec.width)
            if not isinstance(features, np.ndarray) or features.dtype != np.float32 or features.shape != shape:
                given = f"{getattr(features, 'dtype', type(features).__name__)} {getattr(features, 'shape', '')}"
                raise BadInput(f"{where}: {given} given, float32 {shape} needed")
            codec = get_codec(spec.codec)
            check_storable(self.store, self.name, view, rows, spec, features)
            constants = self._constants[spec.array]
            predicted = None if spec.predicts_from is None else decoded[spec.predicts_from] @ constants[PREDICTOR]
            coded = codec.encode(features if predicted is None else features - predicted, constants)
            if spec.level in predicted_from and not spec.prefix:
                values = codec.decode_numpy(coded.stored, constants).reshape(shape)
                decoded[spec.level] = values if predicted is None else values + predicted
            encoded.stored[array.path] = coded.stored.reshape(len(rows), *array.row_shape)
            encoded.clipped[spec.array] = coded.num_clipped
        return encoded

    def write_encoded(self, view: int, shard: int, parts: Sequence[EncodedRows]) -> dict[str, int]:
        """Write and commit one shard; returns when it is durable.

        A shard that is committed already must come out the same; its files are then written again where they are
        damaged.

        Args:
            view, shard: a pair from `pending`; its source must be committed.
            parts: from `encode`; one after the other they are the shard's rows.

        Returns:
            array of a level -> how many values were clipped (always 0 for float codecs).

        Raises:
            BadInput: `parts` are not the shard's rows.
            UncommittedRow: the shard's source is not committed.
            RemadeDiffers: the shard is committed, and differs.
            StoreFull: no space; nothing of the shard is committed.
        """
        rows = self.store.spec.rows(shard)
        if [row for part in parts for row in part.rows] != list(rows):
            raise BadInput(f"teacher {self.name}, view {view}, shard {shard}: the parts given are not its rows")
        if not self.store.part(SOURCE).is_committed(view, shard):
            raise UncommittedRow("pixels", rows.start, view, shard)
        self.ensure_views(view + 1)
        stored = {array.path: [part.stored[array.path] for part in parts] for array in self._arrays}
        files = write_arrays(self.store, self._manifest, self._arrays, view, shard, stored, "write")
        clipped = {spec.array: sum(part.clipped[spec.array] for part in parts) for spec in self.levels}
        if files is None:
            return clipped
        counted = {
            array.path: clipped[spec.array]
            for spec, array in zip(self.levels, self._arrays, strict=True)
            if get_codec(spec.codec).clips
        }
        self._manifest.commit_shard(view, shard, files, clipped=counted)
        return clipped
