"""Asked to stop: Ctrl-C and SIGTERM, answered where it is safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal. `exit_code` is 128 + its number: 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        """A worker's way to its parent."""
        return Interrupted, (self.exit_code - 128,)


@dataclass
class StopRequest:
    """Whether a signal asked to stop.

    Attributes:
        number: of the signal, 0 while none did.
    """

    number: int = 0


_shared: StopRequest | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within, the first Ctrl-C or SIGTERM is noted and not raised; a second one raises `Interrupted` at once.

    A signal that is ignored stays so. Outside of the main thread signals cannot be caught: what the main thread
    shares is noted, or nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _shared or StopRequest()
        return
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.number:
            raise Interrupted(number)
        request.number = number

    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shared(request: StopRequest) -> Iterator[None]:
    """Within, the main thread's `request` is that of every other thread, too."""
    global _shared
    _shared = request
    try:
        yield
    finally:
        _shared = None
