"""A place far away, of whose files this machine keeps what was read: everything above reads it as any other place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from cache.errors import BadInput
from cache.places.files import FileDigest
from cache.places.listed import ReadOnlyPlace
from cache.places.local import DISK_READERS
from cache.places.open_files import OpenFile, Range, Target
from cache.places.place import MOST_READ_BYTES, Place
from cache.places.stage import BLOCK, Stage, blocks

_HELD = 0.99
"""Share of the wanted bytes from which on a stage has them all: the tables at the ends of shards are not read."""


class StagedPlace(ReadOnlyPlace):
    """Another place, whose rows are kept in a stage when they are first read, and read from there afterwards.

    Only files that a reader has told of (`will_read`) are kept, under their committed digest: rows of shards. What is
    small and read once, metadata, is read from the other place. Rows are asked for, read ahead and checked as without a
    stage, so it fills in the order in which they are needed: ``Store.open(StagedPlace(as_place("s3://bucket/x.zarr"),
    Stage.at(Path("/scratch"), 200 * 10**9)))``.

    Args:
        far: the other place.
        stage: of this machine.
    """

    def __init__(self, far: Place, stage: Stage) -> None:
        self.far, self.stage = far, stage
        self.shown, self.name = far.shown, far.name
        self._files: dict[str, FileDigest] = {}

    @property
    def num_readers(self) -> int:
        """As many as the other place takes well, until the stage holds what readers have told of."""
        wanted = sum(file.num_bytes for file in self._files.values())
        return DISK_READERS if 0 < _HELD * wanted <= self.held_bytes() else self.far.num_readers

    @property
    def pinned(self) -> str | None:
        return self.far.pinned

    def __truediv__(self, name: str) -> StagedPlace:
        return StagedPlace(self.far / name, self.stage)

    def zarr(self) -> Any:
        """See `Place`; reads from afar."""
        return self.far.zarr()

    def will_read(self, files: Iterable[tuple[str, FileDigest]]) -> None:
        self._files.update(files)
        self.stage.will_read(map(self.staged_name, self._files.values()))

    def staged_name(self, file: FileDigest) -> str:
        """What the stage calls a file: its committed digest alone would let another store claim it for other bytes."""
        return hashlib.sha256(f"{file.sha256} {self.shown}".encode()).hexdigest()

    def held_bytes(self) -> int:
        """How many bytes of the files that readers have told of the stage holds."""
        return sum(self.stage.held_bytes(self.staged_name(file), file.num_bytes) for file in self._files.values())

    def open(self, name: str, num_bytes: int) -> OpenFile:
        """See `Place`; asks the other place for nothing while the stage has what is read."""
        committed = self._files.get(name)
        if committed is None or (descriptor := self.stage.open(self.staged_name(committed), num_bytes)) is None:
            return self.far.open(name, num_bytes)
        return StagedFile(self.show(name), num_bytes, descriptor, self.stage, partial(self.far.open, name, num_bytes))

    def read(self, name: str, most: int = MOST_READ_BYTES) -> bytes:
        return self.far.read(name, most)

    def exists(self, name: str) -> bool:
        return self.far.exists(name)

    def sizes(self, folder: str = "") -> dict[str, int]:
        return self.far.sizes(folder)

    def folders(self, folder: str = "") -> list[str]:
        return self.far.folders(folder)

    def digest(self, name: str, progress: Callable[[int], None] | None = None, most: int | None = None) -> FileDigest:
        return self.far.digest(name, progress, most)

    def check_writable(self) -> NoReturn:
        raise BadInput(f"{self.shown}: a stage is for what is read; write to the place itself")


class StagedFile(OpenFile):
    """A file of another place, read from the stage where its blocks are there, and kept there where they are not.

    Args:
        shown: its address.
        num_bytes: that it has.
        descriptor: of the stage's file, closed when nobody uses this any more.
        stage: that holds it.
        open_far: opens the file itself; called when something is missing.
    """

    __slots__ = ("_descriptor", "_far", "_marks", "_num_bytes", "_open_far", "_stage", "shown")

    def __init__(
        self, shown: str, num_bytes: int, descriptor: int, stage: Stage, open_far: Callable[[], OpenFile]
    ) -> None:
        self.shown, self._num_bytes, self._descriptor, self._stage = shown, num_bytes, descriptor, stage
        self._open_far = open_far
        self._far: OpenFile | None = None
        self._marks = blocks(0, num_bytes)[1] * BLOCK
        """Where in the stage's file the bytes begin that say which blocks are there."""

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, start: int, num_bytes: int) -> bytes:
        buffer = bytearray(max(0, min(num_bytes, self._num_bytes - start)))
        self.read_into([(start, [buffer])])
        return bytes(buffer)

    def read_into(self, ranges: Sequence[Range]) -> None:
        missing = [wanted for wanted in ranges if not self._read_near(*wanted)]
        if missing:
            self._read_far(missing)

    def distrust(self, ranges: Sequence[Range]) -> bool:
        with suppress(OSError):
            for start, targets in ranges:
                self._mark(*blocks(start, start + sum(map(len, targets))), b"\0")
        self._stage.say(
            f"{self.shown}: some of what {self._stage.folder} holds of it fails its checksum: it is read from afar anew"
        )
        return True

    def _read_near(self, start: int, targets: Sequence[Target]) -> bool:
        """Fill the buffers from the stage; false where it has not all that belongs there, or its disk fails."""
        num_bytes = sum(map(len, targets))
        first, after = blocks(start, start + num_bytes)
        try:
            if os.pread(self._descriptor, after - first, self._marks + first) != b"\1" * (after - first):
                return False
            return os.preadv(self._descriptor, targets, start) == num_bytes
        except OSError as error:
            self._stage.stop(error)
            return False

    def _read_far(self, ranges: Sequence[Range]) -> None:
        """Fill the buffers from the file itself, by whole blocks, and keep those."""
        if self._far is None:
            self._far = self._open_far()
        whole = [self._to_blocks(*wanted) for wanted in ranges]
        self._far.read_into(whole)
        for start, targets in whole:
            self._keep(start, targets)

    def _to_blocks(self, start: int, targets: Sequence[Target]) -> Range:
        """The same range, grown to whole blocks."""
        end = start + sum(map(len, targets))
        first, after = blocks(start, end)
        head = bytearray(start - first * BLOCK)
        tail = bytearray(max(0, min(after * BLOCK, self._num_bytes) - end))
        return first * BLOCK, [part for part in (head, *targets, tail) if len(part)]

    def _keep(self, start: int, targets: Sequence[Target]) -> None:
        if self._stage.is_stopped:
            return
        num_bytes = sum(map(len, targets))
        try:
            if os.pwritev(self._descriptor, targets, start) == num_bytes:  # else the disk is full, as the next one says
                self._mark(*blocks(start, start + num_bytes), b"\1")
        except OSError as error:
            self._stage.stop(error)

    def _mark(self, first: int, after: int, mark: bytes) -> None:
        os.pwrite(self._descriptor, mark * (after - first), self._marks + first)
