"""Stage 1 watched by what it is for: a linear probe a task on a few labelled rows, its scores logged.

Nothing of the run depends on it: probes are fitted in closed form on frozen maps, draw nothing at random, and take
neither part in the loss nor in the choice of the run's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.loading.batch import Batch
from cache.store import Store
from pipeline import runs
from pipeline.errors import UserError
from pipeline.recipes.config import Recipe
from pipeline.recipes.stores import find_store, store_tasks
from pipeline.training.evaluate import score
from pipeline.training.few_rows import few_rows, spread_over
from pipeline.training.validation import Values
from sak_common.names import unknown
from sak_core.labels import IGNORE
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import normalize
from sak_core.tasks import Task

RIDGE = 1e-2
"""Of the mean variance of a feature, which is 1: how much large weights cost."""
BATCH = 16
SURE = 0.02
"""Least and 1 - most probability that a probe says."""


@dataclass(frozen=True)
class Probing:
    """every: steps between probes. measure: a student in evaluation mode to scores by `<task>/<score>`. chooses: the
    score whose best checkpoint is kept beside the run's own, None for none."""

    every: int
    measure: Callable[[nn.Module], Values]
    chooses: str | None
    higher_is_better: bool

    def is_better(self, value: float | None, best: float | None) -> bool:
        """Whether `value` is ahead of the best so far; the first of equals stays."""
        if value is None or best is None:
            return value is not None
        return value > best if self.higher_is_better else value < best


def probing_of(recipe: Recipe, places: runs.Places) -> Probing | None:
    """What a stage-1 recipe asks for, None where it does not.

    Raises `UserError` where the split has no labels, too few rows, or is the test split, and for an unknown task to
    keep by.
    """
    asked = recipe.probe
    if asked is None:
        return None
    if asked.split == "test":
        raise UserError("probe.split = 'test': test scores choose nothing; name another split")
    store = find_store(places.features, asked)
    tasks = store_tasks(store, recipe.tasks)
    samples = spread_over(store, asked.rows)
    if len(samples) < 2:
        raise UserError(f"probe: {store.name} has one valid sample; a probe is fitted on some and scored on others")
    kept = next((task for task in tasks if task.name == asked.keep), None)
    if asked.keep and kept is None:
        raise UserError(f"probe.keep: {unknown('task', asked.keep, [task.name for task in tasks])}")

    def measure(model: nn.Module) -> Values:
        assert isinstance(model, StudentNetwork)
        return probe(model, store, tasks, samples, recipe)

    chooses = f"{kept.name}/{kept.score}" if kept else None
    return Probing(asked.every, measure, chooses, kept.higher_is_better if kept else True)


@torch.no_grad()
def probe(model: StudentNetwork, store: Store, tasks: Sequence[Task], samples: Sequence[int], recipe: Recipe) -> Values:
    """Scores by `<task>/<score>` of linear probes that are fitted on every other sample and scored on the rest."""
    fit, rest = list(samples[::2]), list(samples[1::2])
    names = [task.name for task in tasks]
    maps, labels = [], []
    for batch in _batches(store, fit, names):
        maps.append(features(model, batch))
        labels.append(batch.labels)
    tokens = torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps]).double()
    mean, spread = tokens.mean(0), tokens.std(0).clamp_min(1e-6)
    grid = (maps[0].shape[2], maps[0].shape[3])
    heads = {
        task.name: _fit((tokens - mean) / spread, _targets(task, torch.cat([of[task.name] for of in labels]), grid))
        for task in tasks
    }

    def predictions() -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        for batch in _batches(store, rest, names):
            own = (features(model, batch).permute(0, 2, 3, 1).double() - mean) / spread
            size = batch.pixels.shape[1:3]
            yield batch, {task.name: _output(task, own, heads[task.name], (size[0], size[1])) for task in tasks}

    scores, _ = score(tasks, recipe.boundary, store, predictions())
    return {f"{task}/{name}": value for task, by_name in scores.items() for name, value in by_name.items()}


def features(model: StudentNetwork, batch: Batch) -> Tensor:
    """What a probe reads: the deepest maps of the stem and, as they are aligned to each teacher, of every path, side by
    side: (B, C, h, w) on the CPU."""
    device = next(model.parameters()).device
    output = model(normalize(batch.pixels.to(device)), tasks=False)
    return torch.cat([output.stem[-1], *(levels[-1] for levels in output.aligned.values())], dim=1).float().cpu()


def _batches(store: Store, samples: Sequence[int], labels: Sequence[str]) -> Iterator[Batch]:
    for begin in range(0, len(samples), BATCH):
        yield few_rows(store, samples[begin : begin + BATCH], labels=labels)


def _targets(task: Task, label: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What a probe of `task` is fitted to at each cell: (n, outputs) float64, and which cells have a label, (n,)."""
    maps = label[..., None] if label.ndim == 3 else label
    small = F.interpolate(maps.permute(0, 3, 1, 2).float(), size=grid, mode="nearest").permute(0, 2, 3, 1).flatten(0, 2)
    valid = (small != IGNORE).any(1)
    if task.kind == "classes":
        classes = torch.where(valid, small[:, 0], 0).long()
        return F.one_hot(classes, len(task.classes)).double(), valid
    return small.double(), valid


def _fit(tokens: Tensor, targets: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Ridge regression: weights (C, outputs) and bias (outputs,); zeros where no cell has a label."""
    values, valid = targets
    x, y = tokens[valid], values[valid]
    if not len(x):
        return tokens.new_zeros(tokens.shape[1], values.shape[1]), tokens.new_zeros(values.shape[1])
    bias, centre = y.mean(0), x.mean(0)
    x = x - centre
    gram = x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x.T @ (y - bias) / len(x))
    return weights, bias - centre @ weights


def _output(task: Task, own: Tensor, head: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """A probe's values on (B, h, w, C) in the form of a network's raw output (B, channels, H, W) of `task`."""
    weights, bias = head
    small = (own @ weights + bias).permute(0, 3, 1, 2)
    values = F.interpolate(small, size=size, mode="bilinear", align_corners=False).float()
    if task.kind in ("saliency", "boundary"):
        sure = torch.logit(values.clamp(SURE, 1 - SURE))
        return torch.cat([torch.zeros_like(sure), sure], dim=1) if task.kind == "saliency" else sure
    return values
