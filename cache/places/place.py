"""Where a store's files lie: a folder of this machine (`local`), a prefix in a bucket (`objects`),
behind a web server (`web`), or in a repository of the Hugging Face hub (`hub`); and one of these of which this machine
keeps what it read (`staged`).

Everything else in this package names a file by its path below the store, with ``/`` between the parts, and asks
the store's place for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from cache.errors import CorruptFile
from cache.places.files import BeforeCommit, Buffers, FileDigest
from cache.places.locks import OnWait
from cache.places.open_files import OpenFile

Change = Callable[[bytes], bytes | None]
"""What becomes of a file's bytes; None: they stay."""


MOST_READ_BYTES = 1 << 30
"""Of a file at once, where its reader does not know better: what a stranger's store may make a reader hold."""


def check_size(num_bytes: int, most: int) -> None:
    """Check that a file of `num_bytes` has no more than its reader takes.

    Raises:
        OSError: it has more than `most`.
    """
    if num_bytes > most:
        raise OSError(f"it has {num_bytes} bytes, of which at most {most} are read at once")


class Place(ABC):
    """A tree of files, named by their paths below it.

    Attributes:
        shown: its path or address, for messages and for `cache.places.addresses.as_place`.
        name: the last part of that.
    """

    shown: str
    name: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown!r})"

    def show(self, name: str) -> str:
        """The path or address of a file, for messages."""
        return f"{self.shown}/{name}"

    @property
    @abstractmethod
    def num_readers(self) -> int:
        """Threads that read it well at once, unless asked otherwise."""

    @property
    def pinned(self) -> str | None:
        """Its address with the commit that it is read at, where there are commits: the same bytes for ever."""
        return None

    @abstractmethod
    def __truediv__(self, name: str) -> Place:
        """The place below this one."""

    @abstractmethod
    def zarr(self) -> Any:
        """This place as zarr-python's own store, for reading: ``zarr.open_group(place.zarr())``."""

    # -- reading ----------------------------------------------------------------------------------

    @abstractmethod
    def read(self, name: str, most: int = MOST_READ_BYTES) -> bytes:
        """A whole file.

        Raises:
            OSError: it cannot be read (FileNotFoundError where there is none), or has more bytes than `most`, of which
                none is read then.
        """

    def read_committed(self, name: str, most: int) -> bytes:
        """As `read`, of a file that must be there.

        Raises:
            CorruptFile: it cannot be read.
        """
        try:
            return self.read(name, most)
        except OSError as error:
            raise CorruptFile(self.show(name), f"it cannot be read: {error}") from error

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    @abstractmethod
    def sizes(self, folder: str = "") -> dict[str, int]:
        """Every file below `folder`, name -> bytes, in order; none where there is no such folder."""

    @abstractmethod
    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly in `folder`, in order."""

    @abstractmethod
    def open(self, name: str, num_bytes: int) -> OpenFile:
        """Open a file of `num_bytes`.

        Raises:
            CorruptFile: it has another size (in object storage, where asking costs a request, reading tells).
            OSError: it cannot be opened.
        """

    @abstractmethod
    def digest(self, name: str, progress: Callable[[int], None] | None = None, most: int | None = None) -> FileDigest:
        """Size and SHA-256 of a file; `progress` is told the bytes of each piece.

        Of a file of more than `most` bytes nothing is read, and the SHA-256 is "".

        Raises:
            OSError: it cannot be read.
        """

    def will_read(self, files: Iterable[tuple[str, FileDigest]]) -> None:  # noqa: B027  (most places need not know)
        """Be told of the files that a reader is about to read, by name, with what is committed of each."""

    # -- writing ----------------------------------------------------------------------------------

    def check_writable(self) -> None:  # noqa: B027  (most places can be written to)
        """Check that something may be written here.

        Raises:
            BadInput: nothing ever can be.
        """

    @abstractmethod
    def write(
        self, files: Mapping[str, Buffers], *, replace: bool = False, before_commit: BeforeCommit | None = None
    ) -> dict[str, FileDigest]:
        """Write files, each whole or not at all; all are durable when this returns.

        Args:
            files: name -> its bytes, in pieces.
            replace: they may differ from what is there. Where several machines write without a lock (object
                storage), files that may not are created if absent, and otherwise compared.
            before_commit: called with all digests when no file has its name yet; what it raises stops all.

        Returns:
            name -> size and SHA-256.

        Raises:
            StoreFull, WriteFailed: the bytes were refused.
        """

    def update(self, changes: Mapping[str, Change]) -> None:
        """Replace files by what is made of their present bytes; all are durable when this returns.

        Args:
            changes: name -> present bytes to new ones, or to None where they stay. Where writers hold no lock (object
                storage) it is asked again as often as another machine replaced the file since it was read, so that
                nothing that machine wrote is lost.

        Raises:
            StoreFull, WriteFailed: the bytes were refused.
            OSError: a file cannot be read.
        """
        new = {name: change(self.read(name)) for name, change in changes.items()}
        self.write({name: [data] for name, data in new.items() if data is not None}, replace=True)

    def remove(self, folder: str) -> None:
        """Delete a folder with everything below it; it is no error where there is none."""
        self.delete(list(self.sizes(folder)))

    @abstractmethod
    def delete(self, names: Sequence[str]) -> None:
        """Delete files, for good when this returns; it is no error where there is none of a name."""

    @abstractmethod
    def append(self, name: str, line: bytes) -> None:
        """Add a line to a file that is outside of every digest.

        Raises:
            OSError: it cannot be written.
        """

    def lock(self, name: str, what: str, wait: bool, on_wait: OnWait | None = None) -> AbstractContextManager[None]:
        """Be the only writer of `what` while the block runs, see `cache.places.locks.file_lock`.

        Object storage needs no lock: equal inputs give equal bytes, and `write` compares; the hub tells whoever commits
        second.
        """
        return nullcontext()

    def discard(self, folder: str) -> None:  # noqa: B027  (elsewhere than in folders, what has no name yet is nobody's)
        """Delete what a killed writer left below `folder`, of which nothing is committed; called under the lock.

        In object storage other writers may be at work there, and what they write is the same.
        """

    def remove_temporaries(self, folders: Sequence[str]) -> None:  # noqa: B027  (folders alone have some)
        """Delete the half-written files that killed writers left directly in `folders`."""

    def finish(self) -> None:  # noqa: B027  (most places have nothing left to do)
        """Make durable what was written, where `write` could not yet, since that takes a commit.

        Raises:
            WriteFailed: it was refused.
        """
