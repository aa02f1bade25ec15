"""Reading batches ahead: slots of the ring are filled by a few threads, in the order of their batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from typing import TYPE_CHECKING

from cache.errors import CacheError
from cache.loading.ring import Slot
from cache.loading.sampler import Int64
from cache.reading.rows import RowReader

if TYPE_CHECKING:
    import torch

RowsOf = Callable[[int], tuple[Int64, Int64]]


class Prefetch:
    """One iteration's reading. Every slot that is free is being filled with the next batch that nobody reads yet.

    No thread waits for another: each takes a share of an array's rows, of one batch after the other.

    Args:
        slots: the ring; batches in them are stale from now on.
        readers: of the arrays that a batch carries.
        rows: number of a batch -> its samples and views, int64 (B,) each.
        batches: numbers of the batches to read, in order.
        num_threads: that read.
    """

    def __init__(
        self, slots: Sequence[Slot], readers: Sequence[RowReader], rows: RowsOf, batches: range, num_threads: int
    ) -> None:
        self._readers, self._rows, self._num_threads = readers, rows, num_threads
        self._left = iter(batches)
        self._filling: deque[tuple[Slot, list[Future[None]]]] = deque()
        self.stopped = False
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="cache-read")
        for slot in slots:
            self.free(slot)

    def take(self) -> Slot:
        """The slot of the next batch, when it is filled. What went wrong while it was read is raised here."""
        self.check_running()
        slot, jobs = self._filling.popleft()
        for job in jobs:
            job.result()
        return slot

    def check_running(self) -> None:
        """Check that `stop` was not called.

        Raises:
            CacheError: it was: another iteration has begun.
        """
        if self.stopped:
            raise CacheError("this iteration over the loader ended when another one began")

    def free(self, slot: Slot) -> None:
        """Give a slot back; the batch in it is stale from now on. Once stopped, the slot is another iteration's."""
        if self.stopped:
            return
        slot.generation += 1
        copies, slot.copies = slot.copies, None
        number = next(self._left, None)
        if number is None:
            return
        samples, views = self._rows(number)
        shares = range(self._num_threads)
        arrays = range(len(self._readers))
        jobs = [self._pool.submit(self._fill, slot, samples, views, *job, copies) for job in product(arrays, shares)]
        self._filling.append((slot, jobs))

    def stop(self) -> None:
        """End the threads and wait for them."""
        self.stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(
        self, slot: Slot, samples: Int64, views: Int64, array: int, share: int, copies: torch.cuda.Event | None
    ) -> None:
        if copies is not None:
            copies.synchronize()  # the GPU may still read what was in the slot before
        size = -(-len(samples) // self._num_threads)
        mine = slice(share * size, (share + 1) * size)
        self._readers[array].read_rows(samples[mine].tolist(), views[mine].tolist(), slot.targets[array][mine])
