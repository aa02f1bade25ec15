"""Stores in object storage: ``s3://``, ``gs://`` and ``az://``, through obstore.

obstore is the client below zarr's own `zarr.storage.ObjectStore`, see `Store.zarr`; it asks again after
answers of 5xx, dropped connections and time-outs. Addresses, keys and endpoints come from the environment that
the provider's own tools read (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``GOOGLE_APPLICATION_CREDENTIALS``,
``AZURE_STORAGE_ACCOUNT_NAME``, ...).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cache.errors import AlreadyThere, BadInput, WriteFailed
from cache.places.files import BeforeCommit, Buffers, FileDigest, digest_of
from cache.places.open_files import OpenFile, Range, fill
from cache.places.place import MOST_READ_BYTES, Change, Place, check_size
from sak_common.errors import first_line
from sak_common.extras import how_to_install

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

Answer = TypeVar("Answer")

SCHEMES = ("az", "gs", "s3")
_NUM_WRITERS = 16
COALESCED_GAP = 256 << 10
"""Ranges of one object that are no farther apart are fetched by one request: bytes are cheaper than round trips."""
_ATTEMPTS = 4
"""Of a request that obstore does not repeat by itself: an answer that broke off, a write of which none came.

All may be repeated: a file that is created twice is compared.
"""


class ObjectPlace(Place):
    """A prefix in a bucket. What lies there is written once: created if absent, compared otherwise.

    Args:
        store: an obstore store.
        prefix: of every name, empty or ending in a slash.
        shown: its address.
    """

    num_readers = 32

    def __init__(self, store: ObjectStore, prefix: str = "", shown: str = "memory://") -> None:
        self.store, self.prefix = store, prefix
        self.shown, self.name = shown, shown.rstrip("/").rpartition("/")[2]

    @classmethod
    def at(cls, address: str) -> ObjectPlace:
        """The place at an address, ``s3://``, ``gs://`` or ``az://``.

        Raises:
            BadInput: obstore is not installed, or refuses the address.
        """
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise BadInput(f"{address}: object storage needs obstore; {how_to_install('objects')}") from error
        try:
            return cls(from_url(address.rstrip("/")), "", address.rstrip("/"))
        except (BaseError, ValueError) as error:
            raise BadInput(f"{address}: {first_line(error)}") from error

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self.shown.partition("://")[0] not in SCHEMES:
            return super().__reduce__()
        return ObjectPlace.at, (self.shown,)  # keys and endpoints stay in the environment

    def zarr(self) -> Any:
        from zarr.storage import ObjectStore as ZarrStore
        from zarr.storage import StorePath

        return StorePath(ZarrStore(self.store, read_only=True), self.prefix.rstrip("/"))

    def __truediv__(self, name: str) -> ObjectPlace:
        return ObjectPlace(self.store, f"{self.prefix}{name}/", f"{self.shown.rstrip('/')}/{name}")

    # -- reading ----------------------------------------------------------------------------------

    def read(self, name: str, most: int = MOST_READ_BYTES) -> bytes:
        return _whole(self.store, self.prefix + name, most)

    def exists(self, name: str) -> bool:
        import obstore

        try:
            _again(lambda: obstore.head(self.store, self.prefix + name))
        except FileNotFoundError:
            return False
        return True

    def sizes(self, folder: str = "") -> dict[str, int]:
        import obstore

        prefix = self.prefix + (f"{folder.strip('/')}/" if folder else "")
        found = _again(lambda: obstore.list(self.store, prefix or None, chunk_size=1000).collect())
        return {item["path"].removeprefix(self.prefix): item["size"] for item in sorted(found, key=_path)}

    def folders(self, folder: str = "") -> list[str]:
        import obstore

        prefix = self.prefix + (f"{folder.strip('/')}/" if folder else "")
        found = _again(lambda: obstore.list_with_delimiter(self.store, prefix or None)["common_prefixes"])
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def open(self, name: str, num_bytes: int) -> OpenFile:
        """See `Place`; asks nothing."""
        return ObjectFile(self.store, self.prefix + name, self.show(name), num_bytes)

    def digest(self, name: str, progress: Callable[[int], None] | None = None, most: int | None = None) -> FileDigest:
        import obstore

        def once() -> FileDigest:
            answer = obstore.get(self.store, self.prefix + name)
            if most is not None and answer.meta["size"] > most:
                return FileDigest(answer.meta["size"], "")
            return digest_of(answer.stream(min_chunk_size=4 << 20))

        found = _again(once)
        if progress is not None:
            progress(found.num_bytes)
        return found

    # -- writing ----------------------------------------------------------------------------------

    def write(
        self, files: Mapping[str, Buffers], *, replace: bool = False, before_commit: BeforeCommit | None = None
    ) -> dict[str, FileDigest]:
        with ThreadPoolExecutor(min(_NUM_WRITERS, len(files))) as pool:
            digests = dict(zip(files, pool.map(digest_of, files.values()), strict=True))
            if before_commit is not None:
                before_commit(digests)
            for _ in pool.map(lambda name: self._put(name, files[name], digests[name], replace), files):
                pass
        return digests

    def _put(self, name: str, buffers: Buffers, digest: FileDigest, replace: bool) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        data = b"".join(buffers)
        mode: Literal["create", "overwrite"] = "overwrite" if replace else "create"
        for attempt in range(_ATTEMPTS):
            try:
                _again(lambda: obstore.put(self.store, self.prefix + name, data, mode=mode, use_multipart=False))
                return
            except AlreadyExistsError as error:
                # by another machine, by a run before this one, or by this very request, its answer lost
                try:
                    found = self.digest(name)
                except FileNotFoundError:  # and deleted since: a manifest's entry that was compacted
                    if attempt < _ATTEMPTS - 1:
                        continue
                    raise
                if found == digest:
                    return
                raise AlreadyThere(
                    f"{self.show(name)} is there already with other bytes: a teacher, device or number of threads "
                    "is not the one that made it. Nothing was written over it"
                ) from error
            except OSError as error:
                raise WriteFailed(f"cannot write {self.show(name)}: {error}. Nothing of it was committed") from error
        raise AssertionError("unreachable")

    def update(self, changes: Mapping[str, Change]) -> None:
        """See `Place`; by PUTs that go through where the object is still the one that was read (If-Match)."""
        with ThreadPoolExecutor(min(_NUM_WRITERS, len(changes))) as pool:
            for _ in pool.map(self._update, changes, changes.values()):
                pass

    def _update(self, name: str, change: Change) -> None:
        import obstore
        from obstore.exceptions import PreconditionError

        path = self.prefix + name
        while True:  # every turn that this loses, another machine has won
            raw, e_tag, version = _again(partial(_get, self.store, path))
            mode: UpdateVersion = {**({"e_tag": e_tag} if e_tag else {}), **({"version": version} if version else {})}
            data = change(raw)
            if data is None:
                return
            try:
                _again(partial(obstore.put, self.store, path, data, mode=mode, use_multipart=False))
                return
            except PreconditionError:
                continue
            except OSError as error:
                raise WriteFailed(f"cannot write {self.show(name)}: {error}. Nothing of it was committed") from error

    def delete(self, names: Sequence[str]) -> None:
        import obstore

        for first in range(0, len(names), 1000):
            with suppress(FileNotFoundError):
                _again(
                    partial(obstore.delete, self.store, [self.prefix + name for name in names[first : first + 1000]])
                )

    def append(self, name: str, line: bytes) -> None:
        """See `Place`; lines that two machines add in the same moment may get lost."""
        import obstore

        before = self.read(name) if self.exists(name) else b""
        _again(lambda: obstore.put(self.store, self.prefix + name, before + line))


class NoRanges(OSError):
    """The server gives whole files only."""


class ObjectFile(OpenFile):
    """An object of `num_bytes`, read by ranges; asked for nothing when it is made."""

    __slots__ = ("_num_bytes", "_path", "_store", "shown")

    def __init__(self, store: ObjectStore, path: str, shown: str, num_bytes: int) -> None:
        self._store, self._path, self.shown, self._num_bytes = store, path, shown, num_bytes

    def whole(self) -> bytes:
        """All its bytes.

        Raises:
            OSError: it has more than it should.
        """
        return _whole(self._store, self._path, self._num_bytes)

    def read(self, start: int, num_bytes: int) -> bytes:
        import obstore

        return _again(lambda: bytes(obstore.get_range(self._store, self._path, start=start, length=num_bytes)))

    def read_into(self, ranges: Sequence[Range]) -> None:
        import obstore

        starts = [start for start, _ in ranges]
        lengths = [sum(map(len, targets)) for _, targets in ranges]
        answers = _again(
            lambda: obstore.get_ranges(self._store, self._path, starts=starts, lengths=lengths, coalesce=COALESCED_GAP)
        )
        for answer, (_, targets) in zip(answers, ranges, strict=True):
            fill(targets, memoryview(answer))


def _whole(store: ObjectStore, path: str, most: int) -> bytes:
    """An object's bytes; OSError where there are more than `most`, of which none is fetched then."""
    import obstore

    def once() -> bytes | int:
        found = obstore.get(store, path)
        size: int = found.meta["size"]
        return bytes(found.bytes()) if size <= most else size

    got = _again(once)
    if isinstance(got, int):
        check_size(got, most)
        raise AssertionError("unreachable")
    return got


def _get(store: ObjectStore, path: str) -> tuple[bytes, str | None, str | None]:
    """An object's bytes, and what tells it from later ones of that name."""
    import obstore

    found = obstore.get(store, path)
    return bytes(found.bytes()), found.meta["e_tag"], found.meta["version"]


def _path(item: Any) -> str:
    path: str = item["path"]
    return path


@contextmanager
def _as_os_error() -> Iterator[None]:
    """obstore's errors as the ones that local files raise; those of conditional writes as they are."""
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        NotSupportedError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    # the first line alone: what follows is a dump of obstore's own structures
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(first_line(error)) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(first_line(error)) from error
    except NotSupportedError as error:
        raise NoRanges(first_line(error)) from error
    except BaseError as error:
        raise OSError(first_line(error)) from error


def _again(request: Callable[[], Answer]) -> Answer:
    """What `request` gives, asked again where that may help; errors as `_as_os_error`."""
    for attempt in range(_ATTEMPTS):
        try:
            with _as_os_error():
                return request()
        except (FileNotFoundError, PermissionError, NoRanges):
            raise
        except OSError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")
