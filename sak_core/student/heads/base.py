"""What every head is."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """A task's decoder: `Head(width, num_levels, channels)`; subclasses implement `decode`.

    Args:
        width: channels C of every level's map.
        num_levels: maps.
        channels: output channels.
    """

    def __init__(self, width: int, num_levels: int, channels: int) -> None:
        super().__init__()

    def decode(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Maps (B, C, h, w), shallowest first, to (B, channels, any height, any width)."""
        raise NotImplementedError

    def forward(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Maps (B, C, h, w), shallowest first, to the raw output (B, channels, *image_size)."""
        return resize(self.decode(levels, image_size), image_size)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size): bilinear, align_corners false, no antialias."""
    wanted = tuple(size)
    return maps if maps.shape[2:] == wanted else F.interpolate(maps, size=wanted, mode="bilinear", align_corners=False)
