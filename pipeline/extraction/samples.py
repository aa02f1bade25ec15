"""Samples decoded once and seen in several views: what fills the source part, by worker processes or in this one."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.format.spec import SourceSpec, encode_ids
from pipeline.console import start_worker, worker_pool
from sak_core.datasets import open_dataset
from sak_core.datasets.folder import as_text
from sak_core.errors import UnreadableSample
from sak_core.interfaces.dataset import Dataset, sample_files
from sak_core.labels import IGNORE
from sak_core.views.view import ViewPolicy, apply_view, draw_view

Array = npt.NDArray[Any]
Views = dict[int, dict[str, Array]]
"""view -> its arrays by path below the store, a row a sample."""


@dataclass(frozen=True)
class DatasetRequest:
    """Which samples, seen how: enough for a worker process to open the same data set again."""

    name: str
    split: str
    size: tuple[int, int] | None = None
    root: Path | None = None
    limit: int | None = None
    seed: int = 0
    images: str | None = None

    def open(self) -> Dataset:
        """The data set.

        Raises:
            UnknownName: there is none of that name.
            DatasetError: its folder is missing, or is not what it should be.
        """
        return open_dataset(self.name, self.split, self.root, self.size, self.limit, self.images)


@dataclass(frozen=True)
class Task:
    """Some neighbouring samples of a shard, to be decoded once and seen in each of `views`.

    Attributes:
        digests: whether the images' digests are wanted; with view 0 they are in any case.
    """

    samples: range
    views: tuple[int, ...]
    digests: bool = True


@dataclass
class Block:
    """What came of a `Task`: arrays of every view, the digest (uint8 (32,)) of every decoded image where it wants them,
    and samples that could not be read, with the reason.
    """

    task: Task
    views: Views
    digests: dict[int, Array] = field(default_factory=dict)
    invalid: dict[int, str] = field(default_factory=dict)


def make_block(dataset: Dataset, spec: SourceSpec, task: Task) -> Block:
    """Decode the samples of `task`, each once, and apply their views to pixels and the labels that `spec` names."""
    block = Block(task, {view: filled(spec, len(task.samples), view) for view in task.views})
    policy = ViewPolicy.from_dict(spec.policy)
    kinds = {name: label.kind for name, label in spec.labels.items()}
    for i, sample in enumerate(task.samples):
        try:
            loaded = dataset.load(sample)
        except UnreadableSample as error:
            block.invalid[sample] = _reason(dataset, sample, error)
            continue
        shape, seen = loaded.image.shape[:2], {name: loaded.labels[name] for name in spec.labels}
        wrong = [name for name, label in seen.items() if label.shape[:2] != shape]
        if wrong:
            block.invalid[sample] = f"label {wrong[0]} is {seen[wrong[0]].shape[:2]}, the image {shape}"
            continue
        if task.digests or 0 in block.views:
            block.digests[sample] = _content_digest(loaded.image)
        for view, arrays in block.views.items():
            drawn = draw_view(policy, spec.seed, sample, view, shape, spec.size, loaded.labels.get("semseg"))
            arrays["pixels"][i], labels = apply_view(policy, drawn, loaded.image, seen, kinds, spec.size)
            for name, value in drawn.to_arrays().items():
                arrays[f"views/{name}"][i] = value
            for name, label in labels.items():
                arrays[f"labels/{name}"][i] = label
        if 0 in block.views:
            facts = block.views[0]
            facts["samples/size"][i] = shape
            facts["samples/digest"][i] = block.digests[sample]
            facts["samples/valid"][i] = 1
    if 0 in block.views:
        block.views[0]["samples/ids"][:] = encode_ids([dataset.ids[s] for s in task.samples], spec.id_width)
    return block


def _reason(dataset: Dataset, sample: int, error: UnreadableSample) -> str:
    """Why a sample cannot be read. Where it has several files, the one at fault and its task are named, by its path
    below the folder that they share: stores do not depend on where a data set lies.
    """
    files = sample_files(dataset, sample)
    what = next((what for what, path in files.items() if str(path) == error.path), None)
    if what is None or len(files) == 1:
        return error.reason
    shared = os.path.commonpath(files.values())
    return f"{what}, {as_text(os.path.relpath(error.path, shared))}: {error.reason}"


def filled(spec: SourceSpec, count: int, view: int) -> dict[str, Array]:
    """Arrays of `count` rows as unreadable samples leave them: padding pixels, labels that count for nothing."""
    height, width = spec.size
    arrays: dict[str, Array] = {
        "pixels": np.broadcast_to(np.array(spec.fill, np.uint8), (count, height, width, 3)).copy(),
        "views/box": np.zeros((count, 4), np.float32),
        "views/flip": np.zeros(count, np.uint8),
        "views/colour": np.zeros((count, 5), np.float32),
    }
    for name, label in spec.labels.items():
        shape = (count, height, width, *((label.channels,) if label.channels else ()))
        arrays[f"labels/{name}"] = np.full(shape, IGNORE, label.dtype)
    if view == 0:
        arrays["samples/ids"] = np.zeros((count, spec.id_width), np.uint8)
        arrays["samples/size"] = np.zeros((count, 2), np.int32)
        arrays["samples/digest"] = np.zeros((count, 32), np.uint8)
        arrays["samples/valid"] = np.zeros(count, np.uint8)
    return arrays


def _content_digest(image: Array) -> Array:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest(), np.uint8)


# ---- several processes ---------------------------------------------------------------------------------------------


def num_decoders(asked: int | None) -> int:
    """Processes that decode: all cores when None; 0 (or 1) decodes in this process."""
    count = (os.cpu_count() or 1) if asked is None else asked
    return count if count > 1 else 0


def blocks_in_flight(decoders: int) -> int:
    """Blocks that `make_blocks` holds at most: being made, or made and not taken yet."""
    return decoders + 2 if decoders else 1


class BlockMaker:
    """A data set opened by `decoders` processes, or by this one, to make blocks until `close`.

    Args:
        spec: what blocks hold; of its labels, those alone that it names.
        decoders: see `num_decoders`.
    """

    def __init__(self, request: DatasetRequest, spec: SourceSpec, decoders: int) -> None:
        self._spec, self._pool = spec, None
        if not decoders:
            self._dataset = request.open()
            return
        self._pool = worker_pool(decoders, _open_in_worker, request, spec)

    def blocks(self, tasks: Iterable[Task], in_flight: int) -> Generator[Block]:
        """The blocks of `tasks`, in order; processes are at most `in_flight` of them ahead of the one that is taken.

        Closing the iterator drops what is ahead."""
        if self._pool is None:
            yield from (make_block(self._dataset, self._spec, task) for task in tasks)
            return
        ahead: deque[Future[Block]] = deque()
        try:
            for task in tasks:
                ahead.append(self._pool.submit(_make_in_worker, task))
                if len(ahead) == in_flight:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for job in ahead:
                job.cancel()

    def close(self) -> None:
        """End the processes, and wait until they have ended."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def make_blocks(request: DatasetRequest, spec: SourceSpec, tasks: Iterable[Task], decoders: int) -> Generator[Block]:
    """The blocks of `tasks`, in order, made by `decoders` processes a few ahead of the one that is taken.

    Close the iterator to end the processes early.
    """
    with closing(BlockMaker(request, spec, decoders)) as maker:
        yield from maker.blocks(tasks, blocks_in_flight(decoders))


_worker: dict[str, Any] = {}


def _open_in_worker(request: DatasetRequest, spec: SourceSpec) -> None:
    start_worker()
    _worker.update(dataset=request.open(), spec=spec)


def _make_in_worker(task: Task) -> Block:
    return make_block(_worker["dataset"], _worker["spec"], task)


def join(blocks: Sequence[Block], view: int) -> dict[str, Array]:
    """The arrays of one view over all rows of `blocks`; they are taken out of the blocks."""
    parts = [block.views.pop(view) for block in blocks]
    return {path: np.concatenate([part.pop(path) for part in parts]) for path in list(parts[0])}
