"""Which rows come when: pure functions of seed and epoch that do no reading.

In epoch e sample i is seen in view ``(e + offset(seed, i)) mod V``; an epoch visits every valid sample once.
All randomness is raw Philox output, keyed by seed and epoch, or keyed by seed and counted by sample; its
values are fixed for good.

Two orders are random. *Exact*: any row may follow any other; a row a request. *Block*, for places where a request
costs far more than its bytes (networks, spinning disks): the samples are cut into blocks of `block_rows`
neighbours, the blocks come in random order, and their rows are shuffled within windows of `buffer_rows` rows, which
are read whole, block by block, into a buffer. How far rows travel: a block may land anywhere in the epoch; two rows
of one block are then less than two windows apart (one, unless the block straddles two), so a batch draws
from about ``buffer_rows / block_rows`` blocks where an exact order draws each row from its own. In block order the
view is drawn a block, not a sample, or else neighbours would lie in different files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cache.draws import BLOCKS, OFFSETS, ORDER, WINDOWS, raw_draws
from cache.errors import BadInput

Int64 = npt.NDArray[np.int64]


def view_offsets(seed: int, num_samples: int) -> npt.NDArray[np.uint64]:
    """offset(seed, i) of all samples, uint64 (N,); a sample's does not depend on how many there are."""
    return raw_draws(seed, 0, OFFSETS, num_samples)


def views_in_epoch(offsets: npt.NDArray[np.uint64], epoch: int, num_views: int) -> Int64:
    """The view of each sample in an epoch, int64, 0..num_views-1."""
    views = np.uint64(num_views)
    return ((offsets % views + np.uint64(epoch % num_views)) % views).astype(np.int64)


@dataclass(frozen=True)
class SamplerConfig:
    """What decides an epoch's rows: those parameters of `cache.loading.loader.Loader`, in the same words.

    `buffer_rows` is cut to whole batches.
    """

    batch_size: int
    num_views: int
    seed: int
    shuffle: bool | Literal["block"]
    drop_last: bool
    rank: int = 0
    world_size: int = 1
    block_rows: int = 64
    buffer_rows: int = 512

    def __post_init__(self) -> None:
        if self.shuffle not in (True, False, "block"):
            raise BadInput(f"shuffle is {self.shuffle!r}; it is true, false or 'block'")
        for name in ("batch_size", "num_views", "world_size", "block_rows", "buffer_rows"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if not 0 <= self.rank < self.world_size:
            raise BadInput(f"rank {self.rank} is not in 0..{self.world_size - 1}")

    @property
    def window_batches(self) -> int:
        """Batches that are drawn from one window, in block order."""
        return max(1, self.buffer_rows // self.batch_size)


@dataclass(frozen=True)
class Requests:
    """A process's rows of one epoch, in order, whole batches.

    Attributes:
        samples: int64 (batches, B).
        views: int64 (batches, B).
        weights: float32 (batches, B); 0 = padding, a repeated row.
    """

    samples: Int64
    views: Int64
    weights: npt.NDArray[np.float32]


def num_batches(num_valid: int, config: SamplerConfig) -> int:
    """Batches a process gets in an epoch.

    Raises:
        BadInput: it is none: too few valid samples for one batch on every process, or none at all.
    """
    together = config.batch_size * config.world_size
    count = num_valid // together if config.drop_last else -(-num_valid // together)
    if not count:
        raise BadInput(
            f"{num_valid} valid samples do not fill one batch of {config.batch_size} on each of "
            f"{config.world_size} processes; use a smaller batch size, or drop_last=False"
        )
    return count


def epoch_requests(valid: npt.NDArray[np.bool_], config: SamplerConfig, epoch: int) -> Requests:
    """The rows of an epoch for `config.rank`.

    Batch b of all ranks together is the b-th run of world_size x B rows of one global order; rank r has the
    r-th B of them. In block order rank r has the r-th part of the blocks instead, so that no block is read twice.
    Either way the rows of an epoch do not depend on the number of processes, only who gets them.

    Args:
        valid: bool (N,), see `Store.valid`; the others are left out.
        epoch: from 0.
    """
    samples = np.flatnonzero(valid)
    batches = num_batches(len(samples), config)
    blocks = samples // config.block_rows
    if config.shuffle == "block":
        draws = raw_draws(config.seed, epoch, BLOCKS, int(blocks[-1]) + 1)
        samples = samples[np.argsort(draws[blocks], kind="stable")]
    elif config.shuffle:
        draws = raw_draws(config.seed, epoch, ORDER, len(samples))
        samples = samples[np.argsort(draws, kind="stable")]
    wanted = batches * config.world_size * config.batch_size
    weights = np.ones(wanted, np.float32)
    weights[len(samples) :] = 0
    order = np.resize(samples, wanted).astype(np.int64)  # cuts, or repeats from the start
    if config.shuffle == "block":
        place = np.arange(wanted) % (wanted // config.world_size)  # in the rank's part
        window = place // (config.window_batches * config.batch_size)
        draws = raw_draws(config.seed, epoch, WINDOWS, wanted)
        shuffled = np.lexsort((draws, window, np.arange(wanted) // (wanted // config.world_size)))
        order, weights = order[shuffled], weights[shuffled]
        offsets = view_offsets(config.seed, len(valid))[order // config.block_rows]  # a block's, by its number
        views = views_in_epoch(offsets, epoch, config.num_views)
        shape, axis = (config.world_size, batches, config.batch_size), 0
    else:
        views = views_in_epoch(view_offsets(config.seed, len(valid)), epoch, config.num_views)[order]
        shape, axis = (batches, config.world_size, config.batch_size), 1

    def mine(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        part: npt.NDArray[Any] = values.reshape(shape).take(config.rank, axis)
        return part

    return Requests(mine(order), mine(views), mine(weights))
