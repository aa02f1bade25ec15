"""A store's arrays, indexed like numpy's: ``array[sample, view]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.codecs import Codec
from cache.format.groups import PREDICTOR
from cache.format.spec import LevelSpec
from cache.reading.rows import RowReader
from sak_common.names import find

Array = npt.NDArray[Any]
Samples = int | slice | Sequence[int] | Array


def sample_numbers(samples: Samples, num_samples: int) -> tuple[list[int], bool]:
    """The samples an index asks for, and whether it was a single number (negative ones count from the end).

    Raises:
        TypeError: it is neither a number, a slice nor a sequence of numbers.
    """
    if isinstance(samples, slice):
        return list(range(*samples.indices(num_samples))), False
    if isinstance(samples, int | np.integer):
        number = int(samples)
        return [number + num_samples if number < 0 else number], True
    numbers = np.asarray(samples)
    if numbers.ndim != 1 or not (np.issubdtype(numbers.dtype, np.integer) or numbers.size == 0):
        raise TypeError(f"index samples by a number, a slice or a list of numbers, not {samples!r}")
    return [int(n) + num_samples if n < 0 else int(n) for n in numbers], False


class StoredArray:
    """Stored numbers of an array, read when indexed.

    ``array[sample, view]`` is one row (*row_shape); ``array[samples, view]`` with a slice or a list of
    samples is (n, *row_shape). Arrays without views (``store.samples``) are indexed by samples alone. The
    memory is new each time. Rows marked invalid hold the fill value.

    Raises, when indexed:
        IndexError: there is no such sample or view.
        UncommittedRow: the row is not written yet.
        CorruptFile: its bytes are not what was written.
    """

    def __init__(self, rows: RowReader) -> None:
        self.rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, V, *row_shape), or (N, *row_shape) for arrays without views: in the order of the index."""
        views = (self.rows.num_views,) if self.rows.array.has_views else ()
        return (self.rows.num_samples, *views, *self.row_shape)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        return self.rows.array.row_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers that indexing gives."""
        return np.dtype(self.rows.array.dtype)

    def __len__(self) -> int:
        return self.rows.num_samples

    def __getitem__(self, index: Any) -> Array:
        if self.rows.array.has_views:
            if not (isinstance(index, tuple) and len(index) == 2):
                raise TypeError(f"{self.rows.array.path} is indexed by [sample, view], not by {index!r}")
            samples, view = index
        else:
            samples, view = index, 0
        numbers, is_single = sample_numbers(samples, self.rows.num_samples)
        if self.rows.array.sharded:
            rows = [self.rows.read(number, int(view)) for number in numbers]
        else:
            rows = self._from_chunks(numbers, int(view))
        if is_single:
            return rows[0]
        return np.stack(rows) if rows else np.empty((0, *self.rows.array.row_shape), self.rows.array.dtype)

    def _from_chunks(self, numbers: Sequence[int], view: int) -> list[Array]:
        chunks: dict[int, Array] = {}
        rows = []
        for number in numbers:
            self.rows.check_bounds(number, view)
            shard, row = divmod(number, self.rows.rows_per_shard)
            if shard not in chunks:
                chunks = {shard: self.rows.read_chunk(view, shard, number)}
            rows.append(chunks[shard][row].copy())
        return rows


class FeatureArray(StoredArray):
    """Features of one level of a teacher, decoded: ``array[sample, view]`` is float32 (h, w, C).

    Otherwise as `StoredArray`; ``array.stored[sample, view]`` gives the numbers on disk. A level that is coded
    together with a lower one reads that one's rows too.
    """

    def __init__(
        self,
        rows: RowReader,
        level: LevelSpec,
        codec: Codec,
        constants: Mapping[str, Array],
        lower: FeatureArray | None = None,
    ) -> None:
        super().__init__(rows)
        self.level, self.codec, self.constants, self.lower = level, codec, constants, lower

    @property
    def stored(self) -> StoredArray:
        """The same rows, not decoded."""
        return StoredArray(self.rows)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(h, w, C), or (P, C) of prefix tokens."""
        return (*(self.level.grid[1:] if self.level.prefix else self.level.grid), self.level.width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(np.float32)

    def __getitem__(self, index: Any) -> Array:
        stored = super().__getitem__(index)
        num_row_dims = len(self.rows.array.row_shape)
        lead = stored.shape[: stored.ndim - num_row_dims]
        values = self.codec.decode_numpy(stored, self.constants).reshape(*lead, *self.row_shape)
        if self.lower is not None:
            values += self.lower[index] @ self.constants[PREDICTOR]
        return values


class ArrayTable(Mapping[str, StoredArray]):
    """Arrays by name; an unknown name raises `UnknownName` with the nearest ones."""

    def __init__(self, what: str, arrays: Mapping[str, StoredArray]) -> None:
        self._what, self._arrays = what, arrays

    def __getitem__(self, name: str) -> StoredArray:
        return find(self._what, name, self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
