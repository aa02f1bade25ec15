"""The objective of mini-vit, the stem that students start from: paint what is hidden (MAE, arXiv 2111.06377).

The published student starts from a ViT that has seen ImageNet. This one has seen pixels of rooms and no label: masked
pixels are no teacher's objective and no task.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.miniature.augment import MILD, mirror, recolor
from pipeline.miniature.pixels import PixelNet
from pipeline.miniature.scenes import SceneBatch
from sak_core.student.stem import Stem, StemConfig

STEM = StemConfig(name="custom", image_size=(96, 96), patch_size=8, width=96, depth=6, heads=3)
"""The stem of the recipes for `rooms`."""

MASK_RATIO = 0.6
DECODER_WIDTH = 64


def build_vit() -> nn.Module:
    """timm's ViT of `STEM`, with random weights; its names are those that a stem's weights file has."""
    return Stem(STEM).vit  # type: ignore[no-any-return]


def patches(pixels: Tensor, side: int) -> Tensor:
    """Cut pixels (B, 3, H, W) into patches (B, h·w, 3·side²), rows first."""
    return F.unfold(pixels, side, stride=side).transpose(1, 2)


def normalized(values: Tensor) -> Tensor:
    """Patches (B, n, values), each with its own mean and deviation removed, as masked autoencoders predict them."""
    return (values - values.mean(2, keepdim=True)) / (values.var(2, keepdim=True) + 1e-3).sqrt()


class VitObjective(nn.Module):
    """Mean squared error of hidden patches, painted by a light decoder from those that the stem saw."""

    def __init__(self) -> None:
        super().__init__()
        assert STEM.width and STEM.patch_size
        width, self.side = STEM.width, STEM.patch_size
        height, length = (side // self.side for side in STEM.image_size)
        self.embed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, DECODER_WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(DECODER_WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, height * length, DECODER_WIDTH))
        self.blocks = nn.Sequential(*(Block(DECODER_WIDTH, 2) for _ in range(2)))
        self.paint = nn.Sequential(nn.LayerNorm(DECODER_WIDTH), nn.Linear(DECODER_WIDTH, 3 * self.side**2))

    def forward(self, net: PixelNet, batch: SceneBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the loss terms of a batch; the loss is their sum."""
        batch = mirror(batch, generator)
        pixels = recolor(batch.image, MILD, generator)
        tokens = self._embedded(net, pixels)
        b, n, width = tokens.shape[0], tokens.shape[1] - 1, tokens.shape[2]
        seen = torch.rand(b, n, generator=generator).argsort(1)[:, : round(n * (1 - MASK_RATIO))]
        at = seen[:, :, None]
        visible = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, at.expand(-1, -1, width))], 1)
        for block in net.net.blocks:
            visible = block(visible)

        painted = self.mask_token.expand(b, n, -1)
        painted = painted.scatter(1, at.expand(-1, -1, DECODER_WIDTH), self.embed(visible[:, 1:]))
        painted = self.paint(self.blocks(painted + self.positions))
        hidden = torch.ones(b, n).scatter_(1, seen, 0.0)
        error = (painted - normalized(patches(pixels, self.side))).square().mean(2)
        return {"painted": (error * hidden).sum() / hidden.sum()}

    @staticmethod
    def _embedded(net: PixelNet, pixels: Tensor) -> Tensor:
        vit = net.net
        tokens = vit.patch_embed(net.normalized(pixels))
        tokens = torch.cat([vit.cls_token.expand(len(tokens), -1, -1), tokens], 1) + vit.pos_embed
        return tokens  # type: ignore[no-any-return]
