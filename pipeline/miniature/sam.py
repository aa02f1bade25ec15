"""The objective of mini-sam: the masks a point may mean, and which neighbouring pixels belong together.

SAM answers a point with three masks, whole, part and subpart. Here they are the object (or the room's
surface), the part and the facet under the point. Pixel affinity asks of every pixel, at each of the three
levels, whether its neighbours to the right and below belong to the same region.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.miniature.augment import MILD, mirror, recolor
from pipeline.miniature.pixels import PixelNet
from pipeline.miniature.scenes import SceneBatch
from sak_core.miniature.network import PATCH, WIDTH

NUM_POINTS = 12
MASK_WIDTH = 32
UPSCALE = 4
"""Masks are decoded at four times the grid, half the image."""

NUM_LEVELS = 3


def regions(batch: SceneBatch) -> Tensor:
    """Number the regions of every level: (B, 3, H, W) int64 for object, part and facet.

    Room surfaces, which are one instance, are told apart by class.
    """
    whole = batch.instances * 256 + batch.semseg
    return torch.stack([whole, whole * 256 + batch.parts, batch.facets + whole * 65536], 1)


def neighbours_differ(labels: Tensor) -> Tensor:
    """Where a pixel's right and lower neighbours differ from it: (B, L, H, W) to (B, 2 L, H, W) float.

    The last column and row, which have no such neighbour, are 0.
    """
    right = F.pad((labels[..., 1:] != labels[..., :-1]).float(), (0, 1))
    below = F.pad((labels[..., 1:, :] != labels[..., :-1, :]).float(), (0, 0, 0, 1))
    return torch.cat([right, below], 1)


class SamObjective(nn.Module):
    """Point-prompted masks (cross-entropy and dice) and pixel affinity (cross-entropy)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH)
        self.upscale = nn.Conv2d(WIDTH, MASK_WIDTH * UPSCALE**2, 1)
        self.offset = nn.Embedding(PATCH * PATCH, WIDTH)
        self.prompt = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, NUM_LEVELS * (MASK_WIDTH + 1)))
        self.affinity = nn.Conv2d(WIDTH, 2 * NUM_LEVELS * PATCH * PATCH, 1)

    def forward(self, net: PixelNet, batch: SceneBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the loss terms of a batch; the loss is their sum."""
        batch = mirror(batch, generator)
        features = self.norm(net(recolor(batch.image, MILD, generator))[-1])
        b = len(features)
        labels = regions(batch)

        y, x = self._draw_points(batch, generator)
        rows = torch.arange(b)[:, None]
        at_point = features.permute(0, 2, 3, 1)[rows, y // PATCH, x // PATCH]
        prompt = self.prompt(at_point + self.offset((y % PATCH) * PATCH + x % PATCH))
        prompt = prompt.unflatten(2, (NUM_LEVELS, MASK_WIDTH + 1))
        pixels = F.pixel_shuffle(F.gelu(self.upscale(features)), UPSCALE).flatten(2)
        logits = prompt[..., :-1].flatten(1, 2) @ pixels / MASK_WIDTH**0.5 + prompt[..., -1].flatten(1)[:, :, None]
        step = PATCH // UPSCALE
        small = labels[:, :, ::step, ::step].flatten(2)
        meant = labels.permute(0, 2, 3, 1)[rows, y, x]
        target = (small[:, None] == meant[..., None]).flatten(1, 2).float()
        error = F.binary_cross_entropy_with_logits(logits, target)
        share = logits.sigmoid()
        dice = 1 - (2 * (share * target).sum(2) + 1) / (share.sum(2) + target.sum(2) + 1)

        differ = neighbours_differ(labels)
        affinity = F.pixel_shuffle(self.affinity(features), PATCH)
        # Borders are a tenth of the pixels: weighing them thrice keeps them from being drowned.
        weight = 1 + 2 * differ
        affinity_error = F.binary_cross_entropy_with_logits(affinity, differ, weight=weight)
        return {"mask": 2 * error, "dice": dice.mean(), "affinity": 3 * affinity_error}

    @staticmethod
    def _draw_points(batch: SceneBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw points (B, P) each for y and x: half anywhere, half on objects, where a scene has any."""
        b, h, w = batch.instances.shape
        anywhere = torch.ones(b, h * w)
        on_objects = (batch.instances.flatten(1) > 0).float() + 1e-6
        points = torch.cat(
            [torch.multinomial(p, NUM_POINTS // 2, generator=generator) for p in (anywhere, on_objects)], 1
        )
        return points // w, points % w
