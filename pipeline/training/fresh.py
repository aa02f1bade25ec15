"""Batches of fresh views, made from the data set's own images as they are needed: training without end of views.

The cache still says which samples there are, which are valid, in which order rows come, and how views are drawn. In
the first V epochs a sample is seen in its V cached views, in the order in which training from the cache sees them; in
epoch e from V on it is seen in view e, which nobody has seen before. Pixels and labels of all of them are made by
the code that fills the cache, so the first V epochs are those of the cache bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch

from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.loading.sampler import Requests, epoch_requests
from cache.store import Store
from pipeline.errors import UserError
from pipeline.extraction.contents import check_contents
from pipeline.extraction.samples import Block, BlockMaker, DatasetRequest, Task, num_decoders
from pipeline.extraction.unchanged import unchanged_dataset
from pipeline.training.following import FollowingBatches

BATCHES_AHEAD = 2
"""Decoded while a step runs."""


class FreshBatches(FollowingBatches):
    """A loader's rows in fresh views, decoded by processes a few batches ahead.

    A sample's image and labels are compared with the store's when the run first decodes them, also where it goes on in
    views that the store does not keep; changed ones are a `UserError`.
    One iteration runs at a time, and goes on after the batch that was given last; `set_epoch` begins an epoch.
    """

    def __init__(
        self, loader: Loader, labels: Sequence[str], root: Path | None = None, decoders: int | None = None
    ) -> None:
        """Open the data set that goes with `loader`.

        Args:
            loader: of pixels and `labels`, which is asked for order and position and not read.
            root: the data set's folder.
            decoders: processes, see `num_decoders`; by default this training process's share of the cores.

        Raises:
            UserError: the data set is not there or not what the store was made from.
        """
        super().__init__(loader)
        store, config = loader.store, loader.config
        if decoders is None:
            decoders = num_decoders(max((os.cpu_count() or 1) // config.world_size, 1))
        request = fresh_dataset(store, root)
        spec = replace(store.spec, labels={name: store.spec.labels[name] for name in labels})
        self._store, self._config, self._labels = store, config, tuple(labels)
        self._valid = store.valid(config.num_views)
        self._is_compared = np.zeros(store.spec.num_samples, np.bool_)  # with the digest of its content
        self._in_flight = BATCHES_AHEAD * config.batch_size + decoders
        self._maker = BlockMaker(request, spec, decoders)
        self._at: tuple[int, int] | None = None
        self._ahead: Iterator[Block] = iter(())  # the blocks from the epoch and batch `_at` on

    def __iter__(self) -> Iterator[Batch]:
        state, epoch, config = self.state_dict(), self.epoch, self._config
        if self._at != (epoch, state["batch"]):
            self._ahead = self._maker.blocks(self._tasks(epoch, state["batch"]), self._in_flight)
        requests = self._requests(epoch)
        for number in range(state["batch"], len(self)):
            batch = self._batch(list(islice(self._ahead, config.batch_size)), requests, number)
            self.load_state_dict({**state, "batch": number + 1})
            self._at = (epoch, number + 1) if number + 1 < len(self) else (epoch + 1, 0)
            yield batch

    def close(self) -> None:
        """End the processes: a worker of a study would wait for them for ever. Nothing is read any more."""
        self._maker.close()
        super().close()

    def _tasks(self, epoch: int, start: int) -> Iterator[Task]:
        """The rows of an epoch from batch `start` on, then those of the next ones, so that no epoch waits to begin."""
        for number in count(epoch):
            requests, first = self._requests(number), start if number == epoch else 0
            rows = zip(requests.samples[first:].ravel().tolist(), requests.views[first:].ravel().tolist(), strict=True)
            for sample, view in rows:
                is_new = not self._is_compared[sample]
                # labels of a view that the store does not keep have none beside them to be compared with
                beside = (0,) if is_new and self._labels and view >= self._store.num_views else ()
                yield Task(range(sample, sample + 1), (view, *beside), digests=is_new)

    def _requests(self, epoch: int) -> Requests:
        return fresh_requests(epoch_requests(self._valid, self._config, epoch), epoch, self._config.num_views)

    def _batch(self, blocks: Sequence[Block], requests: Requests, number: int) -> Batch:
        store = self._store
        for block in blocks:
            for sample, reason in block.invalid.items():
                (name,) = store.ids(sample)
                raise UserError(f"{name} was readable when {store.name} was made, and is no longer: {reason}")
            (sample,) = block.task.samples
            if not self._is_compared[sample]:
                check_contents(store, block)
                self._is_compared[sample] = True
        rows = [block.views[block.task.views[0]] for block in blocks]

        def stacked(path: str) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([row[path] for row in rows]))

        return Batch(
            samples=torch.from_numpy(requests.samples[number].copy()),
            views=torch.from_numpy(requests.views[number].copy()),
            weights=torch.from_numpy(requests.weights[number].copy()),
            pixels=stacked("pixels"),
            features={},
            labels={task: stacked(f"labels/{task}") for task in self._labels},
        )


def fresh_dataset(store: Store, root: Path | None) -> DatasetRequest:
    """How to open the data set that fresh views of a store's samples are made from.

    Args:
        root: its folder.

    Raises:
        UserError: it is not there or not what the store was made from.
    """
    return unchanged_dataset(store, root, "fresh views (source = 'live')")


def fresh_requests(cached: Requests, epoch: int, num_views: int) -> Requests:
    """The rows of an epoch in views that no earlier epoch has shown: the cached ones', then view `epoch` of each.

    Args:
        cached: the epoch's rows as they are read from a cache of `num_views` views.
    """
    return cached if epoch < num_views else replace(cached, views=np.full_like(cached.views, epoch))
