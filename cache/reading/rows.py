"""Reading rows by position, neighbours by one request, each checked by its crc32c; safe from several threads."""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.codecs.coders import get_coder
from cache.errors import CorruptFile, TooManyOpenFiles, UncommittedRow
from cache.format.checksums import CRC_BYTES, matches
from cache.format.layout import ALIGNMENT, ArraySpec, index_bytes, parse_index
from cache.format.manifest import PartManifest
from cache.places.files import FileDigest
from cache.places.open_files import OpenFile
from cache.places.place import Place

Array = npt.NDArray[Any]

_MOST_BYTES = 8 << 20
"""Of a request, so that several are under way at once and checksums find bytes in the processor's cache."""
_MOST_ROWS = 256
"""Of a request: three buffers each, and a `preadv` takes 1024."""


class _OpenShard:
    """An open file with its index; None where the index is the one that the layout gives. Its rows lie before `end`."""

    __slots__ = ("end", "file", "index")

    def __init__(self, file: OpenFile, index: Array | None, end: int) -> None:
        self.file, self.index, self.end = file, index, end


class OpenShards:
    """The most recently used shard files of a store, kept open: at most `limit` of them.

    The default limit is a quarter of what the process may open, at most 1024.
    """

    def __init__(self, limit: int | None = None) -> None:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.limit = limit or max(8, min(1024, allowed // 4))
        self._files: OrderedDict[tuple[str, int, int], _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenShards, (self.limit,)

    def get(self, key: tuple[str, int, int]) -> _OpenShard | None:
        """The open file of (array, view, shard), if it is here."""
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                self._files.move_to_end(key)
            return file

    def put(self, key: tuple[str, int, int], file: _OpenShard) -> None:
        """Keep a file open, letting go of the one used longest ago."""
        with self._lock:
            self._files[key] = file
            if len(self._files) > self.limit:
                self._files.popitem(last=False)

    def clear(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._files.clear()


class RowReader:
    """Stored rows of one array.

    A shard's index is read and checked when the shard is first met. Where it says what the layout says
    (always, for codecs whose rows have one size) only that fact is kept, a byte a shard.
    """

    def __init__(self, place: Place, manifest: PartManifest, array: ArraySpec, files: OpenShards) -> None:
        self.place, self.manifest, self.array = place, manifest, array
        self._files = files
        metadata = manifest.metadata
        self.num_samples, self.rows_per_shard = metadata.num_samples, metadata.rows_per_shard
        self._row_bytes, self._stride = array.row_bytes, array.stride
        self._coder = None if array.coder is None else get_coder(array.coder)
        self._most_rows = max(1, min(_MOST_ROWS, _MOST_BYTES // array.stride))
        self._is_regular: dict[int, bytearray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RowReader, (self.place, self.manifest, self.array, self._files)

    @property
    def num_views(self) -> int:
        """Views that are there or being written (1 for arrays without views)."""
        return self.manifest.metadata.num_views if self.array.has_views else 1

    def files(self, num_views: int) -> Iterator[tuple[str, FileDigest]]:
        """Every file of the first views by its name, with what is committed of it."""
        for view in range(min(num_views, self.num_views)):
            entries = self.manifest.view(view)
            for shard in range(self.manifest.metadata.num_shards):
                yield self.array.file(view, shard), entries.file(shard, self.array.path)

    def check_bounds(self, sample: int, view: int) -> None:
        """Check that 0 <= sample < N and 0 <= view < V.

        Raises:
            IndexError: they are not.
        """
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"{self.array.path}: sample {sample} is not in 0..{self.num_samples - 1}")
        if not 0 <= view < self.num_views:
            have = f"0..{self.num_views - 1}" if self.num_views else "a store that has no views yet"
            raise IndexError(f"{self.array.path}: view {view} is not in {have}")

    def read_rows(self, samples: Sequence[int], views: Sequence[int], targets: Sequence[memoryview]) -> None:
        """Read rows of a sharded array, each into its target of `array.row_bytes` writable bytes.

        They are read in the order in which they lie, neighbours by one request, and decoded where they are coded.

        Raises:
            UncommittedRow: nothing is committed there.
            CorruptFile: the bytes are not what was written.
        """
        places = [(view, *divmod(sample, self.rows_per_shard)) for sample, view in zip(samples, views, strict=True)]
        order = sorted(range(len(places)), key=places.__getitem__)
        first = 0
        while first < len(order):
            view, shard, _ = places[order[first]]
            last = first + 1
            while last < len(order) and last - first < self._most_rows and places[order[last]][:2] == (view, shard):
                last += 1
            some = order[first:last]
            self._read_shard(view, shard, [places[number][2] for number in some], [targets[n] for n in some])
            first = last

    def _read_shard(self, view: int, shard: int, rows: Sequence[int], targets: Sequence[memoryview]) -> None:
        """Rows of one shard, ascending."""
        opened = self._open(shard * self.rows_per_shard + rows[0], view, shard)
        ranges: list[tuple[int, list[memoryview | bytearray]]] = []
        crcs = []
        buffers: list[memoryview] = []
        end = -1
        for row, target in zip(rows, targets, strict=True):
            if opened.index is None:
                offset, num_bytes = row * self._stride, self._row_bytes + CRC_BYTES
            else:
                offset, num_bytes = (int(value) for value in opened.index[row])
            if not self._is_row_size(num_bytes) or offset > opened.end - num_bytes:
                sample = shard * self.rows_per_shard + row
                what = f"its index gives sample {sample}, view {view} {num_bytes} bytes from {offset} on"
                raise CorruptFile(opened.file.shown, what)
            crc = bytearray(CRC_BYTES)
            buffers.append(target if self._coder is None else memoryview(bytearray(num_bytes - CRC_BYTES)))
            if ranges and 0 <= offset - end < ALIGNMENT:  # so near that what lies between costs less than a request
                gap = (bytearray(offset - end),) if offset > end else ()
                ranges[-1][1].extend((*gap, buffers[-1], crc))
            else:
                ranges.append((offset, [buffers[-1], crc]))
            crcs.append(crc)
            end = offset + num_bytes
        for is_first in (True, False):
            try:
                opened.file.read_into(ranges)
            except OSError as error:
                where = self._named(view, shard, rows)
                raise CorruptFile(opened.file.shown, f"{where} cannot be read: {error}") from error
            wrong = [row for row, buffer, crc in zip(rows, buffers, crcs, strict=True) if not matches(buffer, crc)]
            if not wrong:
                break
            if not (is_first and opened.file.distrust(ranges)):
                raise CorruptFile(opened.file.shown, f"{self._named(view, shard, wrong[:1])} fails its crc32c")
        if self._coder is None:
            return
        for row, target, buffer in zip(rows, targets, buffers, strict=True):
            try:
                self._coder.decode_into(buffer, np.frombuffer(target, self.array.dtype))
            except ValueError as error:
                where = self._named(view, shard, [row])
                raise CorruptFile(opened.file.shown, f"{where} cannot be decoded: {error}") from error

    def _is_row_size(self, num_bytes: int) -> bool:
        """Whether an index may give a row so many bytes."""
        if self._coder is None:
            return num_bytes == self._row_bytes + CRC_BYTES
        return CRC_BYTES < num_bytes <= self.array.most_coded_bytes

    def _named(self, view: int, shard: int, rows: Sequence[int]) -> str:
        first = shard * self.rows_per_shard
        more = f"..{first + rows[-1]}" if len(rows) > 1 else ""
        return f"sample {first + rows[0]}{more}, view {view}"

    def read(self, sample: int, view: int) -> Array:
        """One row (*row_shape) of the array's dtype, in new memory; errors as `read_rows`, and IndexError."""
        self.check_bounds(sample, view)
        if not self.array.sharded:
            shard, row = divmod(sample, self.rows_per_shard)
            return np.array(self.read_chunk(view, shard, sample)[row])
        out = np.empty(self.array.row_shape, self.array.dtype)
        self.read_rows([sample], [view], [out.reshape(-1).view(np.uint8).data])
        return out

    def read_chunk(self, view: int, shard: int, sample: int | None = None) -> Array:
        """All rows (n, *row_shape) of one shard, of either layout; `sample` is the one that errors name.

        Raises:
            CorruptFile: its file cannot be read, has another size, or fails its checksum.
        """
        samples = self.manifest.metadata.rows(shard)
        if self.array.sharded:
            return np.stack([self.read(one, view) for one in samples])
        self._check_committed(samples.start if sample is None else sample, view, shard)
        name = self.array.file(view, shard)
        path = self.place.show(name)
        raw = self.place.read_committed(name, self.array.file_bytes(len(samples), self.rows_per_shard))
        data, crc = raw[:-CRC_BYTES], raw[-CRC_BYTES:]
        if len(data) != self._row_bytes * self.rows_per_shard:
            raise CorruptFile(path, f"it has {len(raw)} bytes")
        if not matches(data, crc):
            raise CorruptFile(path, "it fails its crc32c")
        rows = np.frombuffer(data, np.dtype(self.array.dtype).newbyteorder("<"))
        return rows.reshape(self.rows_per_shard, *self.array.row_shape)[: len(samples)].astype(self.array.dtype)

    def _check_committed(self, sample: int, view: int, shard: int) -> None:
        if not self.manifest.is_committed(view, shard):
            raise UncommittedRow(self.array.path, sample, view, shard)

    def _open(self, sample: int, view: int, shard: int) -> _OpenShard:
        key = (self.array.path, view, shard)
        file = self._files.get(key)
        if file is not None:
            return file
        self._check_committed(sample, view, shard)
        name = self.array.file(view, shard)
        committed = self.manifest.view(view).file(shard, self.array.path).num_bytes
        opened = _OpenShard(self._open_file(name, committed), None, committed - index_bytes(self.rows_per_shard))
        if not self._regular(view)[shard]:
            index = self._read_index(opened.file, committed)
            if self._is_as_laid_out(index, shard):
                self._regular(view)[shard] = 1
            else:
                opened.index = index
        self._files.put(key, opened)
        return opened

    def _read_index(self, file: OpenFile, committed: int) -> Array:
        """The index of a file of so many bytes."""
        size = index_bytes(self.rows_per_shard)
        for is_first in (True, False):
            try:
                raw = file.read(committed - size, size)
            except OSError as error:
                raise CorruptFile(file.shown, f"its index cannot be read: {error}") from error
            try:
                return parse_index(raw, file.shown)
            except CorruptFile:
                if not (is_first and file.distrust([(committed - size, [bytearray(size)])])):
                    raise
        raise AssertionError("unreachable")

    def _open_file(self, name: str, num_bytes: int) -> OpenFile:
        try:
            try:
                return self.place.open(name, num_bytes)
            except TooManyOpenFiles:
                self._files.clear()  # others in this process took the descriptors: make do with fewer
                return self.place.open(name, num_bytes)
        except OSError as error:
            raise CorruptFile(self.place.show(name), f"it cannot be opened: {error}") from error

    def _regular(self, view: int) -> bytearray:
        flags = self._is_regular.get(view)
        if flags is None:
            flags = self._is_regular.setdefault(view, bytearray(self.manifest.metadata.num_shards))
        return flags

    def _is_as_laid_out(self, index: Array, shard: int) -> bool:
        if self._coder is not None:
            return False
        count = len(self.manifest.metadata.rows(shard))
        starts = np.arange(count, dtype=np.uint64) * np.uint64(self._stride)
        return bool((index[:count, 0] == starts).all() and (index[:count, 1] == self._row_bytes + CRC_BYTES).all())
