"""The objective of mini-dino: say what a patch is made of, seen or hidden, whatever its colours.

DINOv2's iBOT loss has a student predict, for hidden patches, a teacher's distribution over prototypes. Here
the distributions are given: the share of every class and of every part among an 8×8 patch's pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.miniature.augment import STRONG, mirror, recolor
from pipeline.miniature.pixels import PixelNet
from pipeline.miniature.scenes import SceneBatch
from sak_core.miniature.network import PATCH, WIDTH
from sak_core.miniature.rooms import CLASSES, PARTS

NUM_CLASSES, NUM_PARTS = len(CLASSES), len(PARTS)
MASK_RATIO = 0.3


def patch_histogram(labels: Tensor, num_classes: int) -> Tensor:
    """Shares of the classes in every patch: (B, H, W) int64 to (B, num_classes, H / 8, W / 8).

    Pixels outside of 0 ... num_classes − 1 (255, ignore) count for nothing; a patch without others is zero.
    """
    b, h, w = labels.shape
    cells = labels.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 1, 3, 2, 4).flatten(3)
    counts = torch.zeros(*cells.shape[:3], 256).scatter_add_(3, cells, torch.ones(cells.shape))[..., :num_classes]
    return (counts / counts.sum(3, keepdim=True).clamp(min=1)).permute(0, 3, 1, 2)


class DinoObjective(nn.Module):
    """Cross-entropy of patches' class and part histograms, hidden and visible patches weighing the same."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, NUM_CLASSES + NUM_PARTS, 1))

    def forward(self, net: PixelNet, batch: SceneBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the loss terms of a batch; the loss is their sum."""
        batch = mirror(batch, generator)
        pixels = recolor(batch.image, STRONG, generator)
        b, _, h, w = pixels.shape
        mask = torch.rand(b, h // PATCH, w // PATCH, generator=generator) < MASK_RATIO
        logits = self.head(net(pixels, mask)[-1])
        terms = {}
        for name, labels, part in (
            ("class", batch.semseg, logits[:, :NUM_CLASSES]),
            ("part", batch.parts, logits[:, NUM_CLASSES:]),
        ):
            target = patch_histogram(labels, part.shape[1])
            error = F.cross_entropy(part, target, reduction="none")
            terms[f"{name}_hidden"] = 0.5 * error[mask].mean()
            terms[f"{name}_seen"] = 0.5 * error[~mask].mean()
        return terms
