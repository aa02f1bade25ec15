"""Boundaries."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sak_core.boundary import Counts, best_counts, boundary_scores, even_thresholds, f_measure
from sak_core.boundary.labelled import LabelledImage, Rule
from sak_core.metrics.base import TaskMetric

ImageMap = Callable[[Rule, Iterable[LabelledImage]], Iterable[Counts | None]]
"""What `map` is: a pool's `map` counts images side by side."""


class BoundaryMetric(TaskMetric):
    """odsF, oisF and average precision of boundaries after non-maximum suppression, from counts summed over
    images.

    Works on the CPU, image by image (10 ms at 96x96 and 19 thresholds, a second at 448x576 and 99); see
    `sak_core.boundary.labelled.Rule` for what is counted.

    Args:
        max_dist: how far matched pixels may be apart, as a share of the diagonal.
        thresholds: in (0, 1]; None takes 0.01 .. 0.99.
        image_map: how a batch's images are gone through.
    """

    counts: Tensor
    best: Tensor
    images_seen: Tensor

    def __init__(
        self,
        max_dist: float = 0.0075,
        thresholds: Sequence[float] | None = None,
        *,
        image_map: ImageMap = map,
    ) -> None:
        super().__init__()
        self.rule = Rule(max_dist, even_thresholds() if thresholds is None else tuple(thresholds), suppress=True)
        self.image_map = image_map
        self.add_state("counts", torch.zeros(4, len(self.rule.thresholds), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("best", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images_seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, label: Tensor) -> None:
        """output (B, 1, H, W) logits, label (B, H, W) in {0, 1}."""
        strengths = (output[:, 0].float().sigmoid() * 255).round().to(torch.uint8).cpu().numpy()
        images = [LabelledImage(s, truth) for s, truth in zip(strengths, label.cpu().numpy(), strict=True)]
        for counts in self.image_map(self.rule, images):
            if counts is None:
                self.add_images(torch.tensor([torch.nan]))
                continue
            self.images_seen += 1
            best = best_counts(counts)
            self.counts += torch.from_numpy(counts).to(self.counts.device)
            self.best += torch.from_numpy(best).to(self.best.device)
            self.add_images(torch.tensor([100 * float(f_measure(best))]))

    def compute(self) -> dict[str, float]:
        """odsF, oisF and AP in percent, and the threshold of odsF."""
        if not self.images_seen:
            return dict.fromkeys(("odsF", "oisF", "AP", "threshold"), float("nan"))
        scores = boundary_scores(self.counts.cpu().numpy(), self.best.cpu().numpy(), self.rule.thresholds)
        return {
            "odsF": 100 * scores.ods_f,
            "oisF": 100 * scores.ois_f,
            "AP": 100 * scores.ap,
            "threshold": scores.ods_threshold,
        }
