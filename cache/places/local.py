"""Stores in a folder of this machine."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from cache.errors import LeadsAway
from cache.places.files import (
    BeforeCommit,
    Buffers,
    FileDigest,
    digest_of_file,
    fsync_directory,
    open_file,
    remove_temporaries,
    write_files,
)
from cache.places.locks import OnWait, file_lock
from cache.places.open_files import DirectFile, LocalFile, OpenFile
from cache.places.place import MOST_READ_BYTES, Place, check_size

DISK_READERS = 2
"""Threads that read a disk of this machine well: the page cache answers most of what they ask."""


class LocalPlace(Place):
    """A folder of this machine, or of a file system it has mounted.

    Args:
        path: of the folder.
        direct: read rows past the page cache (O_DIRECT): for a store on a fast disk that memory cannot hold, read
            in exact order. ``Store.open(LocalPlace(path, direct=True))``.
    """

    def __init__(self, path: Path, direct: bool = False) -> None:
        self.path, self.direct = path.absolute(), direct  # as it is now, wherever the process goes later
        self.shown, self.name = str(path), self.path.name
        self._plain: set[str] = set()
        """Folders below that no link leads to."""

    def __truediv__(self, name: str) -> LocalPlace:
        place = LocalPlace(self.path / name, self.direct)
        place.shown = str(Path(self.shown) / name)
        return place

    @property
    def num_readers(self) -> int:
        return 16 if self.direct else DISK_READERS

    def zarr(self) -> Any:
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True)

    def _inside(self, name: str) -> str:
        """The path of a file below this place, or of one that may be made there; links do not lead away from it.

        Raises:
            LeadsAway: it, or a folder on the way to it, is a symbolic link (this place itself may be one); or it is
                no file but a device, say, which may have no end.
        """
        self._check_way(name.rpartition("/")[0])
        path = os.path.join(self.path, name)  # noqa: PTH118  pathlib costs more than the rest of opening a file
        if (mode := _mode(path)) is not None and not stat.S_ISREG(mode):
            raise LeadsAway(path, "a symbolic link" if stat.S_ISLNK(mode) else "no file")
        return path

    def _check_way(self, folder: str) -> None:
        """Refuse a folder below this place that is a symbolic link, or has one on the way to it."""
        if folder in self._plain:
            return
        path, mode = str(self.path), None
        for name in folder.split("/") if folder else ():
            path = os.path.join(path, name)  # noqa: PTH118
            mode = _mode(path)
            if mode is not None and stat.S_ISLNK(mode):
                raise LeadsAway(path, "a symbolic link")
        if mode is not None:  # what is not there yet is looked at again
            self._plain.add(folder)

    def read(self, name: str, most: int = MOST_READ_BYTES) -> bytes:
        with open(self._inside(name), "rb", buffering=0, opener=open_file) as file:
            check_size(os.fstat(file.fileno()).st_size, most)
            return file.readall()

    def exists(self, name: str) -> bool:
        """See `Place`; a link is there, too: whoever reads it is told."""
        mode = _mode(os.path.join(self.path, name))  # noqa: PTH118
        return mode is not None and not stat.S_ISDIR(mode)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """See `Place`; of links, their own."""
        self._check_way(folder.strip("/"))
        skip = len(os.path.join(self.path, ""))  # noqa: PTH118
        found = {}
        for where, _, names in os.walk(self.path / folder, onerror=_unless_gone):
            for path in (os.path.join(where, name) for name in names):  # noqa: PTH118
                with suppress(FileNotFoundError):
                    found[path[skip:]] = os.lstat(path).st_size
        return dict(sorted(found.items(), key=lambda item: item[0].split("/")))

    def folders(self, folder: str = "") -> list[str]:
        """See `Place`; links to folders, too."""
        self._check_way(folder.strip("/"))
        start = self.path / folder
        return sorted(path.name for path in start.iterdir() if path.is_dir()) if start.is_dir() else []

    def open(self, name: str, num_bytes: int) -> OpenFile:
        path = self._inside(name)
        return DirectFile(path, num_bytes) if self.direct else LocalFile(path, num_bytes)

    def digest(self, name: str, progress: Callable[[int], None] | None = None, most: int | None = None) -> FileDigest:
        path = self._inside(name)
        if most is not None and (size := os.stat(path).st_size) > most:  # noqa: PTH116
            return FileDigest(size, "")
        return digest_of_file(Path(path), progress)

    def write(
        self, files: Mapping[str, Buffers], *, replace: bool = False, before_commit: BeforeCommit | None = None
    ) -> dict[str, FileDigest]:
        """See `Place`; always replaces, since writers hold the lock."""
        for name in files:
            self._inside(name)
        return write_files(self.path, files, before_commit)

    def remove(self, folder: str) -> None:
        self._check_way(folder)
        shutil.rmtree(self.path / folder, ignore_errors=True)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self._check_way(name.rpartition("/")[0])
            (self.path / name).unlink(missing_ok=True)
        for folder in {(self.path / name).parent for name in names}:
            if folder.is_dir():
                fsync_directory(folder)

    def append(self, name: str, line: bytes) -> None:
        descriptor = open_file(self._inside(name), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def lock(self, name: str, what: str, wait: bool, on_wait: OnWait | None = None) -> AbstractContextManager[None]:
        return file_lock(Path(self._inside(name)), what, wait, on_wait)

    def discard(self, folder: str) -> None:
        self.remove(folder)

    def remove_temporaries(self, folders: Sequence[str]) -> None:
        for folder in folders:
            self._check_way(folder)
        remove_temporaries([self.path / folder for folder in folders])


def _unless_gone(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one, unless it is not there."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _mode(path: str) -> int | None:
    """What lies at a path, links not followed; None where nothing does."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
