"""Files open for reading by position: through the page cache, or past it. (In a bucket: `objects`.)"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence

from cache.errors import BadInput, CorruptFile
from cache.places.files import open_file

Target = memoryview | bytearray
Range = tuple[int, Sequence[Target]]
"""A first byte, and the buffers that the bytes from there on fill one after the other."""


def fill(targets: Sequence[Target], data: memoryview) -> None:
    """Copy `data` into the buffers, one after the other.

    Raises:
        OSError: `data` is not as long as they are.
    """
    wanted = sum(map(len, targets))
    if len(data) != wanted:
        raise OSError(f"{len(data)} of {wanted} bytes are there")
    place = 0
    for target in targets:
        target[:] = data[place : place + len(target)]
        place += len(target)


class OpenFile(ABC):
    """A file open for reading by position, from any thread.

    Attributes:
        shown: its path or address, for messages.
    """

    shown: str

    @abstractmethod
    def read(self, start: int, num_bytes: int) -> bytes:
        """The bytes from `start` on; fewer than asked for where the file ends.

        Raises:
            OSError: they cannot be read.
        """

    @abstractmethod
    def read_into(self, ranges: Sequence[Range]) -> None:
        """Fill the buffers of all ranges.

        Raises:
            OSError: a read failed, or the file ends too early.
        """

    def distrust(self, ranges: Sequence[Range]) -> bool:
        """What was read of these ranges fails its checksum: forget any copy of it.

        Returns:
            Whether there may have been one, so that it is worth reading them again.
        """
        return False


class LocalFile(OpenFile):
    """A file of this machine; closed when nobody uses it any more.

    Args:
        path: of the file.
        num_bytes: that it must have.
        flags: of the system's `open`, beside those for reading.

    Raises:
        CorruptFile: it has another size.
        OSError: it cannot be opened.
    """

    __slots__ = ("_descriptor", "shown")

    def __init__(self, path: str, num_bytes: int, flags: int = 0) -> None:
        self.shown = path
        self._descriptor = open_file(path, os.O_RDONLY | flags)
        size = os.fstat(self._descriptor).st_size
        if size != num_bytes:
            raise CorruptFile(path, f"it has {size} bytes, {num_bytes} were committed")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, start: int, num_bytes: int) -> bytes:
        return os.pread(self._descriptor, num_bytes, start)

    def read_into(self, ranges: Sequence[Range]) -> None:
        for start, targets in ranges:
            count = os.preadv(self._descriptor, targets, start)
            wanted = sum(map(len, targets))
            if count != wanted:
                raise OSError(f"{count} of {wanted} bytes are there")


class DirectFile(LocalFile):
    """Read past the page cache: whole sectors, straight to where they belong if that is aligned as they are, or else
    into a buffer of the thread's own and copied from there, which keeps other threads of Python waiting.

    Raises:
        BadInput: the file system cannot do that.
        CorruptFile, OSError: as `LocalFile`.
    """

    __slots__ = ()
    _sector = 4096
    _threads = threading.local()

    def __init__(self, path: str, num_bytes: int) -> None:
        try:
            super().__init__(path, num_bytes, os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise BadInput(f"{path}: this file system cannot read past the page cache; leave direct out") from error

    def read(self, start: int, num_bytes: int) -> bytes:
        return bytes(self._sectors(start, num_bytes, memoryview(bytearray())))

    def read_into(self, ranges: Sequence[Range]) -> None:
        for start, targets in ranges:
            first = memoryview(targets[0])
            is_aligned = start % self._sector == 0 and _address(first) % self._sector == 0
            whole = len(first) // self._sector * self._sector if is_aligned else 0
            rest = self._sectors(start, sum(map(len, targets)), first[:whole])
            fill([first[whole:], *targets[1:]], rest)

    def _sectors(self, start: int, num_bytes: int, head: memoryview) -> memoryview:
        """The bytes from `start` on, fewer where the file ends; valid until this thread's next call.

        As many of them as `head` is long go there and are left out: whole sectors, where `start` is a sector's.
        """
        first = start // self._sector * self._sector
        size = -(-(start + num_bytes - first) // self._sector) * self._sector - len(head)
        buffer: mmap.mmap | None = getattr(self._threads, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._threads.buffer = mmap.mmap(-1, size)  # whose pages are aligned
        view = memoryview(buffer)
        count = os.preadv(self._descriptor, [head, view[:size]], first) - len(head)
        return view[start - first : max(0, min(count, start - first + num_bytes - len(head)))]


def _address(target: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(target))
