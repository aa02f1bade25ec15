"""A probe: a linear head on a teacher's raw features, fitted once and exactly, from sums over labelled images.

What it is to say of a cell is the mean over the cell's labelled pixels: shares of classes, metres, a normal. Depth and
normals are fitted by least squares. Classes (saliency and boundaries are two) are told apart by Fisher's linear
discriminant: a Gaussian a class, with one covariance for all, gives logits that are linear in the features, and no step
size or number of epochs has to be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from sak_core.labels import FARTHEST_M, IGNORE
from sak_core.student.heads.base import resize
from sak_core.tasks import Task

RIDGE = 0.03
"""Added to each channel's variance, as a share of it: what keeps the head small where rows are few. Of the miniatures
on rooms raw scores hardly differ from 0.0001 to 0.1, but the large weights of a small one make coding errors loud."""
CELLS = 128
"""Of an image that are fitted on, drawn evenly: what bounds the time."""
LEAST_IMAGES = 8
"""Labelled images that a probe is fitted on or scored on, at least."""
_NEVER = -1e4
"""Logit of a class that no fitted row has."""


@dataclass(frozen=True)
class Probe:
    """A linear head: cells (..., inputs) @ weight + bias.

    Attributes:
        weight: float32 (inputs, channels); channels as the task's networks have.
        bias: float32 (channels,).
    """

    task: Task
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Raw output (B, channels, *size), bilinear between cells, of features (B, inputs, h, w)."""
        cells = torch.einsum("bchw,ck->bkhw", features, self.weight) + self.bias[:, None, None]
        return resize(cells, size)


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """A teacher's levels (B, C, h, w) as one (B, sum of C, H, W), on the finest grid of them (bilinear)."""
    grid = max(m.shape[-2:] for m in maps)
    return torch.cat([resize(m, grid).float() for m in maps], 1)


class ProbeFitter:
    """Sums, in float64, over the labelled cells of a task.

    Args:
        task: what the probe is to predict.

    Attributes:
        num_images: with a labelled pixel, so far.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.num_images = task, 0
        self._weight = torch.zeros((), dtype=torch.float64)
        self._sums: list[Tensor] = []

    def update(self, features: Tensor, label: Tensor) -> None:
        """Add an image: features (C, h, w), and its label (H, W) or (H, W, 3), as a network that sees it is to say."""
        share, total = _cell_targets(self.task, label, (features.shape[-2], features.shape[-1]))
        if not share.any():
            return
        chosen = np.random.default_rng(self.num_images).permutation(share.numel())[:CELLS]
        x, y = features.flatten(1)[:, chosen].T.double(), total.flatten(1)[:, chosen].T.double()
        w = share.flatten()[chosen].double()
        weighted = x * w[:, None]
        sums = [weighted.sum(0), y.sum(0), x.T @ weighted, x.T @ y]
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._weight += w.sum()
        self.num_images += 1

    def fit(self) -> Probe:
        """The probe of all that was added.

        Raises:
            UserError: too few images have a label, or all of it is one class.
        """
        if self.num_images < LEAST_IMAGES:
            raise UserError(
                f"{self.task.name}: no probe can be fitted: {self.num_images} of the rows have a label, "
                f"{LEAST_IMAGES} are needed"
            )
        sum_x, sum_y, xx, xy = (total / self._weight for total in self._sums)
        covariance = xx - torch.outer(sum_x, sum_x)
        variance = covariance.diagonal().clamp_min(0)
        variance = torch.where(variance > 1e-12 * xx.diagonal(), variance, 0)
        if self.task.kind in ("depth", "normals"):
            weight = _solve(covariance, variance, xy - torch.outer(sum_x, sum_y))
            bias = sum_y - sum_x @ weight
        else:
            weight, bias = self._discriminant(sum_x, sum_y, covariance, variance, xy)
        return Probe(self.task, weight.float(), bias.float())

    def _discriminant(
        self, mean: Tensor, prior: Tensor, covariance: Tensor, variance: Tensor, xy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weight and bias of class logits, from the classes' shares (K,) and the sums of their cells (C, K)."""
        seen = prior > 0
        if int(seen.sum()) < 2:
            raise UserError(f"{self.task.name}: no probe can be fitted: all labels of its rows are one class")
        centred = (xy[:, seen] / prior[seen]) - mean[:, None]  # the classes' means, less the mean of all
        within = covariance - (centred * prior[seen]) @ centred.T
        directions = _solve(within, variance, centred)
        offsets = prior[seen].log() - 0.5 * (centred * directions).sum(0) - mean @ directions
        weight = torch.zeros_like(xy)
        bias = torch.full_like(prior, _NEVER)
        weight[:, seen], bias[seen] = directions, offsets
        if self.task.kind == "boundary":
            return weight[:, 1:] - weight[:, :1], bias[1:] - bias[:1]
        return weight, bias


def _solve(matrix: Tensor, variance: Tensor, right: Tensor) -> Tensor:
    """The ridge's solution; a channel that does not vary gets weight 0."""
    varies = variance > 0
    regular = matrix + torch.diag(torch.where(varies, RIDGE * variance, 1.0))
    regular = torch.where(varies[:, None] & varies[None], regular, torch.diag(regular.diagonal()))
    solved: Tensor = torch.linalg.solve(regular, torch.where(varies[:, None], right, 0.0))
    return solved


def _cell_targets(task: Task, label: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of each cell: the share of pixels with a label (h, w), and the sum of their targets (K, h, w), as a share of
    all pixels."""
    if task.kind == "normals":
        valid = (label != IGNORE).any(-1)
        values = F.normalize(label.float(), dim=-1).permute(2, 0, 1)
    elif task.kind == "depth":
        valid = (label > 0) & (label < FARTHEST_M)
        values = label.float()[None]
    else:
        valid = label != IGNORE
        classes = task.channels if task.kind == "classes" else 2
        values = F.one_hot(torch.where(valid, label, 0).long(), classes).permute(2, 0, 1).float()
    stacked = torch.cat([valid.float()[None], torch.where(valid, values, 0.0)])
    pooled = F.adaptive_avg_pool2d(stacked[None], grid)[0]
    return pooled[0], pooled[1:]
