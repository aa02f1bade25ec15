"""One writer a part, held by `flock`: the kernel frees it when its process is killed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import StoreLocked, WriteFailed
from cache.places.files import make_directories

OnWait = Callable[[str], None]


@contextmanager
def file_lock(path: Path, what: str, wait: bool, on_wait: OnWait | None = None) -> Iterator[None]:
    """Hold the lock file at `path` (created, empty, never deleted) while the block runs.

    Args:
        what: what is locked, for messages.
        wait: wait for another process, or refuse.
        on_wait: is told once that there is something to wait for.

    Raises:
        StoreLocked: another process holds it and `wait` is false.
        WriteFailed: the lock file cannot be made.
    """
    try:
        make_directories(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise WriteFailed(f"cannot write to {what}: {error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another process works on {what}"
            if not wait:
                raise StoreLocked(message) from None
            if on_wait is not None:
                on_wait(f"{message}; waiting for it to end")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
