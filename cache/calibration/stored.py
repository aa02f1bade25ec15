"""A teacher's calibration as files: each array is plain Zarr with one chunk, followed by its crc32c."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.codecs import CODECS
from cache.errors import BadInput, CalibrationDiffers, CorruptFile
from cache.format.checksums import CRC_BYTES, crc_suffix, matches
from cache.format.documents import MOST_TABLE_BYTES, TableDocument, checked, parse_json
from cache.format.layout import PLAIN_CODECS, array_document, group_json
from cache.format.manifest import PartManifest
from cache.format.spec import FORMAT_VERSION, GRID_FORMAT_VERSION
from cache.places.files import Buffers, FileDigest, digest_of, readable_json
from cache.places.place import Place

Array = npt.NDArray[Any]

_DIMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mean", "std", "min", "max", "error", "offset", "centre"), ("channel",)),
    "covariance": ("channel", "other_channel"),
    "fidelity": ("figure",),
    "basis": ("component", "channel"),
    **dict.fromkeys(("gain", "rounding", "first_bits", "more_bits"), ("component",)),
    "rotation": ("rotated_channel", "channel"),
    "low": ("rotated_channel",),
    "predictor": ("lower_channel", "channel"),
    "dct_y": ("frequency_y", "y"),
    "dct_x": ("frequency_x", "x"),
}
"""What dimensions are, so that those of one level agree in size; others, as of ``step``, are named by the table."""


def calibration_folder(teacher: str) -> str:
    """Path of a teacher's calibration group below the store."""
    return f"teachers/{teacher}/calibration"


def calibration_format(files: Iterable[str]) -> int:
    """The format version of a calibration with these files."""
    newer = {name for codec in CODECS.values() for name in codec.may_need}
    return GRID_FORMAT_VERSION if any(path.split("/")[-2] in newer for path in files) else FORMAT_VERSION


def calibration_files(teacher: str, arrays: Mapping[str, Array]) -> dict[str, Buffers]:
    """The files of a calibration group, path below the store -> bytes.

    Args:
        arrays: ``level_<i>/<name>`` -> float16, float32 or float64, (n,) or (n, m).

    Raises:
        BadInput: an array of another kind, or with a value that is not finite.
    """
    folder = calibration_folder(teacher)
    groups = {folder, *(f"{folder}/{name.rpartition('/')[0]}" for name in arrays if "/" in name)}
    files: dict[str, Buffers] = {f"{group}/zarr.json": [readable_json(group_json({}))] for group in sorted(groups)}
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32, np.float64) or not 1 <= array.ndim <= 2 or not array.size:
            raise BadInput(f"calibration {name}: {array.dtype} {array.shape}; floats (n,) or (n, m) are stored")
        if not np.isfinite(array).all():
            raise BadInput(f"calibration {name}: a value is NaN or infinite")
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        files[f"{folder}/{name}/zarr.json"] = [readable_json(_array_json(name, array))]
        files[f"{folder}/{name}/c." + ".".join("0" * array.ndim)] = [data, crc_suffix(data)]
    return files


def _array_json(name: str, array: Array) -> dict[str, Any]:
    level, _, table = name.rpartition("/")
    dims = _DIMS.get(table, tuple(f"{table}_{axis}" for axis in range(array.ndim)))
    names = [f"{level}_{dim}" if level else dim for dim in dims]
    return array_document(array.shape, names, array.dtype.name, 0.0, array.shape, PLAIN_CODECS)


def _as_before_names(metadata: bytes) -> bytes:
    """An array's ``zarr.json`` as stores have it that were made before dimensions of calibrations had names."""
    document = json.loads(metadata)
    document.pop("dimension_names", None)
    return readable_json(document)


def remade_files(
    place: Place, teacher: str, committed: Mapping[str, FileDigest], files: Mapping[str, Buffers]
) -> dict[str, Buffers]:
    """Those of a calibration's `files`, made anew, that are damaged where they lie; none where nothing is.

    Damaged ones must come out as they were committed, and all of them where none is damaged. Ones that are intact
    need not: another version may come to other steps from the same statistics, or measure more.

    Args:
        committed: path below the store -> what the manifest recorded.

    Raises:
        CalibrationDiffers: one does not; says what may have changed.
    """
    damaged = {name for name, digest in committed.items() if _digest(place, name, digest.num_bytes) != digest}
    files = {name: _as_it_was(name, buffers, committed) for name, buffers in files.items()}
    for name in sorted(damaged or committed):
        if name not in files or digest_of(files[name]) != committed.get(name):
            raise CalibrationDiffers(teacher, name)
    return {name: files[name] for name in sorted(damaged)}


def _as_it_was(name: str, buffers: Buffers, committed: Mapping[str, FileDigest]) -> Buffers:
    """A file made anew, without what has been added to its kind since, where the committed one lacks that."""
    if not name.endswith("/zarr.json") or digest_of(buffers) == committed.get(name):
        return buffers
    before = [_as_before_names(b"".join(bytes(buffer) for buffer in buffers))]
    return before if digest_of(before) == committed.get(name) else buffers


def _digest(place: Place, name: str, most: int) -> FileDigest | None:
    try:
        return place.digest(name, most=most)
    except OSError:
        return None


def read_calibration(
    place: Place, teacher: str, manifest: PartManifest, names: Collection[str] | None = None
) -> dict[str, Array] | None:
    """A teacher's committed calibration arrays, or None; only those of `names` (``level_<i>/<name>``) if given.

    Files of other arrays are not looked at: damage to them refuses nothing.

    Raises:
        CorruptFile: a file is not what was committed.
    """
    committed = manifest.calibration()
    if committed is None:
        return None
    folder = calibration_folder(teacher)
    contents = {}
    for name, digest in committed.items():
        if names is not None and name.rpartition("/")[0].removeprefix(f"{folder}/") not in names:
            continue
        contents[name] = place.read_committed(name, min(digest.num_bytes, MOST_TABLE_BYTES))
        if digest_of([contents[name]]) != digest:
            raise CorruptFile(place.show(name), "it is not the file that was committed")
    arrays = {}
    for name, raw in contents.items():
        path, _, file = name.rpartition("/")
        if file != "zarr.json":
            described = f"{path}/zarr.json"
            if described not in contents:
                raise CorruptFile(place.show(name), "no zarr.json that says what it is was committed")
            arrays[path.removeprefix(f"{folder}/")] = _table(contents[described], raw, place.show(name))
    return arrays


def _table(metadata: bytes, raw: bytes, path: str) -> Array:
    """The array whose ``zarr.json`` is `metadata` and whose only chunk `raw`, which lies at `path`."""
    read = checked(TableDocument, parse_json(metadata, path), path)
    dtype, data = np.dtype(read.data_type), raw[:-CRC_BYTES]
    if len(data) != dtype.itemsize * math.prod(read.shape):
        raise CorruptFile(path, f"its {len(raw)} bytes are no {read.data_type} {tuple(read.shape)} with a checksum")
    if not matches(data, raw[-CRC_BYTES:]):
        raise CorruptFile(path, "it fails its crc32c")
    table = np.frombuffer(data, dtype.newbyteorder("<")).reshape(read.shape).astype(dtype)
    if not np.isfinite(table).all():
        raise CorruptFile(path, "it holds a value that is NaN or infinite")
    return table
