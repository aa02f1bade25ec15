"""Stage 1: distil the teachers' cached features into the student. No teacher is in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cache.batch import Batch
from cache.loader import Loader
from cache.store import Store
from pipeline import runs
from pipeline.arms import build_model, find_arm, teachers_read
from pipeline.config import Recipe
from pipeline.console import duration, say
from pipeline.errors import UserError
from pipeline.stores import find_store, random_teachers
from pipeline.training import train
from sak_core.losses import distillation_loss
from sak_core.stem import normalize


def distill(recipe: Recipe, run: Path, places: runs.Places) -> dict[str, Any]:
    """Run stage 1 of `recipe` in the folder `run` (going on where it stopped) and return its results."""
    if not find_arm(recipe.arm).distils:
        raise UserError(f"arm {recipe.arm} distils nothing; run `sak finetune` at once")
    teachers = teachers_read(recipe)
    store = find_store(places.features, recipe.data, teachers)
    if runs.begin(run, recipe):
        say(f"{run.name}: already distilled")
        return runs.read_results(run)
    model = build_model(recipe, store, ())
    trained = train(recipe, run, model, partial(open_loader, store, recipe, teachers, ()), partial(_loss, recipe))
    results = {
        "stage": "distill",
        "arm": recipe.arm,
        "seed": recipe.seed,
        "seconds": round(trained.seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "caches": [store.name],
        "random_weights": random_teachers(store, teachers),
    }
    runs.finish(run, recipe, results)
    say(f"{run.name}: distilled in {duration(trained.seconds)}, {run}")
    return results


def open_loader(
    store: Store, recipe: Recipe, teachers: tuple[str, ...], labels: tuple[str, ...], *, rank: int, world_size: int
) -> Loader:
    """The training batches of a recipe."""
    return Loader(
        store,
        teachers,
        labels,
        batch_size=recipe.batch_size,
        num_views=recipe.data.views,
        seed=recipe.seed,
        rank=rank,
        world_size=world_size,
    )


def _loss(recipe: Recipe, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    output = model(normalize(batch.pixels), tasks=False)
    return distillation_loss(output.aligned, batch.features, recipe.loss)
