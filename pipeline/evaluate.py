"""Scores of a trained run on a labelled split, and of the constant predictor that every trained arm must beat."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from cache.batch import Batch
from cache.loader import Loader
from cache.store import Store
from pipeline import runs
from pipeline.arms import build_model, find_arm, teachers_read
from pipeline.config import Boundary, Data, Recipe
from pipeline.console import progress, say
from pipeline.stores import find_store, store_tasks
from sak_core.boundary import even_thresholds
from sak_core.constant import ConstantPredictor
from sak_core.metrics import BoundaryMetric, metric_for
from sak_core.stem import normalize
from sak_core.tasks import Task

EVALUATION_BATCH = 16
Scores = dict[str, dict[str, float]]
"""Every score of every task: {task: {score: value}}; the primary one is `task.score`."""


def evaluate(run: Path, data: Data, places: runs.Places) -> dict[str, Any]:
    """Score the finished run's last checkpoint on `data`, and write the scores into the run's folder."""
    recipe = runs.read_recipe(run)
    kept = run / f"scores-{data.dataset}-{data.split}.json"
    if kept.exists():
        say(f"{run.name}: already scored on {data.split}")
        scores: dict[str, Any] = json.loads(kept.read_text())
        return scores
    model, tasks = load_model(run, places)
    result = evaluate_model(model, recipe, tasks, data, places)
    runs.write_atomically(kept, json.dumps(result, indent=1))
    return result


def load_model(run: Path, places: runs.Places) -> tuple[nn.Module, list[Task]]:
    """The trained model of a stage-2 run, in evaluation mode, and its tasks."""
    recipe = runs.read_recipe(run)
    store = find_store(places.features, recipe.data, teachers_read(recipe))
    tasks = store_tasks(store, recipe.tasks, recipe.task_weights)
    model = build_model(recipe, store, tasks)
    runs.load_weights(run, model)
    return model.eval(), tasks


def evaluate_model(model: nn.Module, recipe: Recipe, tasks: Sequence[Task], data: Data, places: runs.Places) -> Scores:
    """Scores of `model` on every valid sample of `data`, whose store must hold the teachers a frozen arm reads."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    device = next(model.parameters()).device
    metrics = {task.name: _metric(task, recipe.boundary).to(device) for task in tasks}
    start = time.monotonic()
    store, loader = _open(recipe, tasks, data, places)
    model.eval()
    with torch.inference_mode(), progress(f"{recipe.arm} on {data.split}", len(loader), "batches") as advance:
        for batch, outputs in predictions(model, recipe, loader, device):
            for task in tasks:
                metrics[task.name].update(outputs[task.name], batch.labels[task.name])
            advance(1)
    say(f"{recipe.arm}: scored {int(store.valid(1).sum())} samples of {data.split} in {time.monotonic() - start:.0f} s")
    return {name: metric.compute() for name, metric in metrics.items()}


def predictions(
    model: nn.Module, recipe: Recipe, loader: Loader, device: torch.device
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Batches with the model's outputs for them, padding cut off."""
    frozen = find_arm(recipe.arm).frozen_features
    for stored in loader:
        batch = _without_padding(stored.to(device))
        if frozen:
            size = (batch.pixels.shape[1], batch.pixels.shape[2])
            yield batch, model(batch.features, size).outputs
        else:
            yield batch, model(normalize(batch.pixels)).outputs


def _metric(task: Task, boundary: Boundary) -> Metric:
    if task.kind == "boundary":
        return BoundaryMetric(boundary.max_dist, even_thresholds(boundary.thresholds))
    return metric_for(task)


def constant_scores(recipe: Recipe, test: Data, places: runs.Places) -> Scores:
    """Scores on `test` of the best constant prediction, fitted on the training labels of `recipe`."""
    store = find_store(places.features, recipe.data)
    tasks = store_tasks(store, recipe.tasks)
    labels = tuple(task.name for task in tasks)
    predictor = ConstantPredictor(tasks)
    for batch in _labels(store, labels):
        predictor.update(batch.labels)
    metrics = {task.name: _metric(task, recipe.boundary) for task in tasks}
    with torch.inference_mode():
        for batch in _labels(find_store(places.features, test), labels):
            outputs = predictor.outputs(len(batch), (batch.pixels.shape[1], batch.pixels.shape[2]))
            for task in tasks:
                metrics[task.name].update(outputs[task.name], batch.labels[task.name])
    return {name: metric.compute() for name, metric in metrics.items()}


def _labels(store: Store, labels: Sequence[str]) -> Iterator[Batch]:
    loader = Loader(store, (), labels, batch_size=EVALUATION_BATCH, num_views=1, shuffle=False)
    return map(_without_padding, (batch.to("cpu") for batch in loader))


def _open(recipe: Recipe, tasks: Sequence[Task], data: Data, places: runs.Places) -> tuple[Store, Loader]:
    teachers = teachers_read(recipe) if find_arm(recipe.arm).frozen_features else ()
    store = find_store(places.features, data, teachers)
    labels = [task.name for task in tasks]
    loader = Loader(store, teachers, labels, batch_size=EVALUATION_BATCH, num_views=1, shuffle=False)
    return store, loader


def _without_padding(batch: Batch) -> Batch:
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
