"""A few rows of a cache in memory, without a loader: for probes and pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cache.loading.batch import Batch
from cache.store import Store
from pipeline.errors import UserError


def few_rows(store: Store, samples: Sequence[int], teachers: Sequence[str] = (), labels: Sequence[str] = ()) -> Batch:
    """View 0 of these samples, with features of `teachers` and labels of these tasks."""
    chosen = list(samples)
    return Batch(
        samples=torch.tensor(chosen),
        views=torch.zeros(len(samples), dtype=torch.int64),
        weights=torch.ones(len(samples)),
        pixels=torch.from_numpy(store.pixels[chosen, 0]),
        features={
            name: [
                torch.from_numpy(store.features(name, level.level)[chosen, 0]).permute(0, 3, 1, 2).contiguous()
                for level in store.teacher(name).maps
            ]
            for name in teachers
        },
        labels={name: torch.from_numpy(store.labels[name][chosen, 0]) for name in labels},
    )


def spread_over(store: Store, number: int) -> list[int]:
    """So many valid samples of a store, evenly spread over it; fewer where it has fewer.

    Raises:
        UserError: it has none.
    """
    valid = store.valid(1).nonzero()[0]
    if not len(valid):
        raise UserError(f"{store.name} has no valid sample")
    places = torch.linspace(0, len(valid) - 1, min(number, len(valid))).round().long().tolist()
    return [int(valid[place]) for place in places]
