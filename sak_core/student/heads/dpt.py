"""A head that fuses the levels from deep to shallow."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sak_core.student.heads.base import Head, resize
from sak_core.student.init import init_linear


class DPTHead(Head):
    """Dense prediction transformer's decoder (Ranftl et al. 2021, arXiv 2103.13413) at half the stem's width.

    Reassemble: a linear layer, then level 0, 1, 2, 3 at 4, 2, 1, 1/2 times the token grid (transposed or
    strided convolutions; deeper ones stay at 1/2), then a 3x3 convolution. Fuse, deepest first: the level
    through a residual unit is added, a second unit follows, and the sum is resized to the next level's grid.
    Output: 3x3 convolution, twice the size, 3x3 convolution, ReLU, 1x1 convolution.

    Args:
        width, num_levels, channels: as of `Head`.
    """

    def __init__(self, width: int, num_levels: int, channels: int) -> None:
        super().__init__(width, num_levels, channels)
        inner = max(width // 2, 8)
        self.linears = nn.ModuleList(init_linear(nn.Linear(width, inner)) for _ in range(num_levels))
        self.scales = nn.ModuleList(_rescale(inner, max(2 - level, -1)) for level in range(num_levels))
        self.reassembled = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1, bias=False) for _ in range(num_levels))
        self.skips = nn.ModuleList(ResidualUnit(inner) for _ in range(num_levels - 1))
        self.fused = nn.ModuleList(ResidualUnit(inner) for _ in range(num_levels))
        self.projections = nn.ModuleList(nn.Conv2d(inner, inner, 1) for _ in range(num_levels))
        self.first = nn.Conv2d(inner, max(inner // 2, 4), 3, padding=1)
        self.second = nn.Conv2d(max(inner // 2, 4), max(inner // 2, 4), 3, padding=1)
        self.last = nn.Conv2d(max(inner // 2, 4), channels, 1)

    def decode(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Maps (B, C, h, w), shallowest first, to (B, channels, 8·h, 8·w)."""
        maps = []
        for level, linear, scale, conv in zip(levels, self.linears, self.scales, self.reassembled, strict=True):
            maps.append(conv(scale(linear(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))))
        fused = maps[-1]
        for i in reversed(range(len(maps))):
            if i < len(maps) - 1:
                fused = fused + self.skips[i](maps[i])
            fused = self.fused[i](fused)
            if i > 0:
                fused = resize(fused, (maps[i - 1].shape[2], maps[i - 1].shape[3]))
            fused = self.projections[i](fused)
        out = self.first(fused)
        out = self.second(resize(out, (2 * out.shape[2], 2 * out.shape[3])))
        return self.last(F.relu(out))  # type: ignore[no-any-return]


class ResidualUnit(nn.Module):
    """x + conv(ReLU(conv(ReLU(x)))), 3x3 convolutions (RefineNet, arXiv 1611.06612).

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return x + self.second(F.relu(self.first(F.relu(x))))  # type: ignore[no-any-return]


def _rescale(width: int, power: int) -> nn.Module:
    """Changes a map's size by 2**power."""
    if power > 0:
        return nn.ConvTranspose2d(width, width, 2**power, stride=2**power)
    return nn.Identity() if power == 0 else nn.Conv2d(width, width, 3, stride=2, padding=1)
