"""How far a student's map is from a teacher's, a value a row; a distillation loss is one of these, or a sum
of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.student.heads.base import resize

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""(student (B, C, h, w), teacher, likewise) to one value a row, (B,)."""


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine between the whole flattened maps (B, C, h, w): (B,), in [0, 2]."""
    # three axes and not flatten(1): both maps are views of channel-last memory, which flatten would copy
    similarity: Tensor = (student * teacher).sum((1, 2, 3)) / (_length(student) * _length(teacher)).clamp_min(1e-8)
    return 1 - similarity


def _length(maps: Tensor) -> Tensor:
    """Lengths of whole maps (B, C, h, w), (B,); by way of their tokens', since torch adds up all squares one by one on
    a CPU, and the cosine of a map of 5 million values with itself came out as 1.00013.
    """
    length: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(maps, dim=1), dim=(1, 2))
    return length


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 (beta 1) of maps (B, C, h, w), mean over a row's elements: (B,)."""
    return F.smooth_l1_loss(student, teacher, reduction="none").mean((1, 2, 3))


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of maps (B, C, h, w), mean over a row's elements: (B,)."""
    return (student - teacher).square().mean((1, 2, 3))


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error between the two Gram matrices of unit-length tokens within an image, mean over token pairs: (B,).

    Only which tokens are alike is compared, so rotations of the feature space cost nothing and widths may
    differ. The teacher is resized to the student's grid, since the matrices grow with the square of the
    number of tokens.

    Source: the Gram loss of DINOv3 (arXiv 2508.10104, equation 2), there against an earlier self as teacher.

    Args:
        student, teacher: (B, C, h, w) each, of any widths.
    """
    teacher = resize(teacher, student.shape[2:])
    return (_gram(student) - _gram(teacher)).square().mean((1, 2))


def _gram(maps: Tensor) -> Tensor:
    """(B, C, h, w) to the cosines between all pairs of tokens, (B, h·w, h·w)."""
    tokens = F.normalize(maps.permute(0, 2, 3, 1).flatten(1, 2), dim=-1)
    return tokens @ tokens.transpose(1, 2)


def on_finer_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Resizes the student's map if the teacher's is higher (height alone decides), else the teacher's: bilinear,
    align_corners false, no antialias.

    Args:
        student, teacher: (B, C, h, w) each.
    """
    if teacher.shape[2] > student.shape[2]:
        return resize(student, teacher.shape[2:]), teacher
    return student, resize(teacher, student.shape[2:])


@dataclass(frozen=True)
class Distillation:
    """A distillation loss: a weighted sum of row losses on the finer of both grids, and of the relational
    one.

    Attributes:
        pointwise: factors and losses.
        relational: its factor.
    """

    pointwise: tuple[tuple[float, RowLoss], ...] = ()
    relational: float = 0.0

    def with_relational(self, factor: float) -> Distillation:
        """This loss, with `factor` times the relational one added."""
        return replace(self, relational=self.relational + factor)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, C, h, w) and (B, C, h', w') to (B,)."""
        values: list[Tensor] = []
        if self.pointwise:
            on_grid = on_finer_grid(student, teacher)
            values = [factor * loss(*on_grid) for factor, loss in self.pointwise]
        if self.relational:
            values.append(self.relational * relational(student, teacher))
        return sum(values[1:], values[0])


# the published loss is that of the SAK paper (arXiv 2410.14633), after RADIO's (arXiv 2312.06709)
_PUBLISHED = ((0.9, cosine), (0.1, smooth_l1))

DISTILLATION: dict[str, Distillation] = {
    "cos+l1": Distillation(_PUBLISHED),
    "cos": Distillation(((1.0, cosine),)),
    "l2": Distillation(((1.0, l2),)),
    "relational": Distillation(relational=1.0),
}
"""Distillation losses by name; "cos+l1" is the published one."""
