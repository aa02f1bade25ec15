"""`sak boundary`: folders of predicted boundaries scored against annotations, images side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.console import progress, worker_pool
from pipeline.errors import UserError
from sak_core.boundary import Counts, best_counts, boundary_counts, boundary_scores, even_thresholds, nms
from sak_core.datasets.boundary_files import pair_files, read_annotations, read_strengths
from sak_core.errors import UnreadableSample


@dataclass(frozen=True)
class BoundaryRequest:
    """How folders are scored.

    Attributes:
        max_dist: how far apart matched pixels may be, as a share of the diagonal.
        thresholds: how many, evenly spaced.
        suppress: non-maximum suppression before thinning.
        workers: processes; all cores when None, none for 0 or 1.
    """

    max_dist: float
    thresholds: int
    suppress: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Job:
    """One image: its prediction, its annotations, how they are scored."""

    prediction: Path
    annotations: tuple[Path, ...]
    request: BoundaryRequest


def score_folders(predictions: Path, truths: Path, request: BoundaryRequest) -> dict[str, float]:
    """Scores of all images together, in [0, 1], and the threshold of odsF.

    Raises:
        DatasetError: names do not match.
        UserError: a file cannot be read or sizes differ.
    """
    pairs = pair_files(predictions, truths)
    thresholds = even_thresholds(request.thresholds)
    total = np.zeros((4, len(thresholds)), dtype=np.int64)
    best = np.zeros(4, dtype=np.int64)
    jobs = [Job(prediction, annotations, request) for prediction, annotations in pairs.values()]
    with progress("boundary", len(jobs), "images") as advance:
        for counts in _all_counts(jobs, request.workers):
            total += counts
            best += best_counts(counts)
            advance(1)
    scores = boundary_scores(total, best, thresholds)
    return {"odsF": scores.ods_f, "threshold": scores.ods_threshold, "oisF": scores.ois_f, "AP": scores.ap}


def _all_counts(jobs: list[Job], workers: int | None) -> Iterator[Counts]:
    """Counts of every image, in the order in which they are finished: they are only summed."""
    workers = min(len(jobs), (os.cpu_count() or 1) if workers is None else workers)
    if workers <= 1:
        yield from map(image_counts, jobs)
        return
    pool = worker_pool(workers)
    try:
        for future in as_completed([pool.submit(image_counts, job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def image_counts(job: Job) -> Counts:
    """Counts (4, T) of one image's files.

    Raises:
        UserError: a file is at fault; it is named.
    """
    try:
        strength = read_strengths(job.prediction)
        truths = []
        for path in job.annotations:
            for truth in read_annotations(path):
                if truth.shape != strength.shape:
                    raise UserError(
                        f"{path} is {truth.shape[0]}x{truth.shape[1]} px, "
                        f"its prediction {job.prediction} {strength.shape[0]}x{strength.shape[1]}"
                    )
                truths.append(truth)
    except UnreadableSample as error:
        raise UserError(str(error)) from error
    if job.request.suppress:
        strength = nms(strength)
    return boundary_counts(strength, truths, even_thresholds(job.request.thresholds), job.request.max_dist)


def scores_text(scores: Mapping[str, float]) -> str:
    """`score_folders` for people."""
    return (
        f"odsF {scores['odsF']:.4f} at threshold {scores['threshold']:.4g}, "
        f"oisF {scores['oisF']:.4f}, AP {scores['AP']:.4f}"
    )
