"""Long items in worker processes: what ends one ends all, and no worker begins another after it was asked to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from pipeline.advice import explain
from pipeline.console import each_in_worker
from pipeline.interrupts import Interrupted


def squared(number: int) -> int:
    return number * number


def begun_and_stopped(item: tuple[Path, int]) -> None:
    """Stop as training does when asked to, once another item runs, too; the others go on until they are ended."""
    folder, number = item
    (folder / str(number)).touch()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if number == 0 and len(list(folder.iterdir())) == 2:
            raise Interrupted(15)
        time.sleep(0.05)
    (folder / f"{number} ended").touch()


def killed(number: int) -> int:
    """As the system kills a process when memory is short."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_worker_that_is_killed_is_said_in_words() -> None:
    with pytest.raises(BrokenExecutor) as told:
        list(each_in_worker(killed, range(3), 2))
    said = explain(told.value)
    assert said and "a worker process was killed" in said and "fewer processes" in said


def test_every_item_is_done_once() -> None:
    assert sorted(each_in_worker(squared, range(7), 2)) == [number**2 for number in range(7)]
    assert list(each_in_worker(squared, [], 2)) == []


def test_no_item_begins_after_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        list(each_in_worker(begun_and_stopped, [(tmp_path, number) for number in range(5)], 2))
    # the third did not begin, and the second was ended, not waited for
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_an_item_that_becomes_ready_by_an_ended_one_is_begun() -> None:
    seen: list[int] = []

    def ready() -> Iterator[int | None]:
        yield 2
        while not seen:
            yield None
        yield 9

    for square in each_in_worker(squared, ready(), workers=2):
        seen.append(square)
    assert seen == [4, 81]
