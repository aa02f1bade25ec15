"""Places of which a list says every file, and places that are never written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NoReturn

from cache.places.files import BeforeCommit, Buffers, FileDigest
from cache.places.locks import OnWait
from cache.places.place import Change, Place


class ListedPlace(Place):
    """A folder of which a list says every file.

    Attributes:
        prefix: of every name in the list, empty or ending in a slash.
    """

    prefix: str

    @abstractmethod
    def listing(self) -> Mapping[str, int]:
        """Every file, path -> bytes, in order. Raises StoreNotFound where nothing can be listed."""

    def exists(self, name: str) -> bool:
        """See `Place`; asks the list alone."""
        return self.prefix + name in self.listing()

    def sizes(self, folder: str = "") -> dict[str, int]:
        prefix = self.prefix + (f"{folder.strip('/')}/" if folder else "")
        skip = len(self.prefix)
        return {name[skip:]: size for name, size in self.listing().items() if name.startswith(prefix)}

    def folders(self, folder: str = "") -> list[str]:
        skip = len(folder.strip("/")) + 1 if folder else 0
        below = (name[skip:].partition("/") for name in self.sizes(folder))
        return sorted({first for first, slash, _ in below if slash})


class ReadOnlyPlace(Place):
    """A place that refuses to be written."""

    @abstractmethod
    def check_writable(self) -> NoReturn:
        """Raise BadInput, which says where to write instead."""

    def write(
        self, files: Mapping[str, Buffers], *, replace: bool = False, before_commit: BeforeCommit | None = None
    ) -> dict[str, FileDigest]:
        """Refused, as all that writes."""
        self.check_writable()

    def update(self, changes: Mapping[str, Change]) -> None:
        """Refused."""
        self.check_writable()

    def remove(self, folder: str) -> None:
        """Refused."""
        self.check_writable()

    def delete(self, names: Sequence[str]) -> None:
        """Refused."""
        self.check_writable()

    def append(self, name: str, line: bytes) -> None:
        """Refused."""
        self.check_writable()

    def lock(self, name: str, what: str, wait: bool, on_wait: OnWait | None = None) -> AbstractContextManager[None]:
        """Refused: whoever locks is about to write."""
        self.check_writable()
