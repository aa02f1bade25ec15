"""Trained models and a few rows of a cache, for panels that show what a model makes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cache.store import Store
from pipeline import runs
from pipeline.errors import UserError
from pipeline.recipes.arms import build_model, find_arm, parts_read
from pipeline.recipes.config import Recipe
from pipeline.recipes.stores import Caches, joined, store_tasks, training_store
from pipeline.report.facts import CacheFacts, RunFacts, StudyFacts
from sak_core.tasks import Task


@dataclass(frozen=True)
class Opened:
    """A trained model in evaluation mode, and the cache that it was trained on."""

    run: RunFacts
    recipe: Recipe
    model: nn.Module
    tasks: Sequence[Task]
    trained_on: Store


def open_run(run: RunFacts, features: Caches) -> Opened:
    """The model of a run, of either stage.

    Raises:
        UserError: its cache or its weights are not there.
    """
    recipe = runs.read_recipe(run.folder)
    if find_arm(recipe.arm).per_task:
        raise UserError(f"{run.name} is one student a task")
    store = training_store(features, recipe, parts_read(recipe))
    tasks = () if recipe.stage == "distill" else tuple(store_tasks(store, recipe.tasks, recipe.loss.task_weights))
    model = build_model(recipe, store, tasks)
    runs.load_weights(run.folder, model)
    return Opened(run, recipe, model.eval(), tasks, store)


def split_cache(found: StudyFacts) -> CacheFacts | None:
    """The cache that the report's scores are of, None where it is not at hand."""
    for cache in found.caches.values():
        if found.split == f"{cache.dataset}-{cache.split}-{cache.size[0]}x{cache.size[1]}":
            return cache
    return None


def open_cache(cache: CacheFacts, teachers: Sequence[str]) -> Store:
    """A cache with `teachers`, each read where it lies."""
    return joined([Store.open(path) for path in (cache.path, *cache.others)], teachers, 1)
