"""Scores of predictions against a store's labels, in the units of the images themselves."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cache.loading.batch import Batch
from cache.store import Store
from pipeline.console import warn, worker_pool
from pipeline.recipes.stores import row_of
from pipeline.recipes.tables import Boundary
from pipeline.results import Scores
from pipeline.training.scales import stored_scales
from sak_core.boundary import even_thresholds
from sak_core.metrics import BoundaryMetric, TaskMetric
from sak_core.metrics.boundary import ImageMap
from sak_core.tasks import Task, published_max_dist
from sak_core.tasks.own_units import own_label, own_output

POOL_FROM = 500_000_000
"""Pixels times thresholds from which on boundaries are scored by several processes: 20 s of one."""
Details = dict[str, dict[str, Any]]
"""What a report can draw, by task: "per_image" {sample id: its own primary score, None without valid pixels}, and for
classes "per_class" {name: IoU in percent} and "confusion" (pixels, rows the truth)."""


def score(
    tasks: Sequence[Task],
    boundary: Boundary,
    store: Store,
    predictions: Iterable[tuple[Batch, Mapping[str, Tensor]]],
    *,
    in_own_units: bool = False,
) -> tuple[Scores, Details]:
    """Scores and details of raw outputs by task against their batches' labels, samples of `store`.

    What views scaled for the network is scaled back first, labels and outputs alike: scores are in the units of the
    images themselves. Warns of a task without a single labelled pixel; its scores are None.

    Args:
        in_own_units: whether the outputs are so already.
    """
    samples: list[int] = []
    with side_by_side(tasks, boundary, store) as image_map, torch.inference_mode():
        metrics = {task.name: metric_of(task, boundary, row_of(store.spec), image_map) for task in tasks}
        for batch, outputs in predictions:
            samples += batch.samples.tolist()
            scales = stored_scales(tasks, store, batch)
            for task in tasks:
                output, label = outputs[task.name], own_label(task, batch.labels[task.name], scales)
                own = output if in_own_units else own_output(task, output, scales)
                metrics[task.name].to(own.device).update(own, label)
    scores = {name: _numbers(metric.compute()) for name, metric in metrics.items()}
    ids = [store.ids(sample)[0] for sample in _of_all_processes(samples)]
    details = {task.name: _details(task, metrics[task.name], ids) for task in tasks}
    for name, told in details.items():
        if all(own is None for own in told["per_image"].values()):
            warn(f"{name}: no pixel of these {len(ids)} samples has a label to be scored by; it has no scores")
    return scores, details


def _numbers(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores, None where one is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def _details(task: Task, metric: TaskMetric, ids: Sequence[str]) -> dict[str, Any]:
    told = metric.details()
    told["per_image"] = dict(zip(ids, told["per_image"], strict=True))
    if "per_class" in told:
        told["per_class"] = dict(zip(task.class_keys, told["per_class"], strict=True))
    return told


def _of_all_processes(samples: list[int]) -> list[int]:
    """The samples that each process scored, in the processes' order: that of the metrics' images."""
    if not is_distributed():
        return samples
    parts: list[list[int]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, samples)
    return [sample for part in parts for sample in part]


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def metric_of(task: Task, boundary: Boundary, dataset: str, image_map: ImageMap = map) -> TaskMetric:
    """The metric of a task on a data set, whose published distance of matches counts unless a recipe says another."""
    if task.kind == "boundary":
        max_dist = boundary.max_dist or published_max_dist(dataset)
        return BoundaryMetric(max_dist, even_thresholds(boundary.thresholds), image_map=image_map)
    return task.metric()


@contextmanager
def side_by_side(tasks: Sequence[Task], boundary: Boundary, store: Store) -> Iterator[ImageMap]:
    """How a batch's images are scored for boundaries: by worker processes where that is a matter of minutes."""
    height, width = store.spec.size
    work = height * width * boundary.thresholds * store.spec.num_samples
    workers = (os.cpu_count() or 1) // (torch.distributed.get_world_size() if is_distributed() else 1)
    if workers <= 1 or work < POOL_FROM or not any(task.kind == "boundary" for task in tasks):
        yield map
        return
    pool = worker_pool(workers)
    try:
        yield pool.map
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
