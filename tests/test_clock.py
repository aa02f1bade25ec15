"""Where a step's time goes: laps by part, on the host's clock and on a device's stream that is never waited for."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.clock import PARTS, StepClock


def test_laps_add_up_by_part_and_go_on_from_earlier_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.5, 12.5, 15.5, 15.75, 20.0])
    monkeypatch.setattr("pipeline.training.clock.time.monotonic", lambda: next(now))
    clock = StepClock(torch.device("cpu"), {"forward": 1.0})
    for part in ("data", "forward", "backward", "data", None):
        clock.lap(part)
    assert clock.seconds() == {**dict.fromkeys(PARTS, 0.0), "data": 0.75, "forward": 3.0, "backward": 3.0}


class Stream:
    """A device at work: `queued` is where the host has come to, `done` where the device has, in seconds."""

    queued = done = 0.0


class Event:
    """Of a stream; to wait for it is an error."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Stream.queued

    def query(self) -> bool:
        return self.at <= Stream.done

    def elapsed_time(self, other: Event) -> float:
        assert other.query(), "not passed yet"
        return 1000 * (other.at - self.at)


def test_on_a_gpu_laps_are_of_its_stream_and_count_once_it_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Stream.queued = Stream.done = 0.0
    clock = StepClock(torch.device("cuda", 0), {})
    for part, seconds in (("data", 0.5), ("forward", 1.0), ("backward", 2.0)):
        Stream.queued += seconds
        clock.lap(part)
    assert clock.seconds() == dict.fromkeys(PARTS, 0.0), "the device has not begun"
    Stream.done = 1.5
    Stream.queued += 0.25
    clock.lap("optimizer")
    assert clock.seconds() == {**dict.fromkeys(PARTS, 0.0), "data": 0.5, "forward": 1.0}
    Stream.done = Stream.queued = 4.0
    clock.lap(None)
    told = {"data": 0.5, "forward": 1.0, "backward": 2.0, "optimizer": 0.25}
    assert clock.seconds() == {**dict.fromkeys(PARTS, 0.0), **told}
