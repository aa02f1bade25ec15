"""A ring of reused buffers that batches are read into and seen through, without a copy.

New memory is what caps a reader: the kernel clears every page first. So a few slots, each large enough for a
batch, are made once (of huge pages, or pinned where there is a GPU) and go round.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from cache.errors import BadInput
from cache.reading.rows import RowReader

_ALIGNMENT = 4096


class Slot:
    """Memory for one batch.

    Args:
        readers: of the arrays that a batch carries.

    Attributes:
        tensors: of each array that a batch carries, (B, *row_shape), views of this slot's memory.
        arrays: the same as numpy sees it.
        targets: of each, B writable buffers of a row.
        generation: counts how often this slot was given back; a batch of an earlier one is stale.
        copies: work on the GPU that still reads this slot.
    """

    def __init__(self, readers: Sequence[RowReader], batch_size: int, pin: bool) -> None:
        starts, size = [], 0
        for reader in readers:
            starts.append(size)
            num_bytes = reader.array.row_bytes * batch_size
            size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        try:
            memory = _pinned(size) if pin else _huge_pages(size)
        except (OSError, MemoryError, RuntimeError) as error:  # of mmap, and of torch
            raise BadInput(
                f"a batch of {batch_size} rows takes {size:,} bytes, which cannot be had: {error}"
            ) from error
        self.generation = 0
        self.copies: torch.cuda.Event | None = None
        self.arrays: list[np.ndarray[Any, Any]] = []
        self.targets: list[list[memoryview]] = []
        for reader, start in zip(readers, starts, strict=True):
            array, step = reader.array, reader.array.row_bytes
            part = memory[start : start + step * batch_size]
            self.arrays.append(part.view(array.dtype).reshape(batch_size, *array.row_shape))
            view = part.data
            self.targets.append([view[row * step : (row + 1) * step] for row in range(batch_size)])
        self.tensors = [torch.from_numpy(array) for array in self.arrays]


def _huge_pages(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    memory = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: ordinary pages serve, a little slower
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _pinned(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True).numpy())
