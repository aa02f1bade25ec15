"""The losses of a training step: distillation over teachers and levels, and the weighted sum over tasks."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.tasks import OverRanks, Task

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""(student (B, C, h, w), teacher (B, C, h, w)) to one value a row, (B,)."""


def cosine_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine between the whole flattened maps, (B,)."""
    # three axes and not flatten(1): both maps are views of channel-last memory, which flatten would copy
    axes = (1, 2, 3)
    norms = torch.linalg.vector_norm(student, dim=axes) * torch.linalg.vector_norm(teacher, dim=axes)
    cosine: Tensor = (student * teacher).sum(axes) / norms.clamp_min(1e-8)
    return 1 - cosine


def smooth_l1_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 (beta 1), mean over a row's elements, (B,)."""
    return F.smooth_l1_loss(student, teacher, reduction="none").mean((1, 2, 3))


def l2_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error, mean over a row's elements, (B,)."""
    return (student - teacher).square().mean((1, 2, 3))


def cosine_and_l1_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """0.9 · (1 - cosine) + 0.1 · smooth L1, (B,).

    The loss of the SAK paper (arXiv 2410.14633), after RADIO's (arXiv 2312.06709).
    """
    return 0.9 * cosine_rows(student, teacher) + 0.1 * smooth_l1_rows(student, teacher)


DISTILLATION: dict[str, RowLoss] = {"cos+l1": cosine_and_l1_rows, "cos": cosine_rows, "l2": l2_rows}
"""Distillation losses by name."""


def distillation_loss(
    aligned: Mapping[str, Sequence[Tensor]],
    targets: Mapping[str, Sequence[Tensor]],
    kind: str = "cos+l1",
    *,
    row_weights: Tensor | None = None,
    level_weights: Mapping[str, Sequence[float]] | None = None,
    over_ranks: OverRanks | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The distillation loss, summed over teachers and levels.

    aligned: the student's features for each teacher, a list of (B, C, h, w), shallowest first.
    targets: the teachers' features, likewise; grids may differ, widths may not.
    kind: a key of `DISTILLATION`.
    row_weights: (B,), 0 for rows that do not count; None counts all alike.
    level_weights: a factor a level for some or all teachers; others have 1.
    over_ranks: averages the sum of row weights over processes (see sak_core.task_losses).

    Returns the weighted total and the unweighted terms, named `<teacher>_level<i + 1>`.
    Raises ValueError where teachers, levels or widths do not fit, naming them.
    """
    if kind not in DISTILLATION:
        near = ", ".join(get_close_matches(kind, DISTILLATION, cutoff=0.0))
        raise ValueError(f"unknown distillation loss {kind!r}, nearest {near}")
    if set(aligned) != set(targets):
        raise ValueError(f"the student has features for {sorted(aligned)}, the batch for {sorted(targets)}")
    if not aligned:
        raise ValueError("a distillation loss needs at least one teacher")
    terms: dict[str, Tensor] = {}
    weighted: list[Tensor] = []
    for teacher, maps in aligned.items():
        if len(maps) != len(targets[teacher]):
            raise ValueError(f"{teacher}: {len(maps)} levels of the student, {len(targets[teacher])} of the teacher")
        for level, (student_map, teacher_map) in enumerate(zip(maps, targets[teacher], strict=True)):
            if student_map.shape[:2] != teacher_map.shape[:2]:
                raise ValueError(
                    f"{teacher} level {level}: the student's map is {tuple(student_map.shape)}, "
                    f"the teacher's {tuple(teacher_map.shape)}; rows and widths must agree"
                )
            rows = DISTILLATION[kind](*on_one_grid(student_map, teacher_map))
            term = _mean_over_rows(rows, row_weights, over_ranks)
            terms[f"{teacher}_level{level + 1}"] = term
            factor = 1.0 if level_weights is None or teacher not in level_weights else level_weights[teacher][level]
            weighted.append(term if factor == 1.0 else factor * term)
    return sum(weighted[1:], weighted[0]), terms


def on_one_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Resizes the student's map if the teacher's is higher (height alone decides), else the teacher's.

    student, teacher: (B, C, h, w) each. Bilinear, align_corners false, no antialias.
    """
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    if teacher.shape[2] > student.shape[2]:
        return F.interpolate(student, size=teacher.shape[2:], mode="bilinear"), teacher
    return student, F.interpolate(teacher, size=student.shape[2:], mode="bilinear")


def task_loss(task: Task, output: Tensor, label: Tensor, over_ranks: OverRanks | None = None) -> Tensor:
    """The task's loss, not yet times its weight.

    output: (B, channels, H, W), raw. label: (B, H, W) or (B, H, W, 3).
    """
    return task.spec.loss(output, label, over_ranks)


def task_losses(
    tasks: Sequence[Task],
    outputs: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    over_ranks: OverRanks | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the tasks' losses, each times its weight, and the weighted terms by task name."""
    terms = {
        task.name: task.weight * task_loss(task, outputs[task.name], labels[task.name], over_ranks) for task in tasks
    }
    values = list(terms.values())
    return sum(values[1:], values[0]), terms


def _mean_over_rows(rows: Tensor, weights: Tensor | None, over_ranks: OverRanks | None) -> Tensor:
    if weights is None:
        return rows.mean()
    total = weights.sum()
    if over_ranks is not None:
        total = over_ranks(total)
    return (rows * weights).sum() / total.clamp_min(1e-8)
