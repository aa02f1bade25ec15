"""A miniature's network as objectives see it: from pixels in [0, 1], normalised as the teacher will be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sak_core.miniature.network import Miniature, MiniatureNet


class PixelNet(nn.Module):
    """Normalisation and network.

    Args:
        net: the network.
        row: says with which mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: MiniatureNet, row: Miniature) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(row.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(row.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Map pixels (B, 3, H, W) in [0, 1], and hidden patches (B, h, w), to the blocks' features."""
        levels: list[Tensor] = self.net((pixels - self.mean) / self.std, mask)
        return levels
