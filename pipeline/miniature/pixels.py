"""A miniature's network as objectives see it: from pixels in [0, 1], normalised as in its later use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sak_core.miniature.network import Miniature


class PixelNet(nn.Module):
    """Normalisation and network.

    Args:
        net: the network.
        row: says with which mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, row: Miniature) -> None:
        super().__init__()
        self.net: Any = net
        self.register_buffer("mean", torch.tensor(row.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(row.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Map pixels (B, 3, H, W) in [0, 1], and hidden patches (B, h, w), to the blocks' features."""
        levels: list[Tensor] = self.net(self.normalized(pixels), mask)
        return levels

    def normalized(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] as the network expects them."""
        return (pixels - self.mean) / self.std
