"""Boundaries scored as the BSDS benchmark does: suppression, thinning, matching, counts."""

from sak_core.boundary.counts import (
    BoundaryScores,
    Counts,
    best_counts,
    boundary_counts,
    boundary_scores,
    even_thresholds,
    f_measure,
)
from sak_core.boundary.suppression import nms

__all__ = [
    "BoundaryScores",
    "Counts",
    "best_counts",
    "boundary_counts",
    "boundary_scores",
    "even_thresholds",
    "f_measure",
    "nms",
]
