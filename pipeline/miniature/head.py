"""The light head of the probe, the same for every teacher: two 1×1 convolutions, enlargement, one more."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sak_core.losses.step import task_loss
from sak_core.tasks import Task

HIDDEN = 64
FINE = 24
UPSCALE = 4
BATCH_SIZE = 16
LR = 5e-3


class ProbeHead(nn.Module):
    """A task's outputs from the concatenated levels of a teacher.

    Args:
        mean, std: statistics of the features' channels (C,), with which they are standardised.
        channels: output channels of the task.
        start: what the output starts from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, channels: int, start: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])
        self.layers = nn.Sequential(
            nn.Conv2d(len(mean), HIDDEN, 1),
            nn.GELU(),
            nn.Conv2d(HIDDEN, FINE * UPSCALE**2, 1),
            nn.PixelShuffle(UPSCALE),
            nn.GELU(),
        )
        self.out = nn.Conv2d(FINE, channels, 1)
        self.start = start

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, h, w) to outputs (B, channels, 4 h, 4 w)."""
        out: Tensor = self.out(self.layers((features - self.mean) / self.std))
        return self.start + out


def train_head(task: Task, features: Tensor, labels: Tensor, *, num_epochs: int, seed: int) -> ProbeHead:
    """Train a head on frozen features.

    Args:
        task: what to predict.
        features: (N, C, h, w) float16.
        labels: (N, H, W) or (N, H, W, 3) as stored; the loss looks at every (H / 4 h)-th row and column.
        num_epochs: passes over the N.
        seed: of the start and the order.
    """
    torch.manual_seed(seed)
    n = len(features)
    sample = features[:: max(1, n // 200)].float()
    std, mean = torch.std_mean(sample, dim=(0, 2, 3))
    start = float(labels.float().mean()) if task.kind == "depth" else 0.0
    head = ProbeHead(mean, std.clamp(min=1e-3), task.channels, start)
    step = labels.shape[1] // (UPSCALE * features.shape[2])
    coarse = labels[:, ::step, ::step]
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=0.01)
    num_steps = num_epochs * (n // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=num_steps, pct_start=0.1)
    for _ in range(num_epochs):
        order = torch.randperm(n)
        for first in range(0, n - BATCH_SIZE + 1, BATCH_SIZE):
            rows = order[first : first + BATCH_SIZE]
            loss = task_loss(task, head(features[rows].float()), coarse[rows])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward([loss])
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def outputs(head: ProbeHead, features: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """The head's outputs at full size, in batches of (50, channels, H, W)."""
    return [
        F.interpolate(head(features[i : i + 50].float()), size, mode="bilinear", align_corners=False)
        for i in range(0, len(features), 50)
    ]
