"""What the scores of all kinds share: besides the set's sums, every image's own primary score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class TaskMetric(Metric):
    """A metric with sums over the set as states, and a list of images' scores in the order in which they came.

    `compute()` and `details()` are of all processes of a distributed run, however many images each of them had; the
    images of process 0 come first, then those of process 1, and so on.
    """

    full_state_update = False
    images: list[Tensor]

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__()
        # float32, which is what torchmetrics gathers from a process that had no images
        self.add_state("images", default=[], dist_reduce_fx="cat")

    def add_images(self, scores: Tensor) -> None:
        """Keep the primary scores of a batch's images, (B,); NaN where an image has no valid pixel."""
        self.images.append(scores.detach().to(self.device, torch.float32))

    def details(self) -> dict[str, Any]:
        """What a report can draw, JSON-able: "per_image", one score (or None) an image, and what the kind adds."""
        with self.sync_context():
            kept = self.images if isinstance(self.images, list) else [self.images]
            scores = torch.cat([*kept, torch.zeros(0, device=self.device)]).tolist()
            return {"per_image": [None if score != score else round(score, 4) for score in scores], **self._more()}

    def _more(self) -> dict[str, Any]:
        """What a kind adds to `details`, from states that are synchronised."""
        return {}


def image_means(values: Tensor, valid: Tensor) -> Tensor:
    """Means of `values` (N,), which are those of the pixels where `valid` (B, H, W) is set, an image: (B,), NaN where
    it has none.
    """
    image = torch.arange(len(valid), device=valid.device)[:, None, None].expand_as(valid)[valid]
    sums = torch.zeros(len(valid), dtype=torch.float64, device=valid.device).index_add_(0, image, values.double())
    return sums / valid.flatten(1).sum(1)
