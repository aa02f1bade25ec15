"""Scores of a trained run on a labelled split, and of the constant predictor that every trained arm must beat."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from cache.batch import Batch
from cache.loader import Loader
from cache.store import Store
from pipeline import runs
from pipeline.arms import build_model, find_arm, run_model, teachers_read
from pipeline.config import Boundary, Data, Recipe
from pipeline.console import progress, say
from pipeline.errors import UserError
from pipeline.stores import find_store, store_tasks, training_store, warn_of_random
from sak_core.boundary import even_thresholds
from sak_core.constant import ConstantPredictor
from sak_core.metrics import BoundaryMetric, metric_for
from sak_core.tasks import Task

EVALUATION_BATCH = 16
Scores = dict[str, dict[str, float]]
"""Every score of every task: {task: {score: value}}; the primary one is `task.score`."""


def evaluate(run: Path, data: Data, places: runs.Places) -> dict[str, Any]:
    """Score the finished run's last checkpoint on `data`, and write the scores into the run's folder."""
    recipe = runs.read_recipe(run)
    if (run / "results.json").exists():
        warn_of_random(run.name, runs.read_results(run)["random_weights"])
    kept = runs.scores_path(run, data)
    if kept.exists():
        say(f"{run.name}: already scored on {data.split}")
        scores: dict[str, Any] = json.loads(kept.read_text())
        return scores
    if find_arm(recipe.arm).per_task:
        parts = [evaluate(part, data, places) for part in _parts(run)]
        result = {task: values for part in parts for task, values in part.items()}
    else:
        model, tasks = load_model(run, places)
        result = evaluate_model(model, recipe, tasks, data, places)
    runs.write_atomically(kept, json.dumps(result, indent=1))
    return result


def load_model(run: Path, places: runs.Places) -> tuple[nn.Module, list[Task]]:
    """The trained model of a stage-2 run, in evaluation mode, and its tasks."""
    recipe = runs.read_recipe(run)
    if find_arm(recipe.arm).per_task:
        raise UserError(f"{run} is one student a task: name one of its folders, such as {_parts(run)[0]}")
    store = training_store(places.features, recipe, teachers_read(recipe))
    tasks = store_tasks(store, recipe.tasks, recipe.task_weights)
    model = build_model(recipe, store, tasks)
    runs.load_weights(run, model)
    return model.eval(), tasks


def _parts(run: Path) -> list[Path]:
    """The folders of a run that is one student a task."""
    return [run / task for task in runs.read_results(run)["tasks"]]


def evaluate_model(model: nn.Module, recipe: Recipe, tasks: Sequence[Task], data: Data, places: runs.Places) -> Scores:
    """Scores of `model` on every valid sample of `data`, whose store must hold the teachers a frozen arm reads."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    start = time.monotonic()
    loader = open_evaluation(recipe, tasks, data, places, EVALUATION_BATCH)
    model.eval()
    with progress(f"{recipe.arm} on {data.split}", len(loader), "batches") as advance:
        scores = score(tasks, recipe.boundary, _predictions(model, recipe, loader, advance))
    samples = int(loader.store.valid(1).sum())
    say(f"{recipe.arm}: scored {samples} samples of {data.split} in {time.monotonic() - start:.0f} s")
    return scores


def constant_scores(recipe: Recipe, test: Data, places: runs.Places) -> Scores:
    """Scores on `test` of the best constant prediction, fitted on the training labels of `recipe`."""
    store = find_store(places.features, recipe.data)
    tasks = store_tasks(store, recipe.tasks)
    labels = tuple(task.name for task in tasks)
    predictor = ConstantPredictor(tasks)
    for batch in _labels(store, labels):
        predictor.update(batch.labels)
    batches = _labels(find_store(places.features, test), labels)
    pairs = ((b, predictor.outputs(len(b), (b.pixels.shape[1], b.pixels.shape[2]))) for b in batches)
    return score(tasks, recipe.boundary, pairs)


def score(
    tasks: Sequence[Task], boundary: Boundary, predictions: Iterable[tuple[Batch, Mapping[str, Tensor]]]
) -> Scores:
    """Scores of raw outputs by task against their batches' labels."""
    metrics = {task.name: _metric(task, boundary) for task in tasks}
    with torch.inference_mode():
        for batch, outputs in predictions:
            for name, metric in metrics.items():
                metric.to(outputs[name].device).update(outputs[name], batch.labels[name])
    return {name: metric.compute() for name, metric in metrics.items()}


def _metric(task: Task, boundary: Boundary) -> Metric:
    if task.kind == "boundary":
        return BoundaryMetric(boundary.max_dist, even_thresholds(boundary.thresholds))
    return metric_for(task)


def _predictions(
    model: nn.Module, recipe: Recipe, loader: Loader, advance: Callable[..., None]
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Batches on the model's device, padding cut off, with the model's outputs for them."""
    device = next(model.parameters()).device
    for stored in loader:
        batch = without_padding(stored.to(device))
        if len(batch):  # a process may have nothing but padding at the end
            yield batch, run_model(recipe, model, batch).outputs
        advance(1)


def _labels(store: Store, labels: Sequence[str]) -> Iterator[Batch]:
    loader = Loader(store, (), labels, batch_size=EVALUATION_BATCH, num_views=1, shuffle=False)
    return map(without_padding, (batch.to("cpu") for batch in loader))


def open_evaluation(recipe: Recipe, tasks: Sequence[Task], data: Data, places: runs.Places, batch_size: int) -> Loader:
    """The samples of `data` in order, with the tasks' labels and the features that a frozen arm reads."""
    teachers = teachers_read(recipe) if find_arm(recipe.arm).frozen_features else ()
    store = find_store(places.features, data, teachers)
    return evaluation_loader(store, teachers, [task.name for task in tasks], batch_size)


def evaluation_loader(
    store: Store, teachers: Sequence[str], labels: Sequence[str], batch_size: int = EVALUATION_BATCH
) -> Loader:
    """The samples of a store in order, this process's share, the last batches padded."""
    # several processes share the samples; their metrics' sums meet when scores are computed
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Loader(
        store,
        teachers,
        labels,
        batch_size=batch_size,
        num_views=1,
        shuffle=False,
        rank=torch.distributed.get_rank() if shared else 0,
        world_size=torch.distributed.get_world_size() if shared else 1,
    )


def without_padding(batch: Batch) -> Batch:
    """The rows of weight 1: an evaluation's last batch is padded."""
    keep = batch.weights > 0
    if bool(keep.all()):
        return batch
    return Batch(
        samples=batch.samples[keep],
        views=batch.views[keep],
        weights=batch.weights[keep],
        pixels=batch.pixels[keep],
        features={name: [level[keep] for level in levels] for name, levels in batch.features.items()},
        labels={name: label[keep] for name, label in batch.labels.items()},
    )
