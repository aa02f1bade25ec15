"""The losses of a training step: distillation over teachers and levels, and the weighted sum over tasks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sak_common.names import UnknownName, find, unknown
from sak_core.losses.dropping import TeacherDropping
from sak_core.losses.rows import DISTILLATION
from sak_core.tasks import Task
from sak_core.tasks.losses import POSITIVE_BOUNDARY_WEIGHT, OverRanks, boundary_cross_entropy


def distillation_loss(
    aligned: Mapping[str, Sequence[Tensor]],
    targets: Mapping[str, Sequence[Tensor]],
    kind: str = "cos+l1",
    *,
    relational: float = 0.0,
    level_weights: Mapping[str, Sequence[float]] | None = None,
    dropping: TeacherDropping | None = None,
    over_ranks: OverRanks | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The distillation loss, summed over teachers and levels, mean over rows.

    Args:
        aligned: the student's features for each teacher, a list of (B, C, h, w), shallowest first.
        targets: the teachers' features, likewise; grids may differ, widths may not.
        kind: a key of sak_core.losses.rows.DISTILLATION.
        relational: factor of the relational loss beside `kind`.
        level_weights: a factor a level for some or all teachers; others have 1.
        dropping: drops teachers a row. The mean is then over the pairs of row and teacher that are left, times the
            number of teachers, so that dropping none changes nothing.
        over_ranks: averages sums of weights over processes (see sak_core.tasks.losses).

    Returns:
        The total and the unweighted terms, all rows and teachers kept, named `<teacher>_level<i + 1>`.

    Raises:
        ValueError: teachers, levels or widths do not fit; they are named.
    """
    row_loss = find("distillation loss", kind, DISTILLATION).with_relational(relational)
    _check(aligned, targets, level_weights or {})
    terms: dict[str, Tensor] = {}
    by_teacher: list[Tensor] = []
    for teacher, maps in aligned.items():
        factors = (level_weights or {}).get(teacher, (1.0,) * len(maps))
        weighted: list[Tensor] = []
        for level, factor in enumerate(factors):
            rows = row_loss(maps[level], targets[teacher][level])
            terms[f"{teacher}_level{level + 1}"] = _mean(rows, None, over_ranks)
            weighted.append(rows if factor == 1 else factor * rows)
        by_teacher.append(sum(weighted[1:], weighted[0]))
    if dropping is None:
        return _mean(sum(by_teacher[1:], by_teacher[0]), None, over_ranks), terms
    losses = torch.stack(by_teacher, dim=1)
    return len(by_teacher) * _mean(losses, dropping.kept(losses), over_ranks), terms


def task_loss(
    task: Task,
    output: Tensor,
    label: Tensor,
    over_ranks: OverRanks | None = None,
    positives: float = POSITIVE_BOUNDARY_WEIGHT,
) -> Tensor:
    """The task's loss, (), not yet times its weight.

    Args:
        output: (B, channels, H, W), raw.
        label: (B, H, W) or (B, H, W, 3).
        positives: weight of boundary pixels.
    """
    if task.kind == "boundary":
        return boundary_cross_entropy(output, label, over_ranks, positives)
    return task.spec.loss(output, label, over_ranks)


def task_losses(
    tasks: Sequence[Task],
    outputs: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    over_ranks: OverRanks | None = None,
    positives: float = POSITIVE_BOUNDARY_WEIGHT,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the tasks' losses, each times its weight, (), and the weighted terms by task name, () each.

    Args:
        outputs: by task name, raw, (B, channels, H, W).
        labels: by task name, (B, H, W) or (B, H, W, 3).
        positives: as for `task_loss`.
    """
    terms = {
        task.name: task.weight * task_loss(task, outputs[task.name], labels[task.name], over_ranks, positives)
        for task in tasks
    }
    values = list(terms.values())
    return sum(values[1:], values[0]), terms


def load_balance(routes: Sequence[Tensor], over_ranks: OverRanks | None = None) -> Tensor:
    """How unevenly experts are taken, a scalar: the sum over `routes` of the squared coefficient of variation of their
    mean weights (Shazeer et al. 2017, arXiv 1701.06538, equation 7; MLoRE, arXiv 2403.17749).

    Args:
        routes: weights (B, T, N) of N experts for B images and T tasks, one a place where experts are weighed.
        over_ranks: takes the means over all processes' images; each passes on the gradient of its own.
    """
    total = routes[0].new_zeros(())
    for weights in routes:
        mean = weights.mean((0, 1))
        if over_ranks is not None:
            mean = mean + (over_ranks(mean) - mean).detach()
        # (standard deviation with N - 1 / mean)^2
        total = total + mean.var() / mean.mean().square()
    return total


def _check(
    aligned: Mapping[str, Sequence[Tensor]],
    targets: Mapping[str, Sequence[Tensor]],
    level_weights: Mapping[str, Sequence[float]],
) -> None:
    if set(aligned) != set(targets):
        raise ValueError(f"the student has features for {sorted(aligned)}, the batch for {sorted(targets)}")
    if not aligned:
        raise ValueError("a distillation loss needs at least one teacher")
    for teacher, factors in level_weights.items():
        if teacher not in aligned:
            raise UnknownName(f"level weights: {unknown('teacher', teacher, aligned)}")
        if len(factors) != len(aligned[teacher]):
            raise ValueError(f"{teacher}: {len(factors)} level weights for {len(aligned[teacher])} levels")
    for teacher, maps in aligned.items():
        if len(maps) != len(targets[teacher]):
            raise ValueError(f"{teacher}: {len(maps)} levels of the student, {len(targets[teacher])} of the teacher")
        for level, (student_map, teacher_map) in enumerate(zip(maps, targets[teacher], strict=True)):
            if student_map.shape[:2] != teacher_map.shape[:2]:
                raise ValueError(
                    f"{teacher} level {level}: the student's map is {tuple(student_map.shape)}, "
                    f"the teacher's {tuple(teacher_map.shape)}; rows and widths must agree"
                )


def _mean(values: Tensor, weights: Tensor | None, over_ranks: OverRanks | None) -> Tensor:
    """Weighted mean; plain where `weights` is None."""
    if weights is None:
        return values.mean()
    total = weights.sum()
    if over_ranks is not None:
        total = over_ranks(total)
    return (values * weights).sum() / total.clamp_min(1e-8)
