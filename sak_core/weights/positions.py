"""Position embeddings at another grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sak_core.interfaces.teacher import Size


def resample_positions(positions: Tensor, old: Size, new: Size) -> Tensor:
    """Resample position embeddings bicubically, without antialiasing (as the method does).

    Args:
        positions: (1, P + old h · w, C), P prefix tokens first; those are kept.
        old, new: grids (h, w).

    Returns:
        (1, P + new h · w, C).
    """
    if old == new:
        return positions
    num_prefix = positions.shape[1] - old[0] * old[1]
    prefix, grid = positions[:, :num_prefix], positions[:, num_prefix:]
    planes = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    planes = F.interpolate(planes.float(), size=new, mode="bicubic", align_corners=False, antialias=False)
    grid = planes.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(positions.dtype)
    return torch.cat([prefix, grid], dim=1)
