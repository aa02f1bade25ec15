"""Where the time of training goes: waiting for data, forward, backward, optimizer, logging, saving."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

import torch

PARTS = ("data", "forward", "backward", "optimizer", "logging", "saving")
"""Of a step. data: waiting for a batch and moving it to the device. optimizer: clipping and averaged weights, too.
saving: checkpoints and validation."""

Mark = float | torch.cuda.Event


class StepClock:
    """Adds up seconds by part, lap after lap; the first begins at once.

    On CUDA a lap lies between two events of the device's stream, so that it is of the device's own time, and the host
    waits for nothing: a lap counts once its last event has passed. Elsewhere it is of the host's clock.

    Args:
        spent: seconds by part of earlier sessions.
    """

    def __init__(self, device: torch.device, spent: Mapping[str, float]) -> None:
        self._is_cuda = device.type == "cuda"
        self._spent = {part: float(spent.get(part, 0.0)) for part in PARTS}
        self._open: deque[tuple[str, Mark, Mark]] = deque()
        self._begun = self._mark()

    def lap(self, part: str | None) -> None:
        """End a lap, whose time is `part`'s (None: nobody's), and begin the next."""
        begun, self._begun = self._begun, self._mark()
        if part is not None:
            self._open.append((part, begun, self._begun))
        while self._open and (seconds := _between(*self._open[0][1:])) is not None:
            self._spent[self._open.popleft()[0]] += seconds

    def seconds(self) -> dict[str, float]:
        """By part, of the laps that count so far."""
        return {part: round(seconds, 3) for part, seconds in self._spent.items()}

    def _mark(self) -> Mark:
        if not self._is_cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _between(begun: Mark, ended: Mark) -> float | None:
    """Seconds; None where the device has not come to `ended` yet."""
    if isinstance(begun, float) or isinstance(ended, float):
        assert isinstance(begun, float) and isinstance(ended, float)
        return ended - begun
    has_passed: bool = ended.query()  # type: ignore[no-untyped-call]
    return begun.elapsed_time(ended) / 1000 if has_passed else None
