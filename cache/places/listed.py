"""Places of which a list says every file, and places that are never written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NoReturn

from cache.places.place import Place


class ListedPlace(Place):
    """A folder of which a list says every file.

    Attributes:
        prefix: of every name in the list, empty or ending in a slash.
    """

    prefix: str

    @abstractmethod
    def listing(self) -> Mapping[str, int]:
        """Every file, path -> bytes, in order.

        Raises:
            StoreNotFound: nothing can be listed.
        """

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
        """See `Place`: nothing is ever written here.

        Raises:
            BadInput: always; it says where to write instead.
        """

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        """All that writes is refused, a lock, too: whoever locks is about to write."""
        self.check_writable()

    write = update = remove = delete = append = lock = _refuse
