"""A probe's score on raw features against its score on decoded ones, with an interval over images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.probes.loss import Loss
from sak_core.boundary import even_thresholds
from sak_core.labels import FARTHEST_M, IGNORE
from sak_core.metrics import BoundaryMetric, TaskMetric
from sak_core.tasks import Task

DRAWS = 1000
"""Of the images, with replacement, that an interval comes from."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the draws' losses."""

BOUNDARY_THRESHOLDS = 19
"""Instead of 99: boundaries are matched anew at each."""

Images = Mapping[str, Tensor]
"""What a metric sums up, of each image by itself: name of the state -> (N, ...)."""


def coarse_metric(task: Task) -> TaskMetric:
    """The task's metric; of boundaries one with fewer thresholds, as each of them takes its time on each image."""
    if task.kind == "boundary":
        return BoundaryMetric(task.max_dist, even_thresholds(BOUNDARY_THRESHOLDS))
    return task.metric()


def image_sums(task: Task, outputs: Iterable[Tensor], labels: Iterable[Tensor]) -> Images:
    """What the task's metric sums up, image by image, of those that have a label.

    Args:
        outputs: raw, (C, H, W) each.
        labels: (H, W) or (H, W, 3) each; both in the images' own units.
    """
    metric = coarse_metric(task)
    rows: list[dict[str, Tensor]] = []
    for output, label in zip(outputs, labels, strict=True):
        if not is_labelled(task, label):
            continue
        metric.reset()
        metric.update(output[None], label[None])
        # the list of images' own scores is no sum
        rows.append({k: v.clone() for k, v in metric.metric_state.items() if isinstance(v, Tensor)})
    return {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def is_labelled(task: Task, label: Tensor) -> bool:
    """Whether a label (H, W) or (H, W, 3) has a pixel that counts."""
    counts = (label > 0) & (label < FARTHEST_M) if task.kind == "depth" else label != IGNORE
    return bool(counts.any())


def num_images(images: Images) -> int:
    """How many images there are."""
    return len(next(iter(images.values()), ()))


def scores(task: Task, images: Images, counts: Tensor) -> npt.NDArray[np.float64]:
    """The task's primary score (n,) over images that count so often, counts (n, N)."""
    metric = coarse_metric(task)
    # whole numbers below 2^53 are exact in float64, whose product is the fast one
    sums = {name: torch.tensordot(counts.double(), state.double(), 1).to(state.dtype) for name, state in images.items()}
    found = np.empty(len(counts))
    for row in range(len(counts)):
        for name, total in sums.items():
            setattr(metric, name, total[row])
        found[row] = type(metric).compute(metric)[task.score]  # without torchmetrics' count of updates
    return found


def draws(number: int) -> Tensor:
    """int64 (1 + DRAWS, number): how often each image counts; once each first."""
    drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), DRAWS)
    return torch.from_numpy(np.concatenate([np.ones((1, number), np.int64), drawn]))


def compare(task: Task, raw: npt.NDArray[Any], decoded: npt.NDArray[Any], images: int) -> Loss:
    """What is lost: of all images at once, and the interval over the draws.

    Args:
        raw, decoded: `scores` over the same `draws`, (1 + DRAWS,) each.
        images: how many were scored.
    """
    lost = (raw - decoded) if task.higher_is_better else (decoded - raw)
    low, high = np.nanpercentile(lost[1:], INTERVAL)
    return Loss(task.score, float(raw[0]), float(decoded[0]), float(lost[0]), float(low), float(high), images)
