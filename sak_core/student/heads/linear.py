"""The smallest head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sak_core.student.heads.base import Head, resize
from sak_core.student.init import init_linear


class LinearHead(Head):
    """BatchNorm and one linear layer on the concatenated levels of every token, resized to the image.

    Source: the "+ linear" evaluation of DINOv2 with four layers (arXiv 2304.07193, section 7.4).

    Args:
        width, num_levels, channels: as of `Head`.
    """

    def __init__(self, width: int, num_levels: int, channels: int) -> None:
        super().__init__(width, num_levels, channels)
        self.norm = nn.BatchNorm2d(num_levels * width)
        self.last = init_linear(nn.Linear(num_levels * width, channels))

    def decode(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Maps (B, C, h, w), shallowest first, to (B, channels, h, w) on the finest grid."""
        grid = max(((m.shape[2], m.shape[3]) for m in levels), key=lambda size: size[0] * size[1])
        joined = self.norm(torch.cat([resize(level, grid) for level in levels], dim=1))
        out: Tensor = self.last(joined.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)
