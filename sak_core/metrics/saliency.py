"""Saliency."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.labels import IGNORE
from sak_core.metrics.base import TaskMetric


class SaliencyMetric(TaskMetric):
    """maxF and mIoU over thresholds 0.05 .. 0.95 on the probability of channel 1.

    maxF: precision and recall from counts summed over the set, beta² = 0.3, undefined ratios 0; the best
    threshold.
    mIoU: the salient class's IoU per image, averaged over images at each threshold, then the best threshold;
    an image where truth and prediction are both empty counts 1, one without a valid pixel does not count.
    """

    BETA_SQUARED = 0.3
    counts: Tensor
    iou_sum: Tensor
    images_seen: Tensor

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__()
        self.thresholds = torch.arange(1, 20, dtype=torch.float64).div(20).float()
        self.add_state("counts", torch.zeros(3, 19, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("iou_sum", torch.zeros(19, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images_seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, label: Tensor) -> None:
        """output (B, 2, H, W), label (B, H, W) in {0, 1}."""
        probability = F.softmax(output.float(), dim=1)[:, 1].contiguous()
        # thresholds passed by a pixel, 0 .. 19: one histogram an image and label gives all of them at once
        passed = torch.bucketize(probability, self.thresholds.to(output.device), right=True)
        image = torch.arange(len(label), device=label.device)[:, None, None]
        cells = ((image * 2 + (label == 1)) * 20 + passed)[label != IGNORE]
        histogram = torch.bincount(cells, minlength=len(label) * 40).reshape(len(label), 2, 20)
        at_least = histogram.flip(2).cumsum(2).flip(2)[:, :, 1:]
        hit, false = at_least[:, 1], at_least[:, 0]
        positives = histogram[:, 1].sum(1, keepdim=True).expand_as(hit)
        self.counts += torch.stack([hit.sum(0), (hit + false).sum(0), positives.sum(0)])
        union, is_labelled = (positives + false).double(), histogram.sum((1, 2)) > 0
        self.iou_sum += torch.where(union > 0, hit / union.clamp_min(1), 1.0)[is_labelled].sum(0)
        self.images_seen += is_labelled.sum()
        f = self._f(hit.double(), (hit + false).double(), positives.double()).amax(1)
        self.add_images(torch.where(is_labelled, 100 * f, torch.nan))

    def compute(self) -> dict[str, float]:
        """maxF and mIoU in percent."""
        if not self.images_seen:
            return {"maxF": float("nan"), "mIoU": float("nan")}
        return {
            "maxF": 100 * self._f(*self.counts.double()).max().item(),
            "mIoU": 100 * (self.iou_sum / self.images_seen).max().item(),
        }

    def _f(self, hit: Tensor, found: Tensor, truth: Tensor) -> Tensor:
        """F of counts, 0 where undefined."""
        precision, recall = hit / found.clamp_min(1), hit / truth.clamp_min(1)
        weighted = self.BETA_SQUARED * precision + recall
        return torch.where(weighted > 0, (1 + self.BETA_SQUARED) * precision * recall / weighted, 0.0)
