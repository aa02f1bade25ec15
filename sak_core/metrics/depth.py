"""Depth."""

import torch
from torch import Tensor

from sak_core.labels import FARTHEST_M
from sak_core.metrics.base import TaskMetric, image_means


class DepthMetric(TaskMetric):
    """Depth errors over the set's pixels with 0 < truth < 80: RMSE, absolute relative error, shares of ratios
    below 1.25^k.

    Predictions are clamped below at 0, not above.
    """

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
        """output (B, 1, H, W), label (B, H, W), both in the image's own metres (`sak_core.tasks.own_units`)."""
        valid = (label > 0) & (label < FARTHEST_M)
        found = output[:, 0][valid].double().clamp_min(0)
        truth = label[valid].double()
        squares = (found - truth).square()
        self.square_sum += squares.sum()
        self.add_images(image_means(squares, valid).sqrt())
        self.relative_sum += ((found - truth).abs() / truth).sum()
        ratio = torch.maximum(found / truth, truth / found.clamp_min(1e-12))
        self.close += torch.stack([(ratio < 1.25**k).sum() for k in (1, 2, 3)])
        self.pixels += truth.numel()

    def compute(self) -> dict[str, float]:
        """RMSE in the label's unit, absRel as a ratio, delta1 .. delta3 in percent."""
        pixels = self.pixels.double()  # none: 0 / 0 is NaN
        deltas = {f"delta{k}": 100 * s for k, s in enumerate((self.close / pixels).tolist(), start=1)}
        return {
            "RMSE": (self.square_sum / pixels).sqrt().item(),
            "absRel": (self.relative_sum / pixels).item(),
            **deltas,
        }
