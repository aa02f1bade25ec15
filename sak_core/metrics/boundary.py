"""Boundaries."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sak_core.boundary import best_counts, boundary_counts, boundary_scores, even_thresholds, f_measure, nms
from sak_core.metrics.base import TaskMetric
from sak_core.tasks import IGNORE


class BoundaryMetric(TaskMetric):
    """odsF, oisF and average precision of boundaries after non-maximum suppression, from counts summed over
    images.

    An image is cut to the bounding box of its valid pixels first, so that padding changes nothing; pixels
    ignored inside count as no boundary. Works on the CPU, image by image (10 ms at 96x96, 19 thresholds).
    """

    counts: Tensor
    best: Tensor

    def __init__(
        self, max_dist: float = 0.0075, thresholds: Sequence[float] | None = None, *, suppress: bool = True
    ) -> None:
        """max_dist: how far matched pixels may be apart, as a share of the diagonal.

        thresholds: in (0, 1]; None takes 0.01 .. 0.99. suppress: False scores strengths as they are.
        """
        super().__init__()
        self.max_dist = max_dist
        self.thresholds = even_thresholds() if thresholds is None else tuple(thresholds)
        self.suppress = suppress
        self.add_state("counts", torch.zeros(4, len(self.thresholds), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("best", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, label: Tensor) -> None:
        """output (B, 1, H, W) logits, label (B, H, W) in {0, 1}."""
        strengths = (output[:, 0].float().sigmoid() * 255).round().to(torch.uint8).cpu().numpy()
        for strength, truth in zip(strengths, label.cpu().numpy(), strict=True):
            cut = valid_box(truth != IGNORE)
            if cut is None:
                self.add_images(torch.tensor([torch.nan]))
                continue
            strength, truth = strength[cut], truth[cut]
            valid = truth != IGNORE
            strength = np.where(valid, strength, 0).astype(np.uint8)
            if self.suppress:
                strength = nms(strength)
            counts = boundary_counts(strength, [(truth > 0) & valid], self.thresholds, self.max_dist)
            self.counts += torch.from_numpy(counts).to(self.counts.device)
            best = best_counts(counts)
            self.best += torch.from_numpy(best).to(self.best.device)
            self.add_images(torch.tensor([100 * float(f_measure(best))]))

    def compute(self) -> dict[str, float]:
        """odsF, oisF and AP in percent, and the threshold of odsF."""
        scores = boundary_scores(self.counts.cpu().numpy(), self.best.cpu().numpy(), self.thresholds)
        return {
            "odsF": 100 * scores.ods_f,
            "oisF": 100 * scores.ois_f,
            "AP": 100 * scores.ap,
            "threshold": scores.ods_threshold,
        }


def valid_box(valid: npt.NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """The bounding box of a mask (h, w), None where it is empty."""
    rows, columns = np.flatnonzero(valid.any(axis=1)), np.flatnonzero(valid.any(axis=0))
    if not len(rows):
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
