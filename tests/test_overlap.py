"""Threads beside the teacher: order, bounds and errors; and how a teacher runs is part of what it is."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.store import Store
from pipeline.extraction.overlap import Ahead, Behind
from tests.conftest import answer, refusal, sak


def test_items_come_in_order_and_no_more_than_asked_for_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    ahead = Ahead(items(), 3, "test")
    with ahead as taken:
        for count, number in enumerate(taken):
            assert number == count and len(made) <= count + 1 + 3
    assert len(made) == 20 and ahead.waited_s >= 0


def test_an_error_ahead_is_raised_where_its_item_would_be() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("gone")

    with Ahead(items(), 2, "test") as taken:
        assert next(taken) == 1
        with pytest.raises(ValueError, match="gone"):
            next(taken)


def test_jobs_are_done_in_order_and_waited_for() -> None:
    done: list[int] = []
    with Behind(2, "test") as behind:
        for number in range(9):
            behind.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == list(range(9))


def test_no_more_jobs_are_unfinished_than_agreed() -> None:
    gate, begun = threading.Semaphore(0), itertools.count()
    running: list[int] = []

    def job() -> None:
        running.append(next(begun))
        gate.acquire()

    with Behind(2, "test") as behind:
        behind.submit(job)
        behind.submit(job)
        threading.Timer(0.2, gate.release).start()
        behind.submit(job)  # returns when the first one is done
        assert behind.waited_s > 0 and len(running) <= 2
        gate.release(2)
    assert len(running) == 3


def test_a_jobs_error_reaches_who_hands_over_the_next_one() -> None:
    done: list[int] = []

    def fail() -> None:
        raise ValueError("disk")

    with pytest.raises(ValueError, match="disk"), Behind(1, "test") as behind:
        behind.submit(fail)
        behind.submit(lambda: done.append(1))
    assert not done
    with pytest.raises(ValueError, match="disk"), Behind(1, "test") as behind:
        behind.submit(fail)  # the last one: the end of the block raises


def test_precision_and_batch_size_are_provenance(tmp_path: Path) -> None:
    arguments = ["--teacher", "mini-dino", "--split", "val", "--limit", "20", "--threads", "1", "--decoders", "0"]
    sak("cache", *arguments, "--precision", "bf16", "--batch-size", "7", "--out", tmp_path)
    sak("cache", *arguments, "--batch-size", "7", "--out", tmp_path / "fp32")
    half, full = (Store.open(next(out.glob("*.zarr"))) for out in (tmp_path, tmp_path / "fp32"))
    assert half.teacher("mini-dino").provenance["precision"] == "bf16"
    difference = abs(half.features("mini-dino", 3)[4, 0] - full.features("mini-dino", 3)[4, 0]).max()
    assert 0 < difference < 0.2 * abs(full.features("mini-dino", 3)[4, 0]).max()
    for name, *option in (
        ("precision", "--precision", "fp16", "--batch-size", "7"),
        ("compile", "--precision", "bf16", "--batch-size", "7", "--compile"),
        ("batch_size", "--precision", "bf16", "--batch-size", "4"),
    ):
        said = refusal("cache", *arguments, *option, "--views", "1", "--out", tmp_path)
        assert f"provenance.{name}" in said


@pytest.mark.slow
def test_a_compiled_teacher_gives_the_teachers_features(tmp_path: Path) -> None:
    arguments = ["--teacher", "mini-dino", "--split", "val", "--limit", "20", "--threads", "1", "--codec", "fp32"]
    first = answer("cache", *arguments, "--compile", "--out", tmp_path / "compiled")
    sak("cache", *arguments, "--out", tmp_path / "plain")
    compiled, plain = (Store.open(next(out.glob("*.zarr"))) for out in (tmp_path / "compiled", tmp_path / "plain"))
    assert compiled.teacher("mini-dino").provenance["compile"] is True and first["timings"]["mini-dino"]["rows"] == 20
    found, expected = (store.features("mini-dino", 3)[:, 0] for store in (compiled, plain))
    assert abs(found - expected).max() < 1e-3 * abs(expected).max()
