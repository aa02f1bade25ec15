"""Batches of pixels, labels and several teachers' features, zipped by row, read ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Literal

import torch

from cache.errors import BadInput, StateMismatch, UncommittedRow
from cache.format.manifest import SOURCE, teacher_part
from cache.loading.batch import Batch, guard
from cache.loading.decoding import TeacherDecoder
from cache.loading.prefetch import Prefetch
from cache.loading.ring import Slot
from cache.loading.sampler import Requests, SamplerConfig, epoch_requests, num_batches
from cache.loading.windows import WindowPrefetch
from cache.places.files import FileDigest
from cache.reading.rows import RowReader
from cache.store import Store
from sak_common.differences import first_difference

STATE_VERSION = 1


class Loader:
    """Iterates over one epoch at a time; call `set_epoch` before each.

    A background thread reads batches ahead, `num_threads` threads share the rows of each. **A batch is valid
    until the next one is asked for**: its tensors see memory that goes round. Take `batch.to(device)`, which
    owns its memory, or clone what must last. One iteration runs at a time; starting another ends it.

    Args:
        store: to read from.
        teachers: names whose features are read, all levels; or name -> levels.
        labels: tasks whose labels are read.
        prefixes: those of the teachers whose class and register tokens are read, too.
        batch_size: rows a batch, B.
        num_views: V, at most what is committed; fixed for a run.
        seed: of the order and of each sample's first view.
        shuffle: a new order each epoch, or ascending. ``"block"`` reads runs of neighbouring rows into a buffer
            and shuffles there: for places where a request costs far more than its bytes, see `cache.loading.sampler`.
        drop_last: leave out what does not fill a batch on every process, or pad with rows of weight 0;
            by default as `shuffle`, so training cuts and evaluation pads.
        rank, world_size: this process among how many.
        block_rows: samples a run, with ``shuffle="block"``; those of a shard by default.
        buffer_rows: rows that are shuffled among each other, then; twice as many are in memory, one half of them
            being read while the other is given out.
        pixels: whether pixels are read.
        num_threads: that read; by default 2, or where requests mostly wait, 16 past the page cache and 32 from buckets
            until the stage has it all.
        prefetch: batches read ahead; with ``shuffle="block"`` half the buffer is.
        pin: pinned memory; by default where CUDA is there.
        debug: a stale batch's tensors raise `StaleBatch` when used; slower.

    Raises:
        BadInput: nothing to read, or too few valid samples.
        UnknownName: a teacher, level or task is not in the store.
        UncommittedRow: a shard of the first `num_views` views of a part is not committed.
    """

    def __init__(
        self,
        store: Store,
        teachers: Sequence[str] | Mapping[str, Sequence[int]] = (),
        labels: Sequence[str] = (),
        *,
        prefixes: Sequence[str] = (),
        batch_size: int,
        num_views: int,
        seed: int = 0,
        shuffle: bool | Literal["block"] = True,
        drop_last: bool | None = None,
        rank: int = 0,
        world_size: int = 1,
        block_rows: int | None = None,
        buffer_rows: int = 512,
        pixels: bool = True,
        num_threads: int | None = None,
        prefetch: int = 2,
        pin: bool | None = None,
        debug: bool = False,
    ) -> None:
        if prefetch < 1 or (num_threads is not None and num_threads < 1):
            raise BadInput(f"num_threads = {num_threads}, prefetch = {prefetch}: both must be at least 1")
        self.store = store
        self.config = SamplerConfig(
            batch_size,
            num_views,
            seed,
            shuffle,
            bool(shuffle) if drop_last is None else drop_last,
            rank,
            world_size,
            store.spec.rows_per_shard if block_rows is None else block_rows,
            buffer_rows,
        )
        self._levels = _levels(store, teachers)
        self._labels, self._prefixes = list(labels), list(prefixes)
        self._has_pixels = pixels
        self._num_threads, self._prefetch = num_threads, prefetch
        self._pin = torch.cuda.is_available() if pin is None else pin
        self._debug = debug
        self._decoders = {name: TeacherDecoder(store, name, levels) for name, levels in self._levels.items()}
        self._prefix_decoders = {
            name: TeacherDecoder(store, name, self._levels[name], prefix=True) for name in self._prefixes
        }
        self._readers = self._make_readers()
        _check_committed(store, [SOURCE, *map(teacher_part, self._levels)], num_views)
        for reader in self._readers:
            reader.place.will_read(reader.files(num_views))
        self._valid = store.valid(num_views)
        self._num_batches = num_batches(int(self._valid.sum()), self.config)
        self._slots: list[Slot] = []
        self._windows: list[Slot] = []
        self._epoch, self._next_batch, self._resumes = 0, 0, False
        self._running: Prefetch | WindowPrefetch | None = None

    def _make_readers(self) -> list[RowReader]:
        paths = [(SOURCE, "pixels")] if self._has_pixels else []
        paths += [(SOURCE, f"labels/{task}") for task in self._labels if self.store.labels[task]]
        for teacher, decoder in (*self._decoders.items(), *self._prefix_decoders.items()):
            paths += [(teacher_part(teacher), f"teachers/{teacher}/{array}") for array in decoder.arrays]
        if not paths:
            raise BadInput("nothing to read: no pixels, no labels, no teachers")
        return [self.store.rows(part, array) for part, array in paths]

    @classmethod
    def union(cls, loaders: Sequence[Loader]) -> Loader:
        """A loader of what all of `loaders` read, which must be the same rows in the same order.

        Raises:
            StateMismatch: they differ in store, rows or order; names the first difference.
        """
        first = loaders[0]
        for other in loaders[1:]:
            one, two = ({key: x._identity()[key] for key in ("store", "sampler", "num_valid")} for x in (first, other))
            if difference := first_difference(one, two):
                raise StateMismatch("these loaders read other rows: {} = {!r} and {!r}".format(*difference))
        levels: dict[str, set[int]] = {}
        for loader in loaders:
            for name, own in loader._levels.items():
                levels.setdefault(name, set()).update(own)
        return cls(
            first.store,
            {name: sorted(own) for name, own in levels.items()},
            list(dict.fromkeys(task for loader in loaders for task in loader._labels)),
            prefixes=list(dict.fromkeys(name for loader in loaders for name in loader._prefixes)),
            pixels=any(loader._has_pixels for loader in loaders),
            num_threads=first._num_threads,
            prefetch=first._prefetch,
            **asdict(first.config),
        )

    @property
    def idle_s(self) -> float:
        """Seconds in which what it reads for stood still for others: none."""
        return 0.0

    @property
    def num_threads(self) -> int:
        """Threads that the next iteration reads with."""
        return self._num_threads or max(one.place.num_readers for one in self.store.stores)

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._num_batches

    @property
    def stored_bytes(self) -> int:
        """Bytes of the files that it reads, all views together; an epoch reads one view of each sample."""
        return sum(file.num_bytes for _, file in self._files())

    def _files(self) -> Iterator[tuple[str, FileDigest]]:
        """Every file that it reads, by name."""
        return chain.from_iterable(reader.files(self.config.num_views) for reader in self._readers)

    @property
    def epoch(self) -> int:
        """The epoch that iterating gives."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration gives. A position restored for it is kept."""
        if epoch != self._epoch:
            self._epoch, self._next_batch, self._resumes = epoch, 0, False

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """JSON-able position: the next batch is the first that has not been given out."""
        return {
            "version": STATE_VERSION,
            "config": self._identity(),
            "epoch": self._epoch,
            "batch": self._next_batch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: the next iteration gives what would have come.

        Raises:
            StateMismatch: another version, store or configuration; names the first difference.
        """
        if state.get("version") != STATE_VERSION:
            raise StateMismatch(f"loader state has version {state.get('version')!r}; this one reads {STATE_VERSION}")
        if difference := first_difference(state["config"], self._identity()):
            field, saved, now = difference
            raise StateMismatch(f"loader state was saved with {field} = {saved!r}, this loader has {now!r}")
        if not 0 <= state["batch"] <= len(self):
            raise StateMismatch(f"loader state is at batch {state['batch']}; an epoch has {len(self)}")
        self._epoch, self._next_batch, self._resumes = state["epoch"], state["batch"], True

    def _identity(self) -> dict[str, Any]:
        """What decides the sequence of batches; threads, prefetching and memory do not."""
        return {
            "store": self.store.name,
            "sampler": asdict(self.config),
            "num_valid": int(self._valid.sum()),
            "pixels": self._has_pixels,
            "labels": self._labels,
            **({"prefixes": self._prefixes} if self._prefixes else {}),
            "teachers": {
                name: {"levels": list(levels), "provenance": self.store.teacher(name).provenance}
                for name, levels in self._levels.items()
            },
        }

    # -- iterating --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        start = self._next_batch if self._resumes else 0
        self._next_batch, self._resumes = start, False
        return self._batches(epoch_requests(self._valid, self.config, self._epoch), start)

    def close(self) -> None:
        """End the running iteration and its threads; another one may begin."""
        if self._running is not None:
            self._running.stop()

    def _batches(self, requests: Requests, start: int) -> Iterator[Batch]:
        self.close()
        if not self._slots:
            count = 1 + (1 if self.config.shuffle == "block" else self._prefetch)
            self._slots = [Slot(self._readers, self.config.batch_size, self._pin) for _ in range(count)]
            if self.config.shuffle == "block":
                rows = self.config.window_batches * self.config.batch_size
                self._windows = [Slot(self._readers, rows, pin=False) for _ in range(2)]
        reading = self._running = self._read_ahead(requests, start)
        slot: Slot | None = None
        try:
            for number in range(start, self._num_batches):
                reading.check_running()  # an iteration that has ended must not touch the batches of the running one
                if slot is not None:
                    reading.free(slot)
                slot = reading.take()
                self._next_batch = number + 1
                yield self._batch(slot, requests, number)
        finally:
            reading.stop()

    def _read_ahead(self, requests: Requests, start: int) -> Prefetch | WindowPrefetch:
        free = list(self._slots)
        if self.config.shuffle == "block":
            windows, size = self._windows, self.config.window_batches
            return WindowPrefetch(free, windows, self._readers, requests, start, size, self.num_threads)
        batches = range(start, self._num_batches)
        return Prefetch(
            free, self._readers, lambda n: (requests.samples[n], requests.views[n]), batches, self.num_threads
        )

    def _batch(self, slot: Slot, requests: Requests, number: int) -> Batch:
        tensors = list(slot.tensors)
        if self._debug:
            tensors = [guard(tensor, slot, slot.generation) for tensor in tensors]
        take = iter(tensors)
        batch_size = self.config.batch_size
        pixels = next(take) if self._has_pixels else torch.empty(batch_size, 0, 0, 3, dtype=torch.uint8)
        return Batch(
            samples=torch.from_numpy(requests.samples[number].copy()),
            views=torch.from_numpy(requests.views[number].copy()),
            weights=torch.from_numpy(requests.weights[number].copy()),
            pixels=pixels,
            labels={task: next(take) for task in self._labels},
            features={teacher: [next(take) for _ in decoder.arrays] for teacher, decoder in self._decoders.items()},
            prefixes={name: [next(take) for _ in decoder.arrays] for name, decoder in self._prefix_decoders.items()},
            _decoders=self._decoders,
            _prefix_decoders=self._prefix_decoders,
            _slot=slot,
        )


def _levels(store: Store, teachers: Sequence[str] | Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    if isinstance(teachers, Mapping):
        return {
            name: tuple(store.level(name, level).level for level in sorted(levels)) for name, levels in teachers.items()
        }
    return {name: tuple(spec.level for spec in store.teacher(name).maps) for name in teachers}


def _check_committed(store: Store, parts: Sequence[str], num_views: int) -> None:
    for part in parts:
        if pending := store.part(part).pending(num_views):
            view, shard = pending[0]
            array = "pixels" if part == SOURCE else part
            raise UncommittedRow(array, store.spec.rows(shard).start, view, shard)
