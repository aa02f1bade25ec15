"""Stage 1 watched by what it is for: a linear probe a task on a few labelled rows, its scores logged.

Nothing of the run depends on it: probes (`pipeline.probes.linear`) are fitted in closed form on frozen maps, draw
nothing from torch's generators, and take part neither in the loss nor in the choice of the run's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cache.format.manifest import SOURCE
from cache.loading.batch import Batch
from cache.store import Store
from pipeline import runs
from pipeline.errors import UserError
from pipeline.probes.linear import ProbeFitter
from pipeline.recipes.config import Recipe
from pipeline.recipes.stores import find_store, staged, store_tasks
from pipeline.training.few_rows import few_rows, spread_over
from pipeline.training.scoring import score
from pipeline.training.validation import Validation, Values
from sak_common.names import unknown
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import normalize
from sak_core.tasks import Task

BATCH = 16
GRID = (8, 8)
"""Cells of the maps that labels are tried on before there are any features."""


@dataclass(frozen=True)
class Probing(Validation):
    """What a run is watched by; its best checkpoint is kept beside the run's own, where `chooses` is not "".

    Attributes:
        every: steps between probes.
    """

    every: int


def probing_of(recipe: Recipe, places: runs.Places) -> Probing | None:
    """What a stage-1 recipe asks for, None where it does not.

    Raises:
        UserError: the split has no labels, or too few, or is the test split; or there is no such task to keep by.
    """
    asked = recipe.probe
    if asked is None:
        return None
    if asked.split == "test":
        raise UserError("probe.split = 'test': test scores choose nothing; name another split")
    store = staged(find_store(places.features, asked), recipe)
    tasks = store_tasks(store, recipe.tasks)
    for path in ("pixels", *(f"labels/{task.name}" for task in tasks)):
        store.place.will_read(store.rows(SOURCE, path).files(1))
    samples = spread_over(store, asked.rows)
    _check_labels(store, tasks, samples)
    kept = next((task for task in tasks if task.name == asked.keep), None)
    if asked.keep and kept is None:
        raise UserError(f"probe.keep: {unknown('task', asked.keep, [task.name for task in tasks])}")

    def measure(model: nn.Module) -> Values:
        assert isinstance(model, StudentNetwork)
        return probe(model, store, tasks, samples, recipe)

    chooses = f"{kept.name}/{kept.score}" if kept else ""
    return Probing(measure, chooses, kept.higher_is_better if kept else True, asked.every)


@torch.no_grad()
def probe(model: StudentNetwork, store: Store, tasks: Sequence[Task], samples: Sequence[int], recipe: Recipe) -> Values:
    """Scores by `<task>/<score>` of linear probes that are fitted on every other sample and scored on the rest."""
    names = [task.name for task in tasks]
    fitters = {task.name: ProbeFitter(task) for task in tasks}
    for batch in _batches(store, samples[::2], names):
        _update(fitters, features(model, batch), batch)
    fitted = {name: fitter.fit() for name, fitter in fitters.items()}

    def predictions() -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        for batch in _batches(store, samples[1::2], names):
            maps, size = features(model, batch), (batch.pixels.shape[1], batch.pixels.shape[2])
            yield batch, {name: head(maps, size) for name, head in fitted.items()}

    scores, _ = score(tasks, recipe.boundary, store, predictions())
    return {f"{task}/{name}": value for task, by_name in scores.items() for name, value in by_name.items()}


def _check_labels(store: Store, tasks: Sequence[Task], samples: Sequence[int]) -> None:
    """Refuse rows with too few labels of a task to fit a probe on."""
    fitters = {task.name: ProbeFitter(task) for task in tasks}
    for batch in _batches(store, samples[::2], list(fitters)):
        _update(fitters, torch.zeros(len(batch), 1, *GRID), batch)
    for fitter in fitters.values():
        fitter.fit()


def _update(fitters: Mapping[str, ProbeFitter], maps: Tensor, batch: Batch) -> None:
    for name, fitter in fitters.items():
        for own, label in zip(maps, batch.labels[name], strict=True):
            fitter.update(own, label)


def features(model: StudentNetwork, batch: Batch) -> Tensor:
    """What a probe reads: the deepest maps of the stem and, as they are aligned to each teacher, of every path, side by
    side: (B, C, h, w) on the CPU."""
    device = next(model.parameters()).device
    output = model(normalize(batch.pixels.to(device)), tasks=False)
    return torch.cat([output.stem[-1], *(levels[-1] for levels in output.aligned.values())], dim=1).float().cpu()


def _batches(store: Store, samples: Sequence[int], labels: Sequence[str]) -> Iterator[Batch]:
    for begin in range(0, len(samples), BATCH):
        yield few_rows(store, samples[begin : begin + BATCH], labels=labels)
