"""One writer a part: among processes by `flock`, freed by the kernel when one is killed; among threads by `Holds`."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cache.errors import StoreFull, StoreLocked, WriteFailed
from cache.places.files import is_full, make_directories, open_file, warn_of_place, what_is_full

OnWait = Callable[[str], None]
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})


@contextmanager
def file_lock(path: Path, what: str, wait: bool, on_wait: OnWait | None = None) -> Iterator[None]:
    """Hold the lock file at `path` (created, empty, never deleted) while the block runs.

    Args:
        what: what is locked, for messages.
        wait: wait for another process, or refuse.
        on_wait: is told once that there is something to wait for.

    Where the file system has no locks, a `PlaceWarning` says so and the block runs.

    Raises:
        StoreLocked: another process holds it and `wait` is false.
        WriteFailed: the lock file cannot be made.
    """
    try:
        make_directories(path.parent)
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if is_full(error):
            raise StoreFull(f"{what_is_full(path.parent, 1, 0)}: {what} cannot be locked") from error
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
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise WriteFailed(f"cannot lock {what}: {error}") from error
            warn_of_place(
                path,
                f"its file system has no locks ({error.strerror}): nothing keeps two processes from writing the same "
                "part of a store at once, so start one at a time",
            )
        yield
    finally:
        os.close(descriptor)


@dataclass
class _Hold:
    """A thread's hold on a name: how often it is nested, and what gives the name back to other processes."""

    thread: int
    depth: int = 0
    is_taken: bool = False
    taken: ExitStack = field(default_factory=ExitStack)


class Holds:
    """Which thread of this process holds which name; the one that does may hold it again.

    A hold may end in another thread than it began in, as where a worker takes over what its caller has locked.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, _Hold] = {}
        self._changed = threading.Condition()

    @contextmanager
    def hold(
        self,
        name: str,
        what: str,
        take: Callable[[], AbstractContextManager[None]],
        wait: bool,
        on_wait: OnWait | None = None,
    ) -> Iterator[None]:
        """Be the only thread that holds `name` while the block runs; may be nested.

        Args:
            what: what is held, for messages.
            take: what the outermost hold enters, and the last one that ends leaves.
            wait, on_wait: as of `file_lock`.

        Raises:
            StoreLocked: another thread holds it and `wait` is false; and what `take` raises.
        """
        hold = self._begin(name, what, wait, on_wait)
        try:
            if not hold.is_taken:
                hold.taken.enter_context(take())
                hold.is_taken = True
            yield
        finally:
            self._end(name, hold)

    def _begin(self, name: str, what: str, wait: bool, on_wait: OnWait | None) -> _Hold:
        me = threading.get_ident()
        message = f"another thread of this process works on {what}"
        with self._changed:
            if name in self._by_name and self._by_name[name].thread != me:
                if not wait:
                    raise StoreLocked(f"{message}; wait until it ends, and run this again")
                if on_wait is not None:
                    on_wait(f"{message}; waiting for it to end")
                self._changed.wait_for(lambda: name not in self._by_name)
            hold = self._by_name.setdefault(name, _Hold(me))
            hold.depth += 1
            return hold

    def _end(self, name: str, hold: _Hold) -> None:
        with self._changed:
            hold.depth -= 1
            if not hold.depth:
                del self._by_name[name]
                hold.taken.close()
                self._changed.notify_all()
