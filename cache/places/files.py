"""Files that are whole and durable, or not there: temporary name, one ``writev``, fsync, rename, fsync."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import PlaceWarning, StoreFull, TooManyOpenFiles, WriteFailed

Buffers = Sequence[bytes | memoryview]

_IOV_MAX = 1024  # buffers a single writev may take (Linux)
_TMP_SUFFIX = ".tmp"
# Many files are made durable at once (file systems commit concurrent fsyncs together: 12 instead of 49 ms for the
# 14 small files of a source shard) and hashed meanwhile; hashlib, writev and fsync all release the GIL.
_NUM_THREADS = 16
_SMALL_BYTES = 1 << 16
MODE = 0o666
"""Of new files: what the umask leaves of it, as for any other program's, so that a group can share a store."""
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True)
class FileDigest:
    """A committed file: its size in bytes and the SHA-256 of its bytes (hex)."""

    num_bytes: int
    sha256: str


BeforeCommit = Callable[[Mapping[str, FileDigest]], None]
"""Is told what is about to be there: name -> digest."""


def canonical_json(document: Any) -> bytes:
    """`document` as JSON that is the same bytes for equal content: sorted keys, no spaces, one newline."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def readable_json(document: Any) -> bytes:
    """As `canonical_json`, indented for people; used for ``zarr.json``."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def digest_of(pieces: Iterable[bytes | memoryview], progress: Callable[[int], None] | None = None) -> FileDigest:
    """Size and SHA-256 of the concatenation of `pieces`; `progress` is told the bytes of each."""
    sha = hashlib.sha256()
    size = 0
    for piece in pieces:
        sha.update(piece)
        size += memoryview(piece).nbytes
        if progress is not None:
            progress(memoryview(piece).nbytes)
    return FileDigest(size, sha.hexdigest())


