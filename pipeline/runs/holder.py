"""One process a run's folder: a second one is told who works there, and stops."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import StoreLocked
from cache.places.locks import file_lock
from pipeline.errors import UserError

BUSY_S = 60.0
"""Seconds that a process which has been asked to stop may take for its checkpoint."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a run's or a study's folder while the block runs.

    The kernel frees the lock when its process ends, however it ends.

    Raises:
        UserError: another process works there; it is named.
    """
    path = folder / "lock"
    try:
        with file_lock(path, str(folder), wait=False):
            path.write_text(_this_process())
            try:
                yield
            finally:
                path.write_text("")
    except StoreLocked:
        raise UserError(
            f"another process works in {folder}: {path.read_text() or 'it has just begun'}. Wait until it ends or stop "
            "it, or choose another --run (for a study another name)"
        ) from None


def wait_until_free(folder: Path) -> None:
    """Wait until no process works in a folder, `BUSY_S` at most."""
    deadline = time.monotonic() + BUSY_S
    while folder.is_dir() and time.monotonic() < deadline:
        try:
            with file_lock(folder / "lock", str(folder), wait=False):
                return
        except StoreLocked:
            time.sleep(0.2)


def holder(folder: Path) -> str | None:
    """The process that works in a folder, in the words that it left there; None where none does.

    Of a process that was killed its words stay: what is no longer there is not believed. Takes no lock itself, which
    could stand in the way of one that begins.
    """
    try:
        said = (folder / "lock").read_text()
    except OSError:
        return None
    words = said.split()
    if len(words) < 4 or not words[1].isdigit():
        return None
    is_here = words[3] == socket.gethostname()
    return said if not is_here or Path("/proc", words[1]).exists() else None


def _this_process() -> str:
    command = shlex.join(["sak", *sys.argv[1:]])
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}, {command}"
