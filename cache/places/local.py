"""Stores in a folder of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cache.places.files import (
    MODE,
    BeforeCommit,
    Buffers,
    FileDigest,
    digest_of_file,
    fsync_directory,
    remove_temporaries,
    write_files,
)
from cache.places.locks import OnWait, file_lock
from cache.places.open_files import DirectFile, LocalFile, OpenFile
from cache.places.place import Change, Place


class LocalPlace(Place):
    """A folder of this machine, or of a file system it has mounted.

    Args:
        path: of the folder.
        direct: read rows past the page cache (O_DIRECT): for a store on a fast disk that memory cannot hold, read
            in exact order. ``Store.open(LocalPlace(path, direct=True))``.
    """

    def __init__(self, path: Path, direct: bool = False) -> None:
        self.path, self.direct = path.absolute(), direct  # as it is now, wherever the process goes later
        self.num_readers = 16 if direct else 2
        self.shown, self.name = str(path), self.path.name

    def child(self, name: str) -> LocalPlace:
        """See `Place`."""
        place = LocalPlace(self.path / name, self.direct)
        place.shown = str(Path(self.shown) / name)
        return place

    def zarr(self) -> Any:
        """See `Place`."""
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True)

    def read(self, name: str) -> bytes:
        """See `Place`."""
        return (self.path / name).read_bytes()

    def exists(self, name: str) -> bool:
        """See `Place`."""
        return (self.path / name).is_file()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """See `Place`."""
        start = self.path / folder
        found = (path for path in start.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in sorted(found)}

    def folders(self, folder: str = "") -> list[str]:
        """See `Place`."""
        start = self.path / folder
        return sorted(path.name for path in start.iterdir() if path.is_dir()) if start.is_dir() else []

    def open(self, name: str, num_bytes: int) -> OpenFile:
        """See `Place`."""
        # os.path: pathlib costs more than the rest of opening a file
        path = os.path.join(self.path, name)  # noqa: PTH118
        return DirectFile(path, num_bytes) if self.direct else LocalFile(path, num_bytes)

    def digest(self, name: str, progress: Callable[[int], None] | None = None) -> FileDigest:
        """See `Place`."""
        return digest_of_file(self.path / name, progress)

    def write(
        self, files: Mapping[str, Buffers], *, replace: bool = False, before_commit: BeforeCommit | None = None
    ) -> dict[str, FileDigest]:
        """See `Place`; always replaces, since writers hold the lock."""
        return write_files(self.path, files, before_commit)

    def update(self, changes: Mapping[str, Change]) -> None:
        """See `Place`."""
        new = {name: change(self.read(name)) for name, change in changes.items()}
        self.write({name: [data] for name, data in new.items() if data is not None})

    def remove(self, folder: str) -> None:
        """See `Place`."""
        shutil.rmtree(self.path / folder, ignore_errors=True)

    def delete(self, names: Sequence[str]) -> None:
        """See `Place`."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        for folder in {(self.path / name).parent for name in names}:
            if folder.is_dir():
                fsync_directory(folder)

    def append(self, name: str, line: bytes) -> None:
        """See `Place`."""
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def lock(self, name: str, what: str, wait: bool, on_wait: OnWait | None = None) -> AbstractContextManager[None]:
        """See `Place`."""
        return file_lock(self.path / name, what, wait, on_wait)

    def discard(self, folder: str) -> None:
        """See `Place`."""
        self.remove(folder)

    def remove_temporaries(self, folders: Sequence[str]) -> None:
        """See `Place`."""
        remove_temporaries([self.path / folder for folder in folders])