def open_file(path: str | Path, flags: int) -> int:
    """A descriptor of a file or folder; one that is made has mode `MODE`.

    Raises:
        TooManyOpenFiles: this process, or the machine, may open no more, which is no fault of the file's.
        OSError: it cannot be opened.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC, MODE)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise TooManyOpenFiles(f"{path}: {error.strerror}") from error
        raise


def digest_of_file(path: Path, progress: Callable[[int], None] | None = None) -> FileDigest:
    """Size and SHA-256 of a file, read in pieces of 4 MiB; `progress` is told the bytes of each piece."""

    def pieces() -> Iterator[memoryview]:
        piece = bytearray(4 << 20)
        while count := file.readinto(piece):
            yield memoryview(piece)[:count]

    with open(path, "rb", buffering=0, opener=open_file) as file:
        return digest_of(pieces(), progress)


def _write_all(descriptor: int, buffers: Buffers) -> None:
    """`writev` until everything is written; one call where the kernel takes it whole."""
    pending = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
    while pending:
        written = os.writev(descriptor, pending[:_IOV_MAX])
        while pending and written >= pending[0].nbytes:
            written -= pending.pop(0).nbytes
        if written:
            pending[0] = pending[0][written:]


def _write_temporary(temporary: Path, buffers: Buffers) -> None:
    descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
    try:
        _write_all(descriptor, buffers)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_warned: set[tuple[int, str]] = set()


def warn_of_place(path: Path, what: str) -> None:
    """Warn that something is missing where `path` lies; once for a file system, however many files meet it."""
    key = (path.stat().st_dev, what)
    if key not in _warned:
        _warned.add(key)
        warnings.warn(f"{path}: {what}", PlaceWarning, stacklevel=2)


def fsync_directory(directory: Path) -> None:
    """Make renames in `directory` durable; warns where its file system cannot.

    Raises:
        OSError: it cannot be opened, or the disk fails.
    """
    descriptor = open_file(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        warn_of_place(
            directory,
            f"its file system cannot make new names in a folder durable ({error.strerror}): after a power cut the last "
            "files may be missing: verifying the store tells which, and writing it again makes them",
        )
    finally:
        os.close(descriptor)


def make_directories(directory: Path) -> None:
    """Create `directory` and missing parents, each durable in its parent.

    Raises:
        OSError: one cannot be made.
    """
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def write_files(
    root: Path, files: Mapping[str, Buffers], before_rename: BeforeCommit | None = None
) -> dict[str, FileDigest]:
    """Write several files below `root`; all are durable when this returns.

    Every file is first whole and durable under a temporary name, then all are renamed, then their directories
    are made durable. An error or a kill leaves at most temporary files and complete new ones.

    Args:
        files: path relative to `root` -> its bytes, in pieces. Directories are created.
        before_rename: called with their digests when all temporary files are durable; what it raises stops all.

    Returns:
        path -> size and SHA-256 of what was written.

    Raises:
        StoreFull: the file system has no space or quota left; the temporary files are removed.
        WriteFailed: it refused for another reason.
    """
    targets = {name: root / name for name in files}
    size = sum(memoryview(buffer).nbytes for buffers in files.values() for buffer in buffers)
    temporaries = {name: path.with_name(f".{path.name}.{os.getpid()}{_TMP_SUFFIX}") for name, path in targets.items()}
    try:
        for directory in {path.parent for path in targets.values()}:
            make_directories(directory)
        if len(files) == 1 and size <= _SMALL_BYTES:  # a manifest's entry: no threads for it
            digests = _write_and_rename(files, temporaries, targets, map, before_rename)
        else:
            with ThreadPoolExecutor(_NUM_THREADS) as pool:
                digests = _write_and_rename(files, temporaries, targets, pool.map, before_rename)
    except Exception as error:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        if is_full(error):
            raise StoreFull(
                f"{what_is_full(root, len(files), size)}. Nothing of this shard was committed",
            ) from error
        raise WriteFailed(f"cannot write below {root}: {error}. Nothing of these files was committed") from error
    return digests


def is_full(error: OSError) -> bool:
    """Whether the file system, or the user's share of it, had no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def free_files(folder: Path) -> int | None:
    """How many more files the file system of `folder`, or of where it would be made, takes; None: it sets no limit."""
    while not folder.exists():
        folder = folder.parent
    told = os.statvfs(folder)
    return told.f_favail if told.f_files else None


def what_is_full(folder: Path, num_files: int, num_bytes: int) -> str:
    """What there was no room for below `folder`: bytes, or files (inodes), whose number many file systems limit."""
    left = free_files(folder)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if left is not None and left < num_files:
        return (
            f"no inodes left below {folder}: {num_files} files were to be written, its file system takes {left:,} more "
            f"({free:,} bytes are free); delete files that nobody needs"
        )
    return f"no space left below {folder}: {num_files} files of {num_bytes:,} bytes in all, {free:,} free"


def _write_and_rename(
    files: Mapping[str, Buffers],
    temporaries: Mapping[str, Path],
    targets: Mapping[str, Path],
    run: Callable[..., Iterable[Any]],
    before_rename: BeforeCommit | None,
) -> dict[str, FileDigest]:
    """The steps of `write_files`; `run` is `map`, or an executor's."""
    hashed = run(digest_of, files.values())
    for _ in run(_write_temporary, [temporaries[name] for name in files], files.values()):
        pass
    digests = dict(zip(files, hashed, strict=True))
    if before_rename is not None:
        before_rename(digests)
    for name, path in targets.items():
        temporaries[name].rename(path)
    for _ in run(fsync_directory, {path.parent for path in targets.values()}):
        pass
    return digests


def remove_temporaries(directories: Sequence[Path]) -> int:
    """Delete what killed writers left directly in `directories`; returns how many files."""
    count = 0
    for directory in directories:
        if directory.is_dir():
            for path in directory.glob(f".*{_TMP_SUFFIX}"):
                path.unlink(missing_ok=True)
                count += 1
    return count
