"""Images and labels decoded again, compared with what a store keeps of those it was made from."""

from __future__ import annotations

import numpy as np

from cache.format.manifest import SOURCE
from cache.store import Store
from pipeline.errors import UserError
from pipeline.extraction.samples import Block


def check_contents(store: Store, block: Block) -> None:
    """Check that images and labels that were decoded again are those that `store` was made from.

    Images are held to their digests; labels to the rows of those of the block's views that are committed. A sample that
    could not be read when the store was made has nothing to be compared with.

    Raises:
        UserError: one is not; it is named.
    """
    samples = list(block.task.samples)
    was_readable = dict(zip(samples, store.samples["valid"][samples].astype(bool).tolist(), strict=True))
    recorded = dict(zip(samples, store.samples["digest"][samples], strict=True))
    for sample, reason in block.invalid.items():
        if was_readable[sample]:
            raise UserError(f"{store.ids(sample)[0]} was readable when {store.name} was made, and is not: {reason}")
    for sample, digest in block.digests.items():
        if was_readable[sample] and not np.array_equal(digest, recorded[sample]):
            raise _changed(store, sample, "image")
    _check_labels(store, block, [sample for sample in samples if was_readable[sample]])


def _check_labels(store: Store, block: Block, samples: list[int]) -> None:
    shard = block.task.samples.start // store.spec.rows_per_shard
    for view, arrays in block.views.items():
        if view >= store.num_views or shard not in store.part(SOURCE).view(view).shards:
            continue
        for task in store.spec.labels:
            if f"labels/{task}" not in arrays:
                continue
            stored = store.labels[task][samples, view]
            for sample, label in zip(samples, stored, strict=True):
                made = arrays[f"labels/{task}"][sample - block.task.samples.start]
                if not np.array_equal(made, label, equal_nan=made.dtype.kind == "f"):
                    raise _changed(store, sample, f"{task} label")


def _changed(store: Store, sample: int, what: str) -> UserError:
    return UserError(
        f"the {what} of {store.ids(sample)[0]} is no longer the {what} that {store.name} was made from, though its "
        f"file is as large. To take what is there now, remove {store} and make it again; else put the old file back"
    )
