"""One read, many students: runs that read the same rows in the same order, side by side from one stream of batches.

Every run goes through its own loop, in a thread of its own; a baton sees to it that one of them works at a time, in
turn, each batch once around. A run has its own random state, optimizer and checkpoints, and does not know that it
shares what it reads: its weights are those of training alone, bit for bit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from cache.loading.batch import Batch
from cache.loading.loader import Loader
from pipeline import interrupts
from pipeline.errors import UserError
from pipeline.runs.checkpoint import random_state, set_random_state
from pipeline.training.loop import Batches, endless

Result = TypeVar("Result")
Share = Callable[[Batches], Batches]
"""What a run passes its loader through, to be given the shared batches in its place."""


class Seat:
    """A run's place at the table: a loader to the run, whose batches the table hands it.

    idle_s: seconds in which other runs had the baton.
    """

    def __init__(self, work: Callable[[Share], Any]) -> None:
        self.loader: Loader | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done, self.idle_s = False, 0.0
        self._epoch, self._next = 0, 0
        self._given: Batch | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._random = random_state()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)

    # -- the table's side --------------------------------------------------------------------------

    def turn(self, batch: Batch | None = None) -> None:
        """Let the run work, with `batch`, until it asks for the next one or ends."""
        self._given = batch
        outside = random_state()
        set_random_state(self._random)
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._back.acquire()
        self._random = random_state()
        set_random_state(outside)

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and number of the next batch."""
        return self._epoch, self._next

    def _run(self, work: Callable[[Share], Any]) -> None:
        self._go.acquire()
        try:
            self.result = work(self.share)
        except BaseException as error:  # the table raises it in its own thread
            self.error = error
        self.is_done = True
        self._back.release()

    # -- the run's side ----------------------------------------------------------------------------

    def share(self, loader: Batches) -> Batches:
        """Take the run's own loader, which is not read. Raises `UserError` where batches do not come from a cache."""
        if not isinstance(loader, Loader):
            raise UserError("source = 'live' has no batches to share; leave --together out")
        self.loader = loader
        self._epoch, self._next = loader.epoch, 0
        return self

    @property
    def epoch(self) -> int:
        """See `Loader.epoch`."""
        return self._epoch

    def __len__(self) -> int:
        assert self.loader
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """See `Loader.set_epoch`."""
        if epoch != self._epoch:
            self._epoch, self._next = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The state of the run's own loader, had it been read."""
        assert self.loader
        return {**self.loader.state_dict(), "epoch": self._epoch, "batch": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Loader.load_state_dict`."""
        assert self.loader
        self.loader.load_state_dict(state)
        self._epoch, self._next = state["epoch"], state["batch"]

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self._next, len(self)):
            began = time.monotonic()
            self._back.release()
            self._go.acquire()
            self.idle_s += time.monotonic() - began
            batch, self._given = self._given, None
            assert batch is not None
            self._next = number + 1
            yield batch
            del batch


def run_together(works: Sequence[Callable[[Share], Result]], parts: int) -> list[Result]:
    """The results of runs that are trained side by side, in their order.

    works: each trains one run, passing its loader through what it is given. parts: batches of a step.
    A run that fails ends alone; the others go on, and its error is raised at the end. Raises what `Loader.union`
    raises where the runs do not read the same rows in the same order.
    """
    with interrupts.stop_requests() as request, interrupts.shared(request):
        seats = [Seat(work) for work in works]
        for seat in seats:
            seat.turn()
        while waiting := [seat for seat in seats if not seat.is_done]:
            # runs that were stopped at other places go on first, until they are level
            behind = min(seat.position for seat in waiting)
            _serve([seat for seat in waiting if seat.position == behind], waiting, parts)
    for seat in seats:
        if seat.error:
            raise seat.error
    return [seat.result for seat in seats]


def _serve(seats: Sequence[Seat], waiting: Sequence[Seat], parts: int) -> None:
    """Batches for `seats` from one loader, until one ends or they have caught up with others of `waiting`."""
    loader = Loader.union([seat.loader for seat in seats if seat.loader])
    epoch, number = seats[0].position
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "batch": number})
    others = {seat.position for seat in waiting if seat not in seats}
    for batch in endless(loader, parts):
        moved = batch.to("cuda" if torch.cuda.is_available() else "cpu")
        for seat in seats:
            seat.turn(moved)
        if any(seat.is_done for seat in seats) or seats[0].position in others:
            return
