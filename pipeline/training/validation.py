"""Validation within a run: scores on a split of their own choose the best checkpoint. Test scores never do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cache.loading.batch import Batch
from cache.loading.loader import Loader
from pipeline.errors import UserError
from pipeline.recipes.config import Recipe
from pipeline.recipes.tables import Boundary
from pipeline.training.evaluate import without_padding
from pipeline.training.scoring import score
from pipeline.training.watch import StepLoss
from sak_common.names import unknown
from sak_core.tasks import Task
from sak_core.tasks.losses import labelled_rows

LOSS = "loss"
Values = dict[str, float | None]
"""What a validation gives, by name; None for what no labelled pixel says anything about."""


@dataclass(frozen=True)
class Validation:
    """What chooses a run's best checkpoint.

    Attributes:
        measure: a model in evaluation mode to values by name, the same on all processes.
        chooses: the name of the value that is best when highest, or lowest.
        higher_is_better: which of these.
    """

    measure: Callable[[nn.Module], Values]
    chooses: str
    higher_is_better: bool

    def is_better(self, value: float | None, best: float | None) -> bool:
        """Whether `value` is ahead of the best so far; the first of equals stays, what is no number is never ahead."""
        if value is None or not math.isfinite(value):
            return False
        if best is None or math.isnan(best):
            return True
        return value > best if self.higher_is_better else value < best


def validation_of(recipe: Recipe, tasks: Sequence[Task], measure: Callable[[nn.Module], Values]) -> Validation | None:
    """What a recipe asks for, None where it does not.

    Raises:
        UserError: the split is a test split, or the score is unknown.
    """
    if recipe.validation is None or recipe.validation.every is None:
        return None
    if recipe.validation.split == "test":
        raise UserError("validation.split = 'test': test scores never choose a checkpoint; name another split")
    if recipe.validation.best_by == LOSS:
        return Validation(measure, LOSS, higher_is_better=False)
    by_name = {task.name: task for task in tasks}
    if recipe.validation.best_by not in by_name:
        raise UserError(f"validation.best_by: {unknown('score', recipe.validation.best_by, [LOSS, *by_name])}")
    task = by_name[recipe.validation.best_by]
    return Validation(measure, f"{task.name}/{task.score}", task.higher_is_better)


def measure(model: nn.Module, loader: Loader, loss: StepLoss, tasks: Sequence[Task], boundary: Boundary) -> Values:
    """The loss over a loader's rows, and every score of every task, `<task>/<score>`; without tasks, in stage 1, the
    terms of the loss and the cosines to each teacher's levels, means over rows. `loss` sees uneven batches, so it must
    average nothing over processes."""
    device = next(model.parameters()).device
    losses: list[tuple[Tensor, int]] = []
    terms: dict[str, list[tuple[Tensor, int]]] = {task.name: [] for task in tasks}
    distances: dict[str, list[tuple[Tensor, int]]] = {}

    def predictions() -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        for stored in loader:
            batch = without_padding(stored.to(device))
            if len(batch):
                result = loss(model, batch, 0)
                losses.append((result.loss, len(batch)))
                for task, found in terms.items():
                    found.append((result.terms[task], int(labelled_rows(batch.labels[task]).sum())))
                for name, value in () if tasks else {**result.terms, **result.probe()}.items():
                    distances.setdefault(name, []).append((value, len(batch)))
                yield batch, result.output.outputs

    scores, _ = score(tasks, boundary, loader.store, predictions())
    values: Values = {f"{t}/{name}": v for t, by in scores.items() for name, v in by.items()}
    values |= {name: total / rows for name, found in distances.items() for total, rows in [_summed(found)]}
    says_nothing = bool(values) and all(value is None for value in values.values())
    return {LOSS: None if says_nothing else mean_loss(losses, terms), **values}


def mean_loss(losses: Iterable[tuple[Tensor, int]], terms: Mapping[str, Iterable[tuple[Tensor, int]]]) -> float:
    """The mean of batches' losses by their number of rows, over all processes.

    Where some rows have no label, each task's mean is over those that have one: a task without a label has no loss, not
    one of 0. NaN where none has any.

    Args:
        terms: what they are made of, by task, with the rows that are labelled for it.
    """
    total, rows = _summed(losses)
    by_task = [_summed(found) for found in terms.values()]
    if all(labelled == rows for _, labelled in by_task):
        return total / rows
    means = [term / labelled for term, labelled in by_task if labelled]
    return sum(means) if means else math.nan


def _summed(losses: Iterable[tuple[Tensor, int]]) -> tuple[float, float]:
    """Losses times their rows, and the rows, over all processes."""
    total = torch.zeros(2, dtype=torch.float64)
    for loss, rows in losses:
        total += torch.tensor([float(loss) * rows, rows], dtype=torch.float64)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        shared = total.to(device)
        torch.distributed.all_reduce(shared)
        total = shared.cpu()
    return float(total[0]), float(total[1])
