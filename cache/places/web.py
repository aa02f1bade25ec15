"""Stores behind a plain web server, ``https://host/features``: read by ranges, never written.

A web server lists nothing. What there is says a catalogue, a file beside the stores that is written where they are
copied (`write_catalogue`). Whoever holds a place sees what its catalogue said when it was first asked.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from cache.errors import BadInput, CorruptFile, PlaceWarning, StoreNotFound
from cache.places.files import canonical_json
from cache.places.listed import ListedPlace, ReadOnlyPlace
from cache.places.objects import Answer, NoRanges, ObjectFile, ObjectPlace
from cache.places.open_files import OpenFile, Range, fill
from cache.places.place import Place
from sak_common.errors import first_line
from sak_common.extras import how_to_install

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("http", "https")
CATALOGUE = "catalogue.json"
FORMAT = 1
_STORE = ".zarr"
_RETRIES = 5
"""By obstore, with growing waits: some six seconds in all, so that a mistyped host is an error soon."""


def check_catalogue(root: Place) -> None:
    """Check that a catalogue may be written into a folder of caches.

    Raises:
        BadInput: a file of its name is there that is none: nothing may be written over it.
    """
    if not root.exists(CATALOGUE):
        return
    shown = root.show(CATALOGUE)
    try:
        read_catalogue(root.read(CATALOGUE), shown)
    except CorruptFile as error:
        raise BadInput(
            f"{error}; the catalogue of the stores would take its place: move it away, or copy elsewhere"
        ) from error


def refresh_catalogue(root: Place) -> None:
    """Write the catalogue of a folder of caches again, where there is one."""
    if root.exists(CATALOGUE):
        with suppress(BadInput):  # another program's file of that name
            write_catalogue(root)


def write_catalogue(root: Place) -> None:
    """Write what stores a folder of caches holds, with the size of every file, into the folder itself.

    Raises:
        BadInput: another file lies there, see `check_catalogue`.
    """
    check_catalogue(root)
    stores = {name: _public(root / name) for name in root.folders() if name.endswith(_STORE)}
    root.write({CATALOGUE: [canonical_json({"format": FORMAT, "stores": stores})]}, replace=True)
    root.finish()


def _public(store: Place) -> dict[str, int]:
    """The files of a store without locks and what killed writers left."""
    sizes = store.sizes()
    return {name: size for name, size in sizes.items() if not name.endswith((".tmp", "/lock"))}


def read_catalogue(raw: bytes, shown: str) -> dict[str, dict[str, int]]:
    """The stores of a catalogue: name -> file -> bytes; `shown` is its address.

    Raises:
        CorruptFile: it is no catalogue, or names a file that would lie outside of its store.
    """
    try:
        document = json.loads(raw)
        version, stores = document["format"], document["stores"]
        found = {str(name): dict(files) for name, files in stores.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFile(shown, f"it is no catalogue of stores: {error}") from error
    if version != FORMAT:
        raise CorruptFile(shown, f"it has format {version}, known is {FORMAT}")
    for store, files in found.items():
        for name, size in files.items():
            if not isinstance(size, int) or size < 0:
                raise CorruptFile(shown, f"{store}/{name} has no size: {size!r}")
        for name in (store, *files):
            if not all(part not in ("", ".", "..") for part in name.split("/")):
                raise CorruptFile(shown, f"{name!r} names no file below the stores")
    return found


class _Catalogue:
    """Every file that the catalogue in `folder` names, read when first asked for; safe from several threads."""

    def __init__(self, store: ObjectStore, folder: str, shown: str) -> None:
        self._place = ObjectPlace(store, folder, shown)
        self._sizes: dict[str, int] | None = None
        self._mutex = threading.Lock()

    def sizes(self) -> Mapping[str, int]:
        """Path below the host -> bytes.

        Raises:
            StoreNotFound: there is no catalogue, or the server does not answer.
            CorruptFile: it is none.
        """
        with self._mutex:
            if self._sizes is None:
                shown = self._place.show(CATALOGUE)
                try:
                    raw = self._place.read(CATALOGUE)
                except FileNotFoundError as error:
                    raise StoreNotFound(
                        f"{shown} is not there: it says what stores a web server holds, and is written beside them "
                        "when they are copied; copy the folder there, or onto itself"
                    ) from error
                except OSError as error:
                    raise StoreNotFound(f"{shown} cannot be read: {error}") from error
                stores = read_catalogue(raw, shown)
                prefix = self._place.prefix
                self._sizes = {
                    f"{prefix}{store}/{name}": size
                    for store, files in sorted(stores.items())
                    for name, size in sorted(files.items())
                }
            return self._sizes


class WebPlace(ReadOnlyPlace, ListedPlace, ObjectPlace):
    """A folder of a web server, read-only.

    Args:
        store: obstore's, of the host.
        prefix: of every name, the folder's path on the host, empty or ending in a slash.
        shown: its address.
        catalogue: of the folder that holds the stores.
    """

    def __init__(self, store: ObjectStore, prefix: str, shown: str, catalogue: _Catalogue) -> None:
        super().__init__(store, prefix, shown)
        self._catalogue = catalogue

    @classmethod
    def at(cls, address: str) -> WebPlace:
        """The folder of caches at an address, or the store where the address ends in ``.zarr``.

        Raises:
            BadInput: obstore is not installed, or refuses the address.
        """
        scheme, _, rest = address.partition("://")
        host, _, path = rest.rstrip("/").partition("/")
        shown = f"{scheme}://{rest.rstrip('/')}"
        if not host or "?" in path or "#" in path:
            raise BadInput(f"{address}: write an address as {scheme}://host/folder")
        try:
            from obstore.exceptions import BaseError
            from obstore.store import HTTPStore
        except ImportError as error:
            raise BadInput(f"{address}: web servers need obstore; {how_to_install('objects')}") from error
        try:
            options: Any = {"allow_http": scheme == "http"}
            store = HTTPStore(f"{scheme}://{host}", client_options=options, retry_config={"max_retries": _RETRIES})
        except (BaseError, ValueError) as error:
            raise BadInput(f"{address}: {first_line(error)}") from error
        folder, folder_shown = path, shown
        if path.endswith(_STORE):
            folder, folder_shown = path.rpartition("/")[0], shown.rpartition("/")[0]
        catalogue = _Catalogue(store, f"{folder}/" if folder else "", folder_shown)
        return cls(store, f"{path}/" if path else "", shown, catalogue)

    def __reduce__(self) -> tuple[Any, ...]:
        return WebPlace.at, (self.shown,)

    def __truediv__(self, name: str) -> WebPlace:
        return WebPlace(self.store, f"{self.prefix}{name}/", f"{self.shown}/{name}", self._catalogue)

    def listing(self) -> Mapping[str, int]:
        return self._catalogue.sizes()

    def open(self, name: str, num_bytes: int) -> OpenFile:
        """See `Place`; asks nothing."""
        return _WebFile(self.store, self.prefix + name, self.show(name), num_bytes)

    def check_writable(self) -> NoReturn:
        raise BadInput(f"{self.shown}: a web server is only read from; write to a folder or a bucket")


class _WebFile(ObjectFile):
    """A file of a web server; of one that answers ranges with whole files (200), whole files are read and cut."""

    __slots__ = ()

    def read(self, start: int, num_bytes: int) -> bytes:
        return self._or_whole(
            lambda: super(_WebFile, self).read(start, num_bytes), lambda data: bytes(data[start : start + num_bytes])
        )

    def read_into(self, ranges: Sequence[Range]) -> None:
        def cut(data: memoryview) -> None:
            for start, targets in ranges:
                fill(targets, data[start : start + sum(map(len, targets))])

        self._or_whole(lambda: super(_WebFile, self).read_into(ranges), cut)

    def _or_whole(self, by_ranges: Callable[[], Answer], cut: Callable[[memoryview], Answer]) -> Answer:
        try:
            return by_ranges()
        except NoRanges:
            warn_of_server(self.shown)
            return cut(memoryview(self.whole()))


_warned: set[str] = set()


def warn_of_server(address: str) -> None:
    """Warn, once for a host, that it gives no ranges."""
    host = "/".join(address.split("/")[:3])
    if host not in _warned:
        _warned.add(host)
        warnings.warn(
            f"{host} answers requests for ranges with whole files: every row costs a whole file; copy the store and "
            "read the copy",
            PlaceWarning,
            stacklevel=2,
        )
