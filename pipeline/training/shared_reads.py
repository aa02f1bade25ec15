"""One read, many students: runs that read the same rows in the same order, side by side from one stream of batches.

Every run goes through its own loop, in a thread of its own; a lock that goes round sees to it that one of them works
at a time, in turn, on every batch. A run has its own random state, optimizer and checkpoints, and does not know that it
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


class WorkerSlot:
    """One worker of a group: a run and its thread. To the run it is a loader, whose batches the group hands it.

    Attributes:
        idle_s: seconds in which other runs had the lock.
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

    # -- the group's side --------------------------------------------------------------------------

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
        except BaseException as error:  # `run_sharing` raises it in its own thread
            self.error = error
        self.is_done = True
        self._back.release()

    # -- the run's side ----------------------------------------------------------------------------

    def share(self, loader: Batches) -> Batches:
        """Take the run's own loader, which is not read.

        Raises:
            UserError: batches do not come from a cache.
        """
        if not isinstance(loader, Loader):
            raise UserError("source = 'live' has no batches to share; leave --share-reads out")
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

    def close(self) -> None:
        """Nothing: the other runs' reading goes on."""

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


def run_sharing(works: Sequence[Callable[[Share], Result]], parts: int) -> list[Result]:
    """The results of runs that are trained side by side, in their order.

    A run that fails ends alone; the others go on, and its error is raised at the end.

    Args:
        works: each trains one run, passing its loader through what it is given.
        parts: batches of a step.

    Raises:
        StateMismatch: the runs do not read the same rows in the same order, see `Loader.union`.
    """
    with interrupts.stop_requests() as request, interrupts.shared(request):
        slots = [WorkerSlot(work) for work in works]
        for slot in slots:
            slot.turn()
        while waiting := [slot for slot in slots if not slot.is_done]:
            # runs that were stopped at other places go on first, until they are level
            behind = min(slot.position for slot in waiting)
            _serve([slot for slot in waiting if slot.position == behind], waiting, parts)
    for slot in slots:
        if slot.error:
            raise slot.error
    return [slot.result for slot in slots]


def _serve(slots: Sequence[WorkerSlot], waiting: Sequence[WorkerSlot], parts: int) -> None:
    """Batches for `slots` from one loader, until one ends or they have caught up with others of `waiting`."""
    loader = Loader.union([slot.loader for slot in slots if slot.loader])
    epoch, number = slots[0].position
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "batch": number})
    others = {slot.position for slot in waiting if slot not in slots}
    for batch in endless(loader, parts):
        moved = batch.to("cuda" if torch.cuda.is_available() else "cpu")
        for slot in slots:
            slot.turn(moved)
        if any(slot.is_done for slot in slots) or slots[0].position in others:
            return
