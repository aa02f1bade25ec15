"""Batch normalisation over the rows of all processes, on the CPU; on GPUs torch has its own.

Statistics then are those of the global batch, and so a run on several processes follows the run on one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncNorm(nn.BatchNorm2d):
    """`BatchNorm2d` whose statistics in training are taken over all processes, each with equally many rows."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape and dtype; statistics of half precision are taken in float32."""
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x if x.dtype == torch.float64 else x.float()
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _mean_over_ranks(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = _mean_over_ranks(centred.square().mean((0, 2, 3)))
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(dtype)


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with every batch norm taken over all processes; weights and their names stay."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncNorm  # the same weights and buffers under another forward pass
    return model


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _mean_over_ranks(value: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(value)
    return total / dist.get_world_size()
