"""Which arrays a store has, what their ``zarr.json`` says, and where a row's bytes lie in their files.

Two layouts, both plain Zarr v3 (docs/cache-format.md):

- *shards*: the ``sharding_indexed`` codec, one inner chunk a row, each followed by its crc32c; the index
  at the end. For all that training reads.
- *chunks*: one ordinary chunk a shard, followed by its crc32c; the rows past the end hold the fill value.
  For small facts (ids, boxes), of which a plain reader wants many at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.codecs import get_codec
from cache.codecs.coders import CODERS, get_coder
from cache.errors import CorruptFile
from cache.format.checksums import CRC_BYTES, crc_suffix, matches
from cache.format.documents import ArrayDocument
from cache.format.spec import IGNORE, LevelSpec, SourceSpec
from cache.places.files import Buffers

Array = npt.NDArray[Any]

ALIGNMENT = 4096
ALIGNED_ROW_BYTES = 64_000
"""Rows of this size and more start at multiples of `ALIGNMENT`, for unbuffered reads."""

DTYPES = ("uint8", "int8", "uint16", "int32", "float16", "float32")
"""Of stored numbers."""

PLAIN_CODECS: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
"""Of a chunk that is its little-endian numbers and their checksum."""
_MISSING = (1 << 64) - 1


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store.

    Attributes:
        path: below the store, e.g. ``pixels`` or ``teachers/dinov2/level_0``.
        dtype: numpy's name of the stored numbers' type.
        row_shape: shape of one row.
        dims: names of the row's dimensions. Arrays of a group that share one agree in its size, as xarray asks.
        has_views: (view, sample, ...) if true, else (sample, ...), committed with view 0.
        sharded: layout *shards* if true, else *chunks*.
        fill_value: what plain readers see where nothing is committed: a number or ``"NaN"``.
        coder: name of the entropy coder of each row, or None; only with *shards*.
    """

    path: str
    dtype: str
    row_shape: tuple[int, ...]
    dims: tuple[str, ...]
    has_views: bool = True
    sharded: bool = True
    fill_value: float | int | str = 0
    coder: str | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, its checksum not counted; of a coded one, before coding."""
        return np.dtype(self.dtype).itemsize * math.prod(self.row_shape)

    @property
    def stride(self) -> int:
        """Bytes from the start of a row to the next one's, in layout *shards*; coded rows follow without gaps."""
        packed = self.row_bytes + CRC_BYTES
        return packed if self.row_bytes < ALIGNED_ROW_BYTES else -(-packed // ALIGNMENT) * ALIGNMENT

    def file(self, view: int, shard: int) -> str:
        """Path, below the store, of the file that holds shard `shard` of view `view`."""
        grid = ([view] if self.has_views else []) + [shard] + [0] * len(self.row_shape)
        return f"{self.path}/c." + ".".join(map(str, grid))

    def file_bytes(self, num_rows: int, rows_per_shard: int) -> int:
        """Bytes of a file that holds `num_rows` rows; of coded ones, the most that they can take."""
        if not self.sharded:
            return self.row_bytes * rows_per_shard + CRC_BYTES
        return num_rows * self.stride + index_bytes(rows_per_shard)

    def is_file_size(self, num_bytes: int, num_rows: int, rows_per_shard: int) -> bool:
        """Whether a file of `num_rows` rows may have so many bytes: an exact number, but of coded ones."""
        if self.coder is None:
            return num_bytes == self.file_bytes(num_rows, rows_per_shard)
        rows = num_bytes - index_bytes(rows_per_shard)
        return 0 < rows <= num_rows * self.most_coded_bytes

    @property
    def most_coded_bytes(self) -> int:
        """Bytes that a coded row takes at most, its checksum counted."""
        return 2 * self.row_bytes + ALIGNMENT

    def zarr_json(self, num_views: int, num_samples: int, rows_per_shard: int) -> dict[str, Any]:
        """The array's metadata document."""
        lead, lead_chunk = ([num_views], [1]) if self.has_views else ([], [])
        row = list(self.row_shape)
        coded = PLAIN_CODECS[:1]
        if self.coder is not None:
            coded = get_coder(self.coder).zarr_codecs(row, np.dtype(self.dtype).itemsize)
        sharding = {
            "chunk_shape": [*lead_chunk, 1, *row],
            "codecs": [*coded, *PLAIN_CODECS[1:]],
            "index_codecs": PLAIN_CODECS,
            "index_location": "end",
        }
        return array_document(
            [*lead, num_samples, *row],
            [*(["view"] if self.has_views else []), "sample", *self.dims],
            self.dtype,
            self.fill_value,
            [*lead_chunk, rows_per_shard, *row],
            [{"name": "sharding_indexed", "configuration": sharding}] if self.sharded else PLAIN_CODECS,
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, without the path."""
        return {
            "dtype": self.dtype,
            "row_shape": list(self.row_shape),
            "dims": list(self.dims),
            "has_views": self.has_views,
            "sharded": self.sharded,
            "fill_value": self.fill_value,
            **({"coder": self.coder} if self.coder else {}),
        }

    @classmethod
    def of_document(cls, path: str, read: ArrayDocument, file: object) -> ArraySpec:
        """The inverse of `to_dict`, of what was read in the manifest file `file`.

        Raises:
            CorruptFile: there are no such arrays.
        """
        if read.dtype not in DTYPES or len(read.dims) != len(read.row_shape):
            raise CorruptFile(file, f"{path}: {read.dtype!r} with {len(read.dims)} dimensions is no array of a store")
        if read.coder is not None and (read.coder not in CODERS or not read.sharded):
            raise CorruptFile(file, f"{path}: its rows cannot be decoded by {read.coder!r}")
        fields = read.model_dump() | {"row_shape": tuple(read.row_shape), "dims": tuple(read.dims)}
        return cls(path=path, **fields)

    @property
    def decides(self) -> dict[str, Any]:
        """What decides its bytes, JSON-able; names and fill value, of which older stores have others, do not."""
        return {key: value for key, value in self.to_dict().items() if key not in ("dims", "fill_value")}


def source_arrays(spec: SourceSpec) -> list[ArraySpec]:
    """The arrays of a store's source part."""
    height, width = spec.size
    facts: list[tuple[str, str, tuple[int, ...], tuple[str, ...]]] = [
        ("samples/ids", "uint8", (spec.id_width,), ("id_byte",)),
        ("samples/size", "int32", (2,), ("height_width",)),
        ("samples/digest", "uint8", (32,), ("digest_byte",)),
        ("samples/valid", "uint8", (), ()),
    ]
    arrays = [ArraySpec(*fact, has_views=False, sharded=False) for fact in facts]
    arrays += [
        ArraySpec("views/box", "float32", (4,), ("top_left_height_width",), sharded=False, fill_value=0.0),
        ArraySpec("views/flip", "uint8", (), (), sharded=False),
        ArraySpec("views/colour", "float32", (5,), ("parameter",), sharded=False, fill_value=0.0),
        ArraySpec("pixels", "uint8", (height, width, 3), ("y", "x", "channel")),
    ]
    for task, label in spec.labels.items():
        shape = (height, width, label.channels) if label.channels else (height, width)
        dims = ("y", "x", f"{task}_channel")[: len(shape)]
        fill = IGNORE if label.dtype == "uint8" else float(IGNORE)
        arrays.append(ArraySpec(f"labels/{task}", label.dtype, shape, dims, fill_value=fill))
    return arrays


def teacher_arrays(name: str, levels: Sequence[LevelSpec]) -> list[ArraySpec]:
    """The level arrays of a teacher's part, in the order of `levels`."""
    arrays = []
    for level in levels:
        codec = get_codec(level.codec)
        shape, dims = codec.row_shape(level.grid, level.width), codec.dims
        if level.prefix and dims[:2] == ("y", "x"):
            shape, dims = shape[1:], ("token", *dims[2:])
        arrays.append(
            ArraySpec(
                f"teachers/{name}/{level.array}",
                codec.stored_dtype,
                shape,
                tuple(f"{level.array}_{dim}" for dim in dims),
                fill_value=codec.fill_value,
                coder=codec.coder,
            )
        )
    return arrays


def array_document(
    shape: Sequence[int],
    dims: Sequence[str],
    dtype: str,
    fill_value: float | int | str,
    chunk: Sequence[int],
    codecs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """An array's metadata document, ``zarr.json``; files are named ``c.`` and the chunk's place."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "dimension_names": list(dims),
        "data_type": dtype,
        "fill_value": fill_value,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": list(codecs),
        "attributes": {},
    }


def group_json(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A group's metadata document."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def closed_json() -> dict[str, Any]:
    """The metadata document of a folder that plain readers do not look into: an array without dimensions.

    Of what lies in a group and is no part of the hierarchy zarr-python warns at every listing; in arrays it lists none.
    """
    return array_document((), (), "uint8", 0, (), [{"name": "bytes"}])


def shard_buffers(array: ArraySpec, parts: Sequence[Array], rows_per_shard: int) -> Buffers:
    """The bytes of one shard's file, as buffers to be written one after the other; rows of shards are not copied.

    Args:
        parts: (n, *row_shape) each, of the array's dtype, C-contiguous; one after the other they are the shard's rows.
    """
    littles = [np.ascontiguousarray(part, np.dtype(array.dtype).newbyteorder("<")) for part in parts]
    count = sum(map(len, littles))
    if not array.sharded:
        rest = np.full((rows_per_shard - count, *array.row_shape), array.fill_value, littles[0].dtype)
        data = np.concatenate([*littles, rest]).reshape(-1).view(np.uint8).data
        return [data, crc_suffix(data)]
    index = np.full((rows_per_shard, 2), _MISSING, "<u8")
    buffers: list[bytes | memoryview] = []
    if array.coder is None:
        row_bytes, stride = array.row_bytes, array.stride
        padding = bytes(stride - row_bytes - CRC_BYTES)
        for little in littles:
            flat = little.reshape(-1).view(np.uint8).data
            for row in range(len(little)):
                data = flat[row * row_bytes : (row + 1) * row_bytes]
                buffers += [data, crc_suffix(data) + padding]
        index[:count, 0] = np.arange(count) * stride
        index[:count, 1] = row_bytes + CRC_BYTES
    else:
        coder = get_coder(array.coder)
        coded = [coder.encode(row) for little in littles for row in little]
        for piece in coded:
            buffers += [piece, crc_suffix(piece)]
        sizes = np.array([len(piece) + CRC_BYTES for piece in coded], np.uint64)
        index[:count, 0] = np.cumsum(sizes) - sizes
        index[:count, 1] = sizes
    raw_index = index.tobytes()
    return [*buffers, raw_index + crc_suffix(raw_index)]


def index_bytes(rows_per_shard: int) -> int:
    """Bytes of a shard's index with its checksum; they are the last of its file."""
    return 16 * rows_per_shard + CRC_BYTES


def parse_index(raw: bytes, path: object) -> Array:
    """A shard's index, uint64 (rows_per_shard, 2): offset and bytes (checksum included), 2**64-1 for no row.

    Anyone may have written it: whether a row lies in the file at all is still to be asked.

    Raises:
        CorruptFile: its checksum is wrong.
    """
    if len(raw) < CRC_BYTES or not matches(raw[:-CRC_BYTES], raw[-CRC_BYTES:]):
        raise CorruptFile(path, "the shard's index fails its crc32c")
    return np.frombuffer(raw[:-CRC_BYTES], "<u8").reshape(-1, 2)
