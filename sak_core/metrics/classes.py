"""Semantic segmentation and parts."""

from typing import Any

import torch
from torch import Tensor

from sak_core.labels import IGNORE
from sak_core.metrics.base import TaskMetric


class ClassesMetric(TaskMetric):
    """mIoU from one confusion matrix over the set's valid pixels: the mean over all classes, one that never
    occurs counting 0. An image's own is the mean over the classes that occur in it or in its prediction.

    Args:
        num_classes: labels are 0 .. num_classes - 1.
    """

    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, label: Tensor) -> None:
        """output (B, classes, H, W), label (B, H, W)."""
        valid = label != IGNORE
        truth = label[valid].long()
        found = output.argmax(dim=1)[valid]
        count = self.num_classes
        image = torch.arange(len(label), device=label.device)[:, None, None].expand_as(label)[valid]
        cells = torch.bincount((image * count + truth) * count + found, minlength=len(label) * count**2)
        confusions = cells.reshape(len(label), count, count)
        self.confusion += confusions.sum(0)
        both, union = _both_and_union(confusions)
        # 0 / 0, an image without valid pixels, is NaN
        self.add_images(100 * (both / union.clamp_min(1)).sum(-1) / (union > 0).sum(-1))

    def iou(self) -> Tensor:
        """Intersection over union of every class, (classes,), in [0, 1]."""
        both, union = _both_and_union(self.confusion)
        return both / union.clamp_min(1)

    def _more(self) -> dict[str, Any]:
        """The IoU of every class in percent, and the confusion matrix in pixels, rows the truth."""
        return {
            "per_class": [round(100 * value, 4) for value in self.iou().tolist()],
            "confusion": self.confusion.tolist(),
        }

    def compute(self) -> dict[str, float]:
        """mIoU and the share of pixels classified rightly (accuracy), in percent."""
        pixels = self.confusion.sum().double()  # none: 0 / 0 is NaN
        right = self.confusion.diagonal().sum().double()
        return {
            "mIoU": 100 * self.iou().mean().item() if pixels else float("nan"),
            "accuracy": 100 * (right / pixels).item(),
        }


def _both_and_union(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels in truth and prediction, and in either, of every class: (..., C, C) to (..., C) twice."""
    confusion = confusion.double()
    both = confusion.diagonal(dim1=-2, dim2=-1)
    return both, confusion.sum(-2) + confusion.sum(-1) - both
