"""Images decoded again, compared with the digests that a store keeps of those it was made from."""

from __future__ import annotations

import numpy as np

from cache.store import Store
from pipeline.errors import UserError
from pipeline.extraction.samples import Block


def check_contents(store: Store, block: Block) -> None:
    """Raise `UserError` where an image that was decoded again is not the one that `store` was made from, naming it.

    An image that could not be read when the store was made has nothing to be compared with. Labels are not compared:
    the store keeps no digest of them.
    """
    samples = list(block.digests)
    recorded, valid = store.samples["digest"][samples], store.samples["valid"][samples]
    for sample, digest, was_readable in zip(samples, recorded, valid, strict=True):
        if was_readable and not np.array_equal(block.digests[sample], digest):
            (name,) = store.ids(sample)
            raise UserError(
                f"{name} is no longer the image that {store.name} was made from, though its file is as large: put the "
                "old one back, or make a store of the new images"
            )
