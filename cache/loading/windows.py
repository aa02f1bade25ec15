"""Block order: windows of an epoch are read whole, run by run, and batches are gathered from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cache.loading.prefetch import Prefetch
from cache.loading.ring import Slot
from cache.loading.sampler import Int64, Requests
from cache.reading.rows import RowReader


class WindowPrefetch:
    """As `Prefetch`, for requests in block order. One window is read ahead while another is given out.

    Args:
        slots: for the batches; those in them are stale from now on.
        windows: two slots of a window each.
        readers: of the arrays that a batch carries.
        requests: an epoch's rows.
        start: the first batch to give.
        window_batches: batches that come from one window.
        num_threads: that read.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        windows: Sequence[Slot],
        readers: Sequence[RowReader],
        requests: Requests,
        start: int,
        window_batches: int,
        num_threads: int,
    ) -> None:
        self._requests, self._window_batches = requests, window_batches
        self._next = start
        self._free: list[Slot] = []
        count = -(-len(requests.samples) // window_batches)
        self._reading = Prefetch(windows, readers, self._rows, range(start // window_batches, count), num_threads)
        self._window: Slot | None = None
        self._places: Int64 = np.empty(0, np.int64)
        for slot in slots:
            self.free(slot)

    def check_running(self) -> None:
        """See `Prefetch`."""
        self._reading.check_running()

    def take(self) -> Slot:
        """See `Prefetch`."""
        self.check_running()
        inside = self._next % self._window_batches
        if self._window is None or inside == 0:
            if self._window is not None:
                self._reading.free(self._window)
            self._window = self._reading.take()
            self._places = np.argsort(self._order(self._next // self._window_batches))
        slot = self._free.pop(0)
        copies, slot.copies = slot.copies, None
        if copies is not None:
            copies.synchronize()  # the GPU may still read what was in the slot before
        size = self._requests.samples.shape[1]
        rows = self._places[inside * size : (inside + 1) * size]
        for source, target in zip(self._window.arrays, slot.arrays, strict=True):
            np.take(source, rows, 0, target, mode="clip")  # the mode that copies once; no row is out of bounds
        self._next += 1
        return slot

    def free(self, slot: Slot) -> None:
        """See `Prefetch`."""
        if self._reading.stopped:
            return
        slot.generation += 1
        self._free.append(slot)

    def stop(self) -> None:
        """See `Prefetch`."""
        self._reading.stop()

    def _window_of(self, number: int) -> tuple[Int64, Int64]:
        batches = slice(number * self._window_batches, (number + 1) * self._window_batches)
        return self._requests.samples[batches].reshape(-1), self._requests.views[batches].reshape(-1)

    def _order(self, number: int) -> Int64:
        """The rows of a window as they lie in the store: positions in the order in which they are given out."""
        samples, views = self._window_of(number)
        return np.lexsort((samples, views))

    def _rows(self, number: int) -> tuple[Int64, Int64]:
        order = self._order(number)
        samples, views = self._window_of(number)
        return samples[order], views[order]
