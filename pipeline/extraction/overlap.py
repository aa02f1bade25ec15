"""Work beside the main thread: what it needs next is made ahead of it, what it made is put away behind it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
_END = object()


class Ahead(Generic[T]):
    """The items of an iterator, made by a thread, at most `depth` of them before they are taken.

    Attributes:
        waited_s: seconds that taking had to wait.
    """

    def __init__(self, items: Iterator[T], depth: int, name: str) -> None:
        self.waited_s = 0.0
        self._items = items
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._jobs = deque(self._pool.submit(self._next) for _ in range(depth))

    def _next(self) -> T | object:
        return next(self._items, _END)

    def __enter__(self) -> Iterator[T]:
        return self._take()

    def _take(self) -> Iterator[T]:
        while True:
            began = time.monotonic()
            item = self._jobs.popleft().result()
            self.waited_s += time.monotonic() - began
            if item is _END:
                return
            self._jobs.append(self._pool.submit(self._next))
            yield item  # type: ignore[misc]

    def __exit__(self, *_: object) -> None:
        # not waited for: the thread may wait for what will not come any more, and whoever makes that ends it
        self._pool.shutdown(wait=False, cancel_futures=True)


class Behind:
    """Jobs done by a thread, in order, at most `depth` of them unfinished. Leaving the block waits for all of them;
    leaving it by an error drops what has not begun.

    Attributes:
        waited_s: seconds that handing over, and the end of the block, had to wait.
    """

    def __init__(self, depth: int, name: str) -> None:
        self.waited_s = 0.0
        self._depth = depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._jobs: deque[Future[object]] = deque()

    def submit(self, job: Callable[[], object]) -> None:
        """Hand a job over. What an earlier one raised is raised here."""
        while len(self._jobs) >= self._depth:
            self._wait()
        self._jobs.append(self._pool.submit(job))

    def _wait(self) -> None:
        began = time.monotonic()
        try:
            self._jobs.popleft().result()
        finally:
            self.waited_s += time.monotonic() - began

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            while self._jobs and kind is None:
                self._wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
