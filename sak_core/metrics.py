"""Scores, one torchmetrics class a kind of task: sums on the device, synchronised over processes when
computed.

`update(output, label)` takes the network's raw output (B, C, H, W) and labels as stored, (B, H, W) or (B, H,
W, 3), with 255 ignored. `compute()` gives a dict of Python floats. Shares are in percent, angles in degrees,
depth in the label's unit.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from sak_core.tasks import IGNORE, Task


class ClassesMetric(Metric):
    """mIoU from one confusion matrix over the set's valid pixels: the mean over all classes, one that never
    occurs counting 0.
    """

    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        """num_classes: labels are 0 .. num_classes - 1."""
        super().__init__()
        self.num_classes = num_classes
        self.add_state(
            "confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )

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


class SaliencyMetric(Metric):
    """maxF and mIoU over thresholds 0.05 .. 0.95 on the probability of channel 1.

    maxF: precision and recall from counts summed over the set, beta² = 0.3, undefined ratios 0; the best
    threshold.
    mIoU: the salient class's IoU per image, averaged over images at each threshold, then the best threshold;
    an image where truth and prediction are both empty counts 1.
    """

    BETA_SQUARED = 0.3
    counts: Tensor
    iou_sum: Tensor
    images: Tensor

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__()
        self.thresholds = torch.arange(1, 20, dtype=torch.float64).div(20).float()
        self.add_state("counts", torch.zeros(3, 19, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("iou_sum", torch.zeros(19, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

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
        union = (positives + false).double()
        self.iou_sum += torch.where(union > 0, hit / union.clamp_min(1), 1.0).sum(0)
        self.images += len(label)

    def compute(self) -> dict[str, float]:
        """maxF and mIoU in percent."""
        hit, found, truth = self.counts.double()
        precision, recall = hit / found.clamp_min(1), hit / truth.clamp_min(1)
        weighted = self.BETA_SQUARED * precision + recall
        f = torch.where(weighted > 0, (1 + self.BETA_SQUARED) * precision * recall / weighted, 0.0)
        return {
            "maxF": 100 * f.max().item(),
            "mIoU": 100 * (self.iou_sum / self.images.clamp_min(1)).max().item(),
        }


class NormalsMetric(Metric):
    """Angles between predicted and true normals over the set's valid pixels: mean, median, shares below
    11.25, 22.5 and 30 degrees.

    The median comes from a histogram of 0.01 degree bins, linear inside a bin.
    """

    LIMITS = (11.25, 22.5, 30.0)
    BINS = 18_000
    angle_sum: Tensor
    pixels: Tensor
    below: Tensor
    histogram: Tensor

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__()
        self.add_state("angle_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("below", torch.zeros(len(self.LIMITS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(self.BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, label: Tensor) -> None:
        """output (B, 3, H, W), label (B, H, W, 3); neither needs unit length."""
        valid = (label != IGNORE).any(-1)
        a = F.normalize(output.float().permute(0, 2, 3, 1)[valid], dim=-1)
        b = F.normalize(label[valid].float(), dim=-1)
        # unlike the arc cosine of the dot product this is exact for small angles
        angles = torch.rad2deg(2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)))
        self.angle_sum += angles.double().sum()
        self.pixels += angles.numel()
        self.below += torch.stack([(angles < limit).sum() for limit in self.LIMITS])
        bins = (angles * (self.BINS / 180)).long().clamp_(0, self.BINS - 1)
        self.histogram += torch.bincount(bins, minlength=self.BINS)

    def compute(self) -> dict[str, float]:
        """mErr and median in degrees, shares in percent."""
        pixels = self.pixels.clamp_min(1).double()
        shares = {
            f"<{limit:g}": 100 * s
            for limit, s in zip(self.LIMITS, (self.below / pixels).tolist(), strict=True)
        }
        return {"mErr": (self.angle_sum / pixels).item(), "median": self._median(), **shares}

    def _median(self) -> float:
        cumulative = self.histogram.cumsum(0).double()
        half = cumulative[-1] / 2
        index = int(torch.searchsorted(cumulative, half).clamp_max(self.BINS - 1))
        before = cumulative[index] - self.histogram[index]
        inside = (half - before) / self.histogram[index].clamp_min(1)
        return float((index + inside) * (180 / self.BINS)) if half > 0 else 0.0


class DepthMetric(Metric):
    """Depth errors over the set's pixels with 0 < truth < 80: RMSE, absolute relative error, shares of ratios
    below 1.25^k.

    Predictions are clamped below at 0, not above.
    """

    FARTHEST = 80.0
    square_sum: Tensor
    relative_sum: Tensor
    close: Tensor
    pixels: Tensor

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__()
        self.add_state("square_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("relative_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("close", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, label: Tensor) -> None:
        """output (B, 1, H, W), label (B, H, W), in the same unit (m)."""
        valid = (label > 0) & (label < self.FARTHEST)
        found = output[:, 0][valid].double().clamp_min(0)
        truth = label[valid].double()
        self.square_sum += (found - truth).square().sum()
        self.relative_sum += ((found - truth).abs() / truth).sum()
        ratio = torch.maximum(found / truth, truth / found.clamp_min(1e-12))
        self.close += torch.stack([(ratio < 1.25**k).sum() for k in (1, 2, 3)])
        self.pixels += truth.numel()

    def compute(self) -> dict[str, float]:
        """RMSE in the label's unit, absRel as a ratio, delta1 .. delta3 in percent."""
        pixels = self.pixels.clamp_min(1).double()
        deltas = {f"delta{k}": 100 * s for k, s in enumerate((self.close / pixels).tolist(), start=1)}
        return {
            "RMSE": (self.square_sum / pixels).sqrt().item(),
            "absRel": (self.relative_sum / pixels).item(),
            **deltas,
        }


def metric_for(task: Task) -> Metric:
    """A fresh metric for the task; `compute()` has its primary score under `task.score`."""
    return task.spec.metric(task)


def delta_m(scores: Mapping[str, float], baseline: Mapping[str, float], tasks: Sequence[Task]) -> float:
    """Mean over tasks of the relative gain over the single-task baseline, in percent, positive where better.

    scores, baseline: primary score by task name. Source: Maninis et al. 2019 (arXiv 1904.08918), equation 4.
    Raises ValueError naming a task whose baseline is 0.
    """
    gains = []
    for task in tasks:
        base = baseline[task.name]
        if base == 0:
            raise ValueError(f"the baseline of {task.name} is 0, a relative gain over it is undefined")
        gain = (scores[task.name] - base) / base
        gains.append(gain if task.higher_is_better else -gain)
    return 100 * sum(gains) / len(gains)


class BoundaryMetric(Metric):
    """Placeholder until boundary scoring is in."""

    def update(self, output: Tensor, label: Tensor) -> None:
        """Ignores."""

    def compute(self) -> dict[str, float]:
        """Nothing."""
        return {}
