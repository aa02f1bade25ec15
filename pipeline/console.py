"""What a person sees: messages and progress on stderr, tables (or one JSON value) on stdout.

In a notebook, where stderr is shown as errors are, only warnings go there: messages go to the cell's output, and each
progress is one line of it that is kept up to date.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from rich.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

PLAIN_INTERVAL_S = 5.0
"""Seconds between progress lines where stderr is not a terminal."""
CELL_INTERVAL_S = 0.5
"""Seconds between updates of a progress in a notebook."""

_STEERING = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")
"""Control characters but tab, end of line and the sequences that set colours."""

_plain = False
_silent = False
_bars: Progress | None = None
_num_bars = 0
_bars_lock = threading.Lock()


def say(message: str) -> None:
    """Print a message for people: on stderr, or in a notebook's cell."""
    _print(message, sys.stdout if in_notebook() else sys.stderr)


def warn(message: str) -> None:
    """Print a warning on stderr, in red on a terminal."""
    _print(f"\033[31m{message}\033[0m" if sys.stderr.isatty() else f"warning: {message}", sys.stderr)


def harmless(text: str) -> str:
    r"""`text` without what would steer a terminal, but for colours: names and reasons come from files of anyone.

    >>> harmless("a\x1b[31mb\x1b[0m\x1b]0;title\x07c")
    'a\x1b[31mb\x1b[0m�]0;title�c'
    """
    return _STEERING.sub("\ufffd", text)


def _print(message: str, file: TextIO) -> None:
    if not _silent:
        print(f"{harmless(message)}\n", end="", file=file, flush=True)  # in one piece, whatever other threads say


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return not _plain and getattr(shell, "kernel", None) is not None


def red(text: str) -> str:
    """Part of a result's text, in red where stdout is a terminal."""
    return f"\033[31m{text}\033[0m" if sys.stdout.isatty() else text


def number(value: float | None, form: str = ".4g") -> str:
    """A score in words, "-" where there is none."""
    return "-" if value is None else format(value, form)


def spread(mean: float | None, std: float | None, digits: int) -> str:
    """A mean and its standard deviation in words, "-" where there is no mean."""
    return number(mean, f".{digits}f") + ("" if mean is None or std is None else f" ± {std:.{digits}f}")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(map(line, (columns, rule, *rows)))


def duration(seconds: float) -> str:
    """Seconds as `41 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes} min {s:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def amount(num_bytes: float) -> str:
    """A number of bytes with a decimal unit: `3.1 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show progress of `total` units, `done` of which an earlier run made; yields `advance(n=1, note="")`.

    A bar with rate and time left on a terminal, in a notebook a line that is kept up to date, plain lines otherwise.
    A note stays until the next one.
    """
    if in_notebook():
        shown = _lines(title, total, unit, done, CELL_INTERVAL_S, _cell_line(f"{title}: {done}/{total} {unit}"))
    elif sys.stderr.isatty() and not _plain:
        shown = _bar(title, total, unit, done)
    else:
        shown = _lines(title, total, unit, done, PLAIN_INTERVAL_S, say)
    with shown as advance:
        yield advance


def _cell_line(first: str) -> Callable[[str], None]:
    """Show a line in a notebook's cell; returns what puts another text in its place."""
    display = import_module("IPython.display").display
    line = display({"text/plain": first}, raw=True, display_id=True)
    return lambda text: line.update({"text/plain": text}, raw=True)


@contextmanager
def _bar(title: str, total: int, unit: str, done: int) -> Iterator[Callable[..., None]]:
    start, current, told = time.monotonic(), done, ""
    with _shared_bars() as bars:
        task = bars.add_task(title, total=total, completed=done, unit=unit, rate="", note="")

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal current, told
            current, told = current + n, note or told
            speed = (current - done) / max(time.monotonic() - start, 1e-6)
            bars.update(task, completed=current, rate=f"{speed:.1f} {unit}/s", note=told)

        yield advance


@contextmanager
def _shared_bars() -> Iterator[Progress]:
    """The display of all bars of this process: threads that work side by side show theirs below each other."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    global _bars, _num_bars
    with _bars_lock:
        if _bars is None:
            rate = TextColumn("{task.fields[unit]} {task.fields[rate]} {task.fields[note]}")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
            _bars = Progress(*columns, console=Console(stderr=True))
            _bars.start()
        _num_bars += 1
        bars = _bars
    try:
        yield bars
    finally:
        with _bars_lock:
            _num_bars -= 1
            if not _num_bars:
                bars.stop()
                _bars = None


@contextmanager
def _lines(
    title: str, total: int, unit: str, done: int, interval_s: float, show: Callable[[str], None]
) -> Iterator[Callable[..., None]]:
    """Progress as lines of text, one at most every `interval_s`."""
    start = last = time.monotonic()
    current, told = done, ""

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal current, last, told
        current, told = current + n, note or told
        now = time.monotonic()
        if now - last >= interval_s or current >= total:
            last = now
            speed = (current - done) / max(now - start, 1e-6)
            left = "" if current >= total or not speed else f", {duration((total - current) / speed)} left"
            show(f"{title}: {current}/{total} {unit}, {speed:.1f} {unit}/s{left}{'  ' + told if told else ''}")

    yield advance


def start_worker() -> None:
    """Set up a worker process: Ctrl-C is its parent's to answer, progress comes as plain lines, and it ends with
    its parent, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _plain
    _plain = True
    _end_with_parent()


def worker_pool(workers: int, begin: Callable[..., None] = start_worker, *given: Any) -> ProcessPoolExecutor:
    """So many processes, each of which calls `begin` with what is `given` first: `start_worker`, or what calls that.

    They are spawned: a fork of a process whose torch has run threads may hang.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=begin, initargs=given)


def each_in_worker(work: Callable[[Item], Result], items: Iterable[Item | None], workers: int) -> Iterator[Result]:
    """What `work` gives for each of the items, which are long ones, in the order of their ends.

    A worker is handed the next item when it is free, not before: else it would begin another one after it was asked to
    stop. An item of None is none yet: the next is asked for when one that runs has ended, and the caller has seen what
    it gave.
    What ends the caller, or one item, ends all workers by SIGTERM, upon which training saves; they are waited for.
    """
    from concurrent.futures import FIRST_COMPLETED, Future, wait

    left = iter(items)
    with worker_pool(workers) as pool:
        running: set[Future[Result]] = set()
        try:
            while True:
                while len(running) < workers and (item := next(left, None)) is not None:
                    running.add(pool.submit(work, item))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def follow(ends_with_parent: bool = True) -> None:
    """Set up a process that trains beside a leading one: it is silent, and may end with the one that started it."""
    global _plain, _silent
    _plain = _silent = True
    if ends_with_parent:
        _end_with_parent()


def silence() -> None:
    """Leave speaking to another process."""
    global _silent
    _silent = True


def is_silent() -> bool:
    """Whether this process leaves speaking to another."""
    return _silent


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
