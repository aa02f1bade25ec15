"""How much larger than in their images a batch's views show things, which depth and normals depend on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cache.loading.batch import Batch
from cache.store import Store
from sak_core.tasks import Task
from sak_core.tasks.own_units import are_scaled, seen_normals
from sak_core.views.policies import ViewPolicy
from sak_core.views.view import draw_view, view_scales


def stored_scales(tasks: Sequence[Task], store: Store, batch: Batch) -> Tensor:
    """The scales (B, 2) float64, along y and x, of rows of the store; 1 where none of `tasks` depends on them."""
    if not are_scaled(tasks):
        return torch.ones(len(batch), 2, dtype=torch.float64)
    samples, views = batch.samples.cpu().numpy(), batch.views.cpu().numpy()
    boxes = np.empty((len(samples), 4), np.float32)
    for view in np.unique(views):
        boxes[views == view] = store.views["box"][samples[views == view], int(view)]
    return torch.from_numpy(view_scales(boxes, store.spec.size))


def seen_labels(tasks: Sequence[Task], store: Store, batch: Batch) -> dict[str, Tensor]:
    """The labels that a network can learn from what it sees, by task name, as the batch has them: normals turned where
    views have another aspect ratio.

    Rounding to whole px changes aspect ratios a little, too; as published, it is let be.
    """
    policy = ViewPolicy.from_dict(store.spec.policy)
    normals = [task.name for task in tasks if task.kind == "normals"]
    if not policy.stretches or not normals:
        return batch.labels
    samples, spec = batch.samples.cpu().numpy(), store.spec
    sizes = [(int(height), int(width)) for height, width in store.samples["size"][samples]]
    # drawn anew, since fresh views are in no store
    rows = zip(samples.tolist(), batch.views.tolist(), sizes, strict=True)
    boxes = [draw_view(policy, spec.seed, sample, view, size, spec.size).box for sample, view, size in rows]
    scales = torch.from_numpy(view_scales(np.array(boxes), spec.size))
    return {**batch.labels, **{name: seen_normals(batch.labels[name], scales) for name in normals}}
