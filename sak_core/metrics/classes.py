"""Semantic segmentation and parts."""

import torch
from torch import Tensor
from torchmetrics import Metric

from sak_core.tasks import IGNORE


class ClassesMetric(Metric):
    """mIoU from one confusion matrix over the set's valid pixels: the mean over all classes, one that never
    occurs counting 0.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        """num_classes: labels are 0 .. num_classes - 1."""
        super().__init__()
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, label: Tensor) -> None:
        """output (B, classes, H, W), label (B, H, W)."""
        valid = label != IGNORE
        truth = label[valid].long()
        found = output.argmax(dim=1)[valid]
        cells = torch.bincount(truth * self.num_classes + found, minlength=self.num_classes**2)
        self.confusion += cells.reshape(self.num_classes, self.num_classes)

    def iou(self) -> Tensor:
        """Intersection over union of every class, (classes,), in [0, 1]."""
        confusion = self.confusion.double()
        both = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - both
        return both / union.clamp_min(1)

    def compute(self) -> dict[str, float]:
        """mIoU and the share of pixels classified rightly (accuracy), in percent."""
        right = self.confusion.diagonal().sum().double()
        return {
            "mIoU": 100 * self.iou().mean().item(),
            "accuracy": 100 * (right / self.confusion.sum().clamp_min(1)).item(),
        }
