"""The objective of mini-clip: match images and phrases, and find in the image what a phrase speaks of.

CLIP contrasts images with captions. Here the caption names the most salient object ("red chair, front left")
and is contrasted with every phrase the vocabulary allows, and with those of the scene's other objects.
Presence of classes and of colours and the scene's attributes (wall, floor, light) stand for the rest of a
caption. Grounding (as in GLIP, arXiv 2112.03857) ties phrases to boxes, and the pooling attention to the
caption's box.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.miniature.augment import MILD, mirror, recolor
from pipeline.miniature.pixels import PixelNet
from pipeline.miniature.scenes import SceneAttribute, SceneBatch
from sak_core.miniature.network import WIDTH
from sak_core.miniature.rooms import CLASSES, COLORS, PLACES

NUM_GROUNDED = 4
"""Phrases grounded an image: the caption and up to three of the other objects."""


def box_coverage(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of every grid cell that a box covers: (..., 4) fractions to (..., h, w) in [0, 1]."""
    top, left, bottom, right = boxes[..., None].unbind(-2)

    def overlap(low: Tensor, high: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells + 1) / cells
        return cells * (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp(min=0)

    return overlap(top, bottom, grid[0])[..., :, None] * overlap(left, right, grid[1])[..., None, :]


class PhraseTower(nn.Module):
    """The text side: embeddings of class, colour and place, joined by an MLP."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (len(CLASSES), len(COLORS), len(PLACES))
        self.words = nn.ModuleList(nn.Embedding(size, WIDTH) for size in sizes)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        phrases = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
        self.register_buffer("phrases", phrases, persistent=False)
        self.sizes = sizes

    phrases: Tensor

    def forward(self, phrases: Tensor) -> Tensor:
        """Embed phrases, indices of class, colour and place (..., 3), as unit vectors (..., 128)."""
        words = sum(embed(phrases[..., i]) for i, embed in enumerate(self.words))
        return F.normalize(words + self.mlp(words), dim=-1)

    def index(self, phrases: Tensor) -> Tensor:
        """Position of phrases (..., 3) in `self.phrases`."""
        _, colors, places = self.sizes
        return (phrases[..., 0] * colors + phrases[..., 1]) * places + phrases[..., 2]


class ClipObjective(nn.Module):
    """Caption contrast over the whole vocabulary, grounding of phrases, presence and attributes."""

    def __init__(self, attributes: tuple[SceneAttribute, ...]) -> None:
        super().__init__()
        self.text = PhraseTower()
        self.norm = nn.BatchNorm2d(WIDTH)
        self.attention = nn.Conv2d(WIDTH, 1, 1)
        self.image_proj = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.token_proj = nn.Conv2d(WIDTH, WIDTH, 1)
        self.scales = nn.Parameter(torch.tensor([10.0, 10.0]))
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.sizes = [len(CLASSES), len(COLORS), *(len(attribute.values) for attribute in attributes)]
        self.scene = nn.Linear(2 * WIDTH, sum(self.sizes))

    def forward(self, net: PixelNet, batch: SceneBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the loss terms of a batch; the loss is their sum."""
        batch = mirror(batch, generator)
        features = self.norm(net(recolor(batch.image, MILD, generator))[-1])
        b, _, h, w = features.shape
        coverage = box_coverage(batch.boxes, (h, w))
        here = batch.objects[..., 0] >= 0

        attention = self.attention(features).flatten(1)
        pooled = torch.einsum("bcn,bn->bc", features.flatten(2), attention.softmax(1))
        caption = F.normalize(self.image_proj(pooled), dim=1)
        similarity = self.scales[0] * caption @ self.text(self.text.phrases).T
        # The scene's own phrases are the hard negatives: the caption is the one that strikes the eye.
        own = torch.einsum("bc,bkc->bk", caption, self.text(batch.objects.clamp(min=0)))
        own = (self.scales[0] * own).masked_fill(~here, -1e4)
        first = torch.zeros(b, dtype=torch.long)
        terms = {
            "caption": F.cross_entropy(similarity, self.text.index(batch.objects[:, 0])),
            "choice": F.cross_entropy(own, first),
            "attention": _region_loss(attention.reshape(b, 1, h, w), coverage[:, :1]).mean(),
        }

        # Phrases to ground: the caption, and others drawn from the objects that are there.
        order = torch.rand(here.shape, generator=generator).masked_fill(~here, -1)
        order[:, 0] = 2
        chosen = order.topk(NUM_GROUNDED, dim=1).indices
        rows = torch.arange(b)[:, None]
        phrases, cells, valid = batch.objects[rows, chosen], coverage[rows, chosen], here[rows, chosen]
        tokens = F.normalize(self.token_proj(features), dim=1)
        maps = self.scales[1] * torch.einsum("bchw,bkc->bkhw", tokens, self.text(phrases.clamp(min=0))) + self.bias
        terms["grounding"] = _region_loss(maps, cells)[valid].mean()

        names, colors, *attributes = self.scene(torch.cat([features.mean((2, 3)), pooled], 1)).split(self.sizes, 1)
        terms["presence"] = _presence(names, batch.objects[..., 0]) + _presence(colors, batch.objects[..., 1])
        said = [F.cross_entropy(logits, batch.attributes[:, i]) for i, logits in enumerate(attributes)]
        terms["attributes"] = 0.3 * torch.stack(said).mean()
        return terms


def _presence(logits: Tensor, words: Tensor) -> Tensor:
    """Cross-entropy of logits (B, N) against which of N words occur in words (B, K), −1 being none."""
    target = torch.zeros(len(words), logits.shape[1] + 1).scatter_(1, words + 1, 1.0)[:, 1:]
    return F.binary_cross_entropy_with_logits(logits, target)


def _region_loss(logits: Tensor, coverage: Tensor) -> Tensor:
    """Cross-entropy and dice between maps of logits and boxes' coverage, both (B, K, h, w): (B, K)."""
    error = F.binary_cross_entropy_with_logits(logits, coverage, reduction="none").mean((2, 3))
    share = logits.sigmoid()
    dice = 1 - (2 * (share * coverage).sum((2, 3)) + 1) / (share.sum((2, 3)) + coverage.sum((2, 3)) + 1)
    return 2 * error + dice
