"""What all benchmarks share: sides that take turns, checksums of what they deliver, medians with ranges."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from cache.format.checksums import crc32c
from cache.places.local import LocalPlace
from cache.places.open_files import OpenFile, Range
from pipeline.machine import processor


@dataclass
class Side:
    """One way of doing it.

    Attributes:
        name: in the table.
        batches: called with a round's number, gives the round's batches, each array-like (rows, ...).
        package: whose version the table shows.
        note: what a reader must know about it.
        before: called before each round, not timed.
    """

    name: str
    batches: Callable[[int], Iterable[Any]]
    package: str | None = None
    note: str = ""
    before: Callable[[], None] = lambda: None


@dataclass
class Row:
    """A side's results: seconds of each round, bytes of a round, checksum of the rows it delivered.

    Attributes:
        unit: of its rates.
        amount: how many of the unit a round makes; None for its bytes, in GB.
    """

    side: str
    package: str
    note: str
    num_bytes: int = 0
    checksum: str = ""
    seconds: list[float] = field(default_factory=list)
    unit: str = "GB/s"
    amount: float | None = None

    @property
    def rates(self) -> list[float]:
        """`unit` of each round."""
        amount = self.num_bytes / 1e9 if self.amount is None else self.amount
        return [amount / seconds for seconds in self.seconds]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        rates = self.rates
        return {
            "side": self.side,
            "package": self.package,
            "note": self.note,
            self.unit.lower().replace("/", "_per_"): round(statistics.median(rates), 3) if rates else None,
            "range": [round(min(rates), 3), round(max(rates), 3)] if rates else None,
            "seconds": [round(seconds, 6) for seconds in self.seconds],
            "bytes": self.num_bytes,
            "checksum": self.checksum,
        }


@dataclass
class Result:
    """What a benchmark says.

    Attributes:
        goal: in words.
        value: the figures that the goal is about.
        holds: whether they meet it; None where a peer that the goal names is not installed.
    """

    name: str
    goal: str
    value: dict[str, float]
    holds: bool | None
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "name": self.name,
            "goal": self.goal,
            "value": {key: round(value, 3) for key, value in self.value.items()},
            "holds": self.holds,
            "machine": machine(),
            "rows": [row.to_dict() for row in self.rows],
        }


def machine() -> str:
    """Processor, cores, kernel and Python."""
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{processor()}, {os.cpu_count()} cores, {system}"


def installed(package: str | None) -> str:
    """A package's name and version, or a dash."""
    if package is None:
        return "-"
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def checksum(batches: Iterable[Any]) -> tuple[str, int]:
    """A sum over rows of their crc32c, the same in any order, and the bytes of all rows."""
    total = num_bytes = 0
    for batch in batches:
        for row in np.asarray(batch):
            data = np.ascontiguousarray(row).reshape(-1).view(np.uint8)
            total += crc32c(data.data)
            num_bytes += data.nbytes
    return f"{total % 2**64:016x}", num_bytes


def measure(sides: Sequence[Side], rounds: int) -> list[Row]:
    """Time `rounds` rounds of every side, taking turns; before that, each delivers once and is checked.

    Raises:
        AssertionError: a side delivers other bytes than the first one.
    """
    rows = []
    for side in sides:
        row = Row(side.name, installed(side.package), side.note)
        row.checksum, row.num_bytes = checksum(side.batches(0))
        assert row.checksum == (rows or [row])[0].checksum, f"{side.name} delivers other bytes than {rows[0].side}"
        rows.append(row)
    for number in range(1, rounds + 1):
        for side, row in zip(sides, rows, strict=True):
            side.before()
            start = time.perf_counter()
            for _ in side.batches(number):
                pass
            row.seconds.append(time.perf_counter() - start)
    return rows


def table(result: Result) -> str:
    """A result for people."""
    lines = [f"{result.name}: {machine()}", ""]
    width = max(len(row.side) for row in result.rows)
    for row in result.rows:
        if row.seconds:
            rates = row.rates
            speed = f"{statistics.median(rates):7.2f} {row.unit}  ({min(rates):.2f}-{max(rates):.2f})"
        else:
            speed = "      -"
        lines.append(f"  {row.side:{width}}  {speed:30}  {row.package:22}  {row.note}".rstrip())
    values = ", ".join(f"{key} {value:.2f}" for key, value in result.value.items())
    lines += [
        "",
        f"goal: {result.goal}",
        f"{values}: {'holds' if result.holds else 'does not hold' if result.holds is False else 'open'}",
    ]
    return "\n".join(lines)


class SlowPlace(LocalPlace):
    """A folder whose requests take `delay_s` longer, as over a network."""

    def __init__(self, path: Path, delay_s: float) -> None:
        super().__init__(path)
        self.delay_s = delay_s

    def __truediv__(self, name: str) -> SlowPlace:
        """See `Place`."""
        return SlowPlace(self.path / name, self.delay_s)

    def open(self, name: str, num_bytes: int) -> OpenFile:
        """See `Place`."""
        return _SlowFile(super().open(name, num_bytes), self.delay_s)


class _SlowFile(OpenFile):
    def __init__(self, file: OpenFile, delay_s: float) -> None:
        self._file, self._delay_s, self.shown = file, delay_s, file.shown

    def read(self, start: int, num_bytes: int) -> bytes:
        """See `OpenFile`."""
        time.sleep(self._delay_s)
        return self._file.read(start, num_bytes)

    def read_into(self, ranges: Sequence[Range]) -> None:
        """See `OpenFile`."""
        time.sleep(self._delay_s * len(ranges))
        self._file.read_into(ranges)
