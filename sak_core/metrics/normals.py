"""Surface normals."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.labels import IGNORE
from sak_core.metrics.base import TaskMetric, image_means


class NormalsMetric(TaskMetric):
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
        self.add_images(image_means(angles, valid))
        self.below += torch.stack([(angles < limit).sum() for limit in self.LIMITS])
        bins = (angles * (self.BINS / 180)).long().clamp_(0, self.BINS - 1)
        self.histogram += torch.bincount(bins, minlength=self.BINS)

    def compute(self) -> dict[str, float]:
        """mErr and median in degrees, shares in percent."""
        pixels = self.pixels.double()  # none: 0 / 0 is NaN
        shares = {f"<{limit:g}": 100 * s for limit, s in zip(self.LIMITS, (self.below / pixels).tolist(), strict=True)}
        return {"mErr": (self.angle_sum / pixels).item(), "median": self._median(), **shares}

    def _median(self) -> float:
        cumulative = self.histogram.cumsum(0).double()
        half = cumulative[-1] / 2
        index = int(torch.searchsorted(cumulative, half).clamp_max(self.BINS - 1))
        before = cumulative[index] - self.histogram[index]
        inside = (half - before) / self.histogram[index].clamp_min(1)
        return float((index + inside) * (180 / self.BINS)) if half > 0 else float("nan")
