"""A bounded folder on a disk of this machine that holds what was read of files that lie far away.

A file there is named by the address and the SHA-256 of the committed file that it holds pieces of, so what was made
anew is another file. It is sparse: the committed file's bytes at their places, as far as they were read, and behind
them a byte for each block of `BLOCK` bytes that says whether it is there. Bytes come first, then what says so:
whatever is killed when, no block counts that is not whole. Several processes use a stage at once: they may write the
same bytes to the same place.

Nothing there is durable or beyond doubt, nor need it be: rows are checked by their own checksums whenever they are
read, and what fails is forgotten and read from where it truly lies.
"""

from __future__ import annotations

import fcntl
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache.errors import BadInput, PlaceWarning, StoreFull, TooManyOpenFiles, WriteFailed
from cache.places.files import is_full, open_file, remove_temporaries
from cache.places.locks import file_lock

BLOCK = 4096
FOLDER = "sak-stage"
"""What a stage makes below the folder that it is given."""
_DIGEST_LENGTH = 64


def blocks(start: int, end: int) -> tuple[int, int]:
    """The first block that bytes `start` to `end` touch, and the first after them."""
    return start // BLOCK, -(-end // BLOCK)


def _staged_bytes(num_bytes: int) -> int:
    """Bytes that a file of `num_bytes` may take in a stage."""
    count = blocks(0, num_bytes)[1]
    return count * (BLOCK + 1)


class Stage:
    """One process's hold on a stage. Safe from several threads; what a killed process left is removed at the start.

    Where there is no room for one more file, those go that no run has used for longest and that nobody reads now; what
    this process has said it will read stays. A file for which there is then no room is not staged. Where the disk
    refuses, nothing more is. A `PlaceWarning` says either, once.

    Args:
        folder: on a disk of this machine; what is kept lies in ``sak-stage`` below it.
        num_bytes: that all files there may take together.

    Raises:
        BadInput: the folder cannot be made or written to.
    """

    _of_process: dict[tuple[Path, int], Stage] = {}  # noqa: RUF012 (one for all that this process reads)
    _mutex = threading.Lock()

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self.folder, self.num_bytes = folder.absolute() / FOLDER, num_bytes
        self.is_stopped = False
        self._wanted: set[str] = set()
        self._left: list[tuple[int, str]] = []
        """Files of before, by when they were last used (ns), the oldest last."""
        self._said: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                remove_temporaries([self.folder])
                found = [(path.stat(), path.name) for path in self._files()]
                self._left = sorted(((told.st_mtime_ns, name) for told, name in found), reverse=True)
                self._set_used(sum(told.st_size for told, _ in found))
        except (OSError, WriteFailed) as error:
            if not isinstance(error, StoreFull) and not (isinstance(error, OSError) and is_full(error)):
                raise BadInput(f"{folder} cannot hold a stage: {error}") from error
            self.stop(error)

    @classmethod
    def at(cls, folder: Path, num_bytes: int) -> Stage:
        """The one of this process."""
        with cls._mutex:
            key = (folder.absolute(), num_bytes)
            if key not in cls._of_process:
                cls._of_process[key] = cls(folder, num_bytes)
            return cls._of_process[key]

    def __reduce__(self) -> tuple[object, ...]:
        return Stage.at, (self.folder.parent, self.num_bytes)

    def will_read(self, names: Iterable[str]) -> None:
        """Keep what is there of the files of these names, whatever room is needed."""
        self._wanted.update(names)

    # -- files ------------------------------------------------------------------------------------

    def open(self, name: str, num_bytes: int) -> int | None:
        """A descriptor of the stage's file of that name, 64 hex digits, for a committed one; made where there is none.

        None where there is no room for it, or staging has stopped. Whoever holds one keeps the file from going.

        Raises:
            TooManyOpenFiles: this process may open no more files.
        """
        path, size = self.folder / name, _staged_bytes(num_bytes)
        try:
            for _ in range(3):  # another process may remove it between two looks
                if (descriptor := _opened(path, size)) is not None:
                    return descriptor
                if self.is_stopped or not self._make(path, size):
                    return None
        except TooManyOpenFiles:
            raise
        except (OSError, WriteFailed) as error:
            self.stop(error)
        return None

    def _make(self, path: Path, size: int) -> bool:
        """Make an empty file unless there is one; whether there is one now."""
        with self._locked():
            if path.exists() and path.stat().st_size == size:
                return True
            used = self._make_room(self._used(), size)
            if used + size > self.num_bytes:
                self.say(
                    f"{self.folder} holds its {self.num_bytes / 1e9:g} GB: rows for which there is no room are read "
                    "from afar in every epoch; allow more (loader.stage_gb)"
                )
                return False
            self._set_used(used + size)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
            temporary.rename(path)
            return True

    def _make_room(self, used: int, size: int) -> int:
        """Remove files of before while there is no room for `size` bytes more; returns what is then used."""
        while self._left and used + size > self.num_bytes:
            last_used_ns, name = self._left.pop()
            if name not in self._wanted:
                used -= _removed(self.folder / name, last_used_ns)
        self._set_used(used)
        return used

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only one to add and remove files while the block runs."""
        with file_lock(self.folder / "lock", f"the stage {self.folder}", wait=True):
            yield

    def _used(self) -> int:
        try:
            return int((self.folder / "used").read_text())
        except (OSError, ValueError):  # its writer was killed
            return sum(path.stat().st_size for path in self._files())

    def _files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if len(path.name) == _DIGEST_LENGTH]

    def _set_used(self, num_bytes: int) -> None:
        (self.folder / "used").write_text(str(num_bytes))

    # -- what it says -----------------------------------------------------------------------------

    def held_bytes(self, name: str, num_bytes: int) -> int:
        """How many bytes of the committed file of that name are here; makes nothing."""
        count = blocks(0, num_bytes)[1]
        try:
            with (self.folder / name).open("rb", buffering=0) as file:
                return min(num_bytes, BLOCK * os.pread(file.fileno(), count, count * BLOCK).count(1))
        except FileNotFoundError:
            return 0

    def stop(self, error: Exception) -> None:
        """Stage nothing more: the disk refused."""
        self.is_stopped = True
        self.say(f"staging stops: {self.folder}: {error}; what is not there is read from afar")

    def say(self, what: str) -> None:
        """Warn, once."""
        if what not in self._said:
            self._said.add(what)
            warnings.warn(what, PlaceWarning, stacklevel=2)


def _opened(path: Path, size: int) -> int | None:
    """A descriptor of a file of that size, marked as used now and held; None where there is none."""
    try:
        descriptor = open_file(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        told = os.fstat(descriptor)
        if told.st_size == size and told.st_nlink:
            os.utime(descriptor)
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _removed(path: Path, last_used_ns: int) -> int:
    """Remove a file unless somebody reads it, or has since; returns the bytes that it had."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        told = os.fstat(descriptor)
        if told.st_mtime_ns != last_used_ns:
            return 0
        path.unlink()
        return told.st_size
    except OSError:  # held by another
        return 0
    finally:
        os.close(descriptor)
