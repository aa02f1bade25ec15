"""The published task losses, one function a kind of task.

All take the network's raw output (B, C, H, W) and labels as stored, (B, H, W) or (B, H, W, 3), with 255
ignored, and return an unweighted scalar; a batch without a valid pixel gives 0. Sources: the SAK paper (arXiv
2410.14633), appendix B, and the authors' release.

`over_ranks` averages normalisers over the processes of a distributed run. With gradients averaged over
processes, as DistributedDataParallel does, sum / (mean count) is then the loss of the global batch. None
keeps them local.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.labels import IGNORE

OverRanks = Callable[[Tensor], Tensor]
"""Averages a tensor over the processes of a distributed run."""

POSITIVE_BOUNDARY_WEIGHT = 0.95


def cross_entropy(output: Tensor, label: Tensor, over_ranks: OverRanks | None = None) -> Tensor:
    """Mean cross entropy over valid pixels. output (B, classes, H, W), label (B, H, W) class indices."""
    label = label.long()
    total = F.cross_entropy(_full(output), label, ignore_index=IGNORE, reduction="sum")
    return total / _count(label != IGNORE, over_ranks)


def balanced_cross_entropy(output: Tensor, label: Tensor, over_ranks: OverRanks | None = None) -> Tensor:
    """Saliency: cross entropy weighted 1 - p for class 0 and p for class 1, p the share of negatives among
    valid pixels.

    Normalised by the number of valid pixels, not by the sum of weights. output (B, 2, H, W), label (B, H, W)
    in {0, 1}.
    """
    label = label.long()
    output = _full(output)
    count = _count(label != IGNORE, over_ranks)
    negatives = _reduce((label == 0).sum(), over_ranks)
    p = (negatives / count).to(output.dtype)
    total = F.cross_entropy(output, label, weight=torch.stack([1 - p, p]), ignore_index=IGNORE, reduction="sum")
    return total / count


def boundary_cross_entropy(
    output: Tensor, label: Tensor, over_ranks: OverRanks | None = None, positives: float = POSITIVE_BOUNDARY_WEIGHT
) -> Tensor:
    """Binary cross entropy on logits, weight `positives` on boundaries, 1 minus it elsewhere; mean over valid pixels.

    output (B, 1, H, W), label (B, H, W) in {0, 1}.
    """
    output = _full(output[:, 0])
    valid = label != IGNORE
    truth = (label == 1).to(output.dtype)
    weight = (1 - positives + (2 * positives - 1) * truth) * valid
    total = F.binary_cross_entropy_with_logits(output, truth, weight=weight, reduction="sum")
    return total / _count(valid, over_ranks)


def normals_l1(output: Tensor, label: Tensor, over_ranks: OverRanks | None = None) -> Tensor:
    """L1 distance between the output scaled to unit length and the label, summed over channels, mean over
    valid pixels.

    output (B, 3, H, W), label (B, H, W, 3).
    """
    output = F.normalize(_full(output), dim=1)
    valid = (label != IGNORE).any(-1)
    difference = (output - label.to(output.dtype).permute(0, 3, 1, 2)).abs().sum(1)
    return torch.where(valid, difference, 0).sum() / _count(valid, over_ranks)


def depth_l1(output: Tensor, label: Tensor, over_ranks: OverRanks | None = None) -> Tensor:
    """Mean absolute difference over valid pixels. output (B, 1, H, W), label (B, H, W), in the same unit."""
    output = _full(output[:, 0])
    valid = label != IGNORE
    difference = (output - label.to(output.dtype)).abs()
    return torch.where(valid, difference, 0).sum() / _count(valid, over_ranks)


def labelled_rows(label: Tensor) -> Tensor:
    """Which images of a batch's labels (B, H, W) or (B, H, W, 3) have a valid pixel, (B,) bool."""
    return (label != IGNORE).flatten(1).any(1)


def _full(output: Tensor) -> Tensor:
    """At least float32: sums over a batch's pixels overflow half precision."""
    return output if output.dtype == torch.float64 else output.float()


def _reduce(value: Tensor, over_ranks: OverRanks | None) -> Tensor:
    return value if over_ranks is None else over_ranks(value.float())


def _count(valid: Tensor, over_ranks: OverRanks | None) -> Tensor:
    """Valid pixels (mean over ranks), at least a positive number so that an empty batch divides 0 by it."""
    count = _reduce(valid.sum(), over_ranks)
    return torch.where(count > 0, count, torch.ones_like(count))
