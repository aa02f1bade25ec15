"""Stage 1: distil the teachers' cached features into the student. No teacher is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from cache.joined import JoinedStore
from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.places.local import LocalPlace
from cache.store import Store
from pipeline import runs
from pipeline.console import duration, say
from pipeline.errors import UserError
from pipeline.recipes.arms import (
    build_model,
    class_tokens_read,
    find_arm,
    initialize,
    matches_of,
    parts_read,
    prefixes_read,
    say_matches,
    teachers_read,
)
from pipeline.recipes.config import Recipe
from pipeline.recipes.frozen import check_frozen, frozen_part, student_input
from pipeline.recipes.stores import random_teachers, staged, training_store, warn_of_random, weights_of
from pipeline.runs import lineage
from pipeline.runs.origin import Origin, origin_of_run, trained_from, validation_store
from pipeline.training.before import check_validation, warn_of_settings
from pipeline.training.devices import ALONE, Execution, over_ranks, sole_writer, start
from pipeline.training.evaluate import evaluation_loader
from pipeline.training.linear_probe import probing_of
from pipeline.training.loop import Batches, Trained, train
from pipeline.training.probes import cosines
from pipeline.training.targets import Targets
from pipeline.training.validation import Values, measure, validation_of
from pipeline.training.watch import StepResult
from sak_core.noise import RowNoise
from sak_core.student.parts import freeze
from sak_core.tasks.losses import OverRanks

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def distill(recipe: Recipe, run: Path, places: runs.Places, execution: Execution = ALONE) -> dict[str, Any]:
    """Run stage 1 of `recipe` in the folder `run` (going on where it stopped) and return its results.

    Raises:
        UserError: the arm or `trains` has no stage 1; and as `train`.
    """
    if not find_arm(recipe.arm).distils:
        raise UserError(f"arm {recipe.arm} distils nothing; run `sak finetune` at once")
    made_from = origin_of_run(recipe, places.features)
    if runs.is_finished(run, recipe, made_from):
        say(f"{run.name}: already distilled")
        return runs.read_results(run)
    if recipe.trains == "routers":
        raise UserError("trains = 'routers' belongs to stage 2: a distillation has no routers")
    check_validation(recipe, places)
    probing_of(recipe, places)
    warn_of_settings(recipe)
    with sole_writer(run):
        runs.begin(run, recipe, made_from)
        return _distill(recipe, run, places, made_from, execution)


def _distill(recipe: Recipe, run: Path, places: runs.Places, made_from: Origin, execution: Execution) -> dict[str, Any]:
    """Train in the run's folder, which is this process's own."""
    teachers = teachers_read(recipe)
    store = training_store(places.features, recipe, parts_read(recipe))
    validated = validation_store(recipe, places.features)
    targets = Targets(recipe, store, teachers)
    warn_of_random(run.name, random_teachers(store, teachers))
    matches = matches_of(recipe, store)
    # of a path's norms, those of levels that none of the teacher's is matched to learn in stage 2 alone
    fabric = start(recipe, execution, unused=bool(matches))
    say_matches(matches)
    model = build_model(recipe, store, ())
    initialize(recipe, model)
    freeze(model, recipe.trains)
    check_frozen(recipe, store, model)
    loader: Batches = execution.share(open_loader(store, recipe, (), fabric, places))
    loss = partial(_loss, recipe, targets, store.spec.num_samples, over_ranks(fabric, recipe))
    runs.describe(run, recipe, made_from)
    alone = partial(_loss, recipe, targets, store.spec.num_samples, None)

    def measured(scored: nn.Module) -> Values:
        assert validated
        rows = evaluation_loader(staged(validated, recipe), teachers, (), prefixes=class_tokens_read(recipe))
        return measure(scored, rows, alone, (), recipe.boundary)

    validation = validation_of(recipe, (), measured)
    belongs_to = trained_from(recipe, made_from)
    trained = train(
        fabric,
        recipe,
        run,
        model,
        loader,
        loss,
        belongs_to,
        validation=validation,
        probing=probing_of(recipe, places),
        wandb=execution.wandb,
    )
    results = results_of(recipe, trained, model, store, random_teachers(store, teachers))
    lineage.record(run, recipe, model, store, teachers)
    runs.finish(run, recipe, made_from, results)
    say(f"{run.name}: distilled in {duration(trained.seconds)}, {run}")
    return results


def results_of(
    recipe: Recipe, trained: Trained, model: nn.Module, store: Store, random: Sequence[str], before_s: float = 0.0
) -> dict[str, Any]:
    """What a run of either stage says of itself.

    Args:
        random: teachers that were never trained.
        before_s: seconds of the run that it began with.
    """
    return {
        "stage": recipe.stage,
        "arm": recipe.arm,
        "seed": recipe.seed,
        "step": trained.step,
        "seconds": round(before_s + trained.seconds, 1),
        "seconds_by_part": dict(trained.seconds_by_part),
        "parameters": sum(p.numel() for p in model.parameters()),
        "caches": [store.name],
        "random_weights": list(random),
    }


def open_loader(store: Store, recipe: Recipe, labels: Sequence[str], fabric: Fabric, places: runs.Places) -> Batches:
    """The training batches of a recipe, this process's share: a part of a step each.

    Raises:
        UserError: keys of the recipe that do not go together, or not with where the store lies.
    """
    frozen_part(recipe)  # raises where it does not go with the others
    teachers, is_live = teachers_read(recipe), recipe.source == "live"
    store = _past_page_cache(store, recipe) if recipe.loader.direct else staged(store, recipe)
    loader = Loader(
        store,
        () if is_live else parts_read(recipe),
        labels,
        prefixes=() if is_live else prefixes_read(recipe),
        batch_size=recipe.batch_size // (fabric.world_size * recipe.accumulate),
        num_views=recipe.data.views,
        seed=recipe.seed,
        shuffle="block" if recipe.loader.shuffle == "block" else True,
        buffer_rows=recipe.loader.buffer_rows,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    if not is_live:
        return loader
    from pipeline.training.fresh import FreshBatches
    from pipeline.training.live import LiveBatches, start_teachers

    fresh = FreshBatches(loader, labels, places.root(recipe.data.dataset))
    if not teachers:
        return fresh
    return LiveBatches(fresh, start_teachers(store, teachers, fabric.device, weights_of(store, places.weights)))


def _past_page_cache(store: Store, recipe: Recipe) -> Store:
    """The same store, whose files are opened with O_DIRECT; refused where they are not files of this machine."""
    if recipe.source == "live":
        raise UserError("loader.direct = true reads rows of the cache, and source = 'live' reads none: leave it out")
    if recipe.loader.stage is not None:
        raise UserError("loader.direct = true is for caches on this machine, loader.stage for others: leave one out")
    for one in store.stores:
        if not isinstance(one.place, LocalPlace):
            raise UserError(
                f"loader.direct = true is for a folder of this machine, not {one}: leave it out, or sak copy first"
            )
    direct = {one: Store.open(LocalPlace(one.path, direct=True)) for one in store.stores}
    if isinstance(store, JoinedStore):
        return store.reopened(direct)
    return direct[store]


def _loss(
    recipe: Recipe,
    targets: Targets,
    num_samples: int,
    over_ranks: OverRanks | None,
    model: nn.Module,
    batch: Batch,
    step: int,
) -> StepResult:
    output = model(student_input(recipe, batch), tasks=False)
    noise = noise_of(recipe, batch, num_samples, step)
    loss, terms = targets(output, batch, noise, over_ranks)
    return StepResult(loss, terms, output, lambda: cosines(output.aligned, targets.balanced(batch.features)))


def noise_of(recipe: Recipe, batch: Batch, num_samples: int, step: int) -> RowNoise:
    """A step's noise, keyed by seed, step and row: neither a resume nor the number of processes changes it.

    Args:
        num_samples: of the store, so that each (sample, view) has a number of its own.
    """
    return RowNoise(recipe.seed, step, batch.views * num_samples + batch.samples)
