"""Reading batches ahead: one thread that hands out slots of the ring, a few that fill them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cache.errors import CacheError
from cache.ring import Field, Slot
from cache.sampler import Requests


class Prefetch:
    """The threads that fill slots for one iteration."""

    def __init__(
        self, slots: Sequence[Slot], fields: Sequence[Field], requests: Requests, start: int, num_threads: int
    ) -> None:
        self._fields, self._requests, self._num_threads = fields, requests, num_threads
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Slot | BaseException] = queue.SimpleQueue()
        self._stopped = threading.Event()
        for slot in slots:
            self.free(slot)
        self._thread = threading.Thread(target=self._run, args=(start,), name="cache-reader", daemon=True)
        self._thread.start()

    def take(self) -> Slot:
        """The next filled slot; raises what went wrong while it was read."""
        if self._stopped.is_set():
            raise CacheError("this iteration over the loader ended when another one began")
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def free(self, slot: Slot) -> None:
        """Give a slot back; the batch in it is stale from now on."""
        slot.generation += 1
        self._free.put(slot)

    def stop(self) -> None:
        """End the threads and wait for them."""
        self._stopped.set()
        self._free.put(None)
        self._thread.join()

    def _run(self, start: int) -> None:
        try:
            with ThreadPoolExecutor(self._num_threads, thread_name_prefix="cache-read") as pool:
                for number in range(start, len(self._requests.samples)):
                    slot = self._free.get()
                    if slot is None or self._stopped.is_set():
                        return
                    if slot.copies is not None:
                        slot.copies.synchronize()
                        slot.copies = None
                    jobs = [pool.submit(self._fill, slot, number, first) for first in range(self._num_threads)]
                    for job in jobs:
                        job.result()
                    self._ready.put(slot)
        except BaseException as error:  # whatever it is, the training loop must hear of it
            self._ready.put(error)

    def _fill(self, slot: Slot, number: int, first: int) -> None:
        samples = self._requests.samples[number, first :: self._num_threads].tolist()
        views = self._requests.views[number, first :: self._num_threads].tolist()
        for field, targets in zip(self._fields, slot.targets, strict=True):
            read_into: Callable[[int, int, memoryview], None] = field.rows.read_into
            for sample, view, target in zip(samples, views, targets[first :: self._num_threads], strict=True):
                read_into(sample, view, target)
