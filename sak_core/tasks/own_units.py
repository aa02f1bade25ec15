"""From what a network saw back to the image itself, in whose units scores and predictions are.

A network that sees things larger takes them to be nearer: views divide depth by their scale (`sak_core.views.view`),
and here what it says of an image that it saw at another size is multiplied by that scale. Where an image came to it
wider or taller than it is, normals are turned back. Other kinds do not depend on how large things are seen.

Scales are (B, 2) float64: how much taller and wider things were than in the image. At (1, 1) every bit is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.labels import FARTHEST_M, IGNORE
from sak_core.tasks import Task

SCALED_KINDS = ("depth", "normals")
"""Kinds of tasks whose values depend on the size or the aspect ratio that an image is seen at."""


def are_scaled(tasks: Iterable[Task]) -> bool:
    """Whether any of `tasks` depends on how large images were seen."""
    return any(task.kind in SCALED_KINDS for task in tasks)


def own_output(task: Task, output: Tensor, scales: Tensor) -> Tensor:
    """A task's raw output (B, C, H, W) in the units of the images, which the network saw at `scales`."""
    if task.kind not in SCALED_KINDS or _is_as_seen(task, scales):
        return output
    factors = _depth_factors(scales) if task.kind == "depth" else _normal_factors(scales)
    return output.float() * factors.to(output.device)[:, :, None, None]


def own_label(task: Task, label: Tensor, scales: Tensor) -> Tensor:
    """A view's label as it is stored, (B, H, W) or (B, H, W, 3), in the units of the images; 255 stays what it is.

    Of all kinds, depth alone is stored as the view shows it: normals are the image's own, but for the flip.
    """
    if task.kind != "depth" or _is_as_seen(task, scales):
        return label
    factors = _depth_factors(scales).to(label.device)[:, :, None]
    own = label * factors
    # 80 m / s · s may come out just below 80 m; the limit, divided as the label was, tells on which side it lay
    # (a number / a tensor is a product with the tensor's reciprocal in torch, which rounds twice)
    limit = torch.full_like(factors, FARTHEST_M) / factors
    own = torch.where(label >= limit, own.clamp_min(FARTHEST_M), own)
    return torch.where(label == IGNORE, label, own)


def seen_normals(label: Tensor, scales: Tensor) -> Tensor:
    """An image's own unit normals (B, H, W, 3) as views that show things wider or taller make them look; 255 stays."""
    turned = F.normalize(label / _normal_factors(scales).to(label.device)[:, None, None, :], dim=-1)
    return torch.where((label != IGNORE).any(-1, keepdim=True), turned, label)


def _is_as_seen(task: Task, scales: Tensor) -> bool:
    """Whether nothing changes: nothing was seen larger (depth), nothing wider than tall (normals)."""
    return bool((scales == 1).all()) if task.kind == "depth" else bool((scales[:, 0] == scales[:, 1]).all())


def _depth_factors(scales: Tensor) -> Tensor:
    """(B, 1) float32, what views divided by: the geometric mean of both axes."""
    return (scales[:, :1] * scales[:, 1:]).sqrt().float()


def _normal_factors(scales: Tensor) -> Tensor:
    """(B, 3) float32: by how much wider and taller than by the geometric mean a surface was seen, and 1."""
    mean = (scales[:, 0] * scales[:, 1]).sqrt()
    return torch.stack([scales[:, 1] / mean, scales[:, 0] / mean, torch.ones_like(mean)], 1).float()
