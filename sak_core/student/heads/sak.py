"""The published head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak_core.student.heads.base import Head, resize
from sak_core.student.init import init_linear


class SakHead(Head):
    """A linear layer C to C/4 a level, resized to a quarter of the image and concatenated; 3x3 convolution,
    norm, GELU, 1x1.

    Source: the SAK authors' release (arXiv 2410.14633), after SegFormer's decoder (arXiv 2105.15203).

    Args:
        width, num_levels, channels: as of `Head`.
    """

    def __init__(self, width: int, num_levels: int, channels: int) -> None:
        super().__init__(width, num_levels, channels)
        self.linears = nn.ModuleList(init_linear(nn.Linear(width, width // 4)) for _ in range(num_levels))
        self.fuse = nn.Conv2d(num_levels * (width // 4), width, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, channels, kernel_size=1)

    def decode(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Maps (B, C, h, w), shallowest first, to (B, channels, H/4, W/4)."""
        quarter = (image_size[0] // 4, image_size[1] // 4)
        maps = [
            resize(linear(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), quarter)
            for linear, level in zip(self.linears, levels, strict=True)
        ]
        return self.last(F.gelu(self.norm(self.fuse(torch.cat(maps, dim=1)))))  # type: ignore[no-any-return]
