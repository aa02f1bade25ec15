"""What to watch of a step beside its losses: how near the student is to each teacher, and what routers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.losses.rows import on_finer_grid
from sak_core.student.network import StudentOutput


@torch.no_grad()
def cosines(aligned: Mapping[str, Sequence[Tensor]], targets: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Mean cosine of tokens between the student's maps and what they are compared with, (B, C, h, w) each, on the
    finer of both grids: scalars by `cosine/<teacher>_level<i + 1>`."""
    found = {}
    for teacher, maps in aligned.items():
        for level, pair in enumerate(zip(maps, targets[teacher], strict=True)):
            student, theirs = on_finer_grid(*(m.float() for m in pair))
            found[f"cosine/{teacher}_level{level + 1}"] = F.cosine_similarity(student, theirs, dim=1).mean()
    return found


def router_means(output: StudentOutput, teachers: Sequence[str]) -> dict[str, Tensor]:
    """Mean router weights over a batch: scalars by `router/<task>_level<i + 1>/<expert>`; experts are the stem and
    `teachers`, or (under frozen features) the teachers alone."""
    found = {}
    for task, levels in output.router_weights.items():
        for level, weights in enumerate(levels):
            experts = teachers if weights.shape[1] == len(teachers) else ("stem", *teachers)
            for expert, value in zip(experts, weights.float().mean(0), strict=True):
                found[f"router/{task}_level{level + 1}/{expert}"] = value
    return found
