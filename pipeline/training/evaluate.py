"""Scores of a trained run on a labelled split, and of the constant predictor that every trained arm must beat."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.format.spec import SourceSpec
from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.store import Store
from pipeline import runs
from pipeline.console import progress, say, warn
from pipeline.errors import UserError
from pipeline.recipes.arms import build_model, check_decoder, features_read, find_arm, run_model, teachers_read
from pipeline.recipes.config import Data, Recipe
from pipeline.recipes.stores import find_store, row_of, staged, store_tasks, training_store, warn_of_random
from pipeline.results import Scores
from pipeline.runs.origin import Origin, changed_caches, changes, origin_of_scores
from pipeline.training.scales import stored_scales
from pipeline.training.scoring import Details, is_distributed, metric_of, score
from sak_common.differences import differences
from sak_core.tasks import Task
from sak_core.tasks.constant import ConstantPredictor
from sak_core.tasks.own_units import own_label

EVALUATION_BATCH = 16


def evaluate(run: Path, data: Data, places: runs.Places) -> dict[str, Any]:
    """Score the weights of a run on `data`, and write scores and details into its folder, with what they come from.

    What is there already is given again if it comes from the same weights and cache.

    Returns:
        The scores, every task's with its "details".

    Raises:
        UserError: the run cannot be scored there.
    """
    recipe = runs.read_recipe(run)
    if (run / "results.json").exists():
        warn_of_random(run.name, runs.read_results(run)["random_weights"])
    if find_arm(recipe.arm).per_task:
        return _evaluate_parts(run, data, places)
    trained_on = training_store(places.features, recipe, teachers_read(recipe))
    tasks = store_tasks(trained_on, recipe.tasks, recipe.loss.task_weights)
    check_scorable(recipe, tasks, trained_on, data, places)
    _check_up_to_date(run, recipe, places)
    teachers = features_read(recipe)
    store = find_store(places.features, data, teachers)
    origin = origin_of_scores(run, store, teachers)
    if kept := read_scores(run, store.spec):
        if not (changed := changes(kept["made_from"], origin, code=True)):
            say(f"{run.name}: already scored on {data.split}")
            return _joined(kept["scores"], kept["details"])
        say(f"{run.name}: scored anew on {data.split}: {'; '.join(changed)}")
    model, _ = load_model(run, places)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    scores, details = score_model(model, recipe, tasks, data, places)
    _write_scores(run, store.spec, origin, scores, details)
    return _joined(scores, details)


def _evaluate_parts(run: Path, data: Data, places: runs.Places) -> dict[str, Any]:
    """As `evaluate`, of a run that is one student a task, each scored in its own folder."""
    store = find_store(places.features, data)
    scores: Scores = {}
    details: Details = {}
    weights: dict[str, str] = {}
    for part in _parts(run):
        evaluate(part, data, places)
        found = read_scores(part, store.spec)
        assert found
        scores |= found["scores"]
        details |= found["details"]
        weights[part.name] = found["made_from"]["weights"]
        origin = {**found["made_from"], "weights": weights}
    _write_scores(run, store.spec, origin, scores, details)
    return _joined(scores, details)


def is_scored(run: Path, data: Data, places: runs.Places) -> bool:
    """Whether a run's scores on `data` are there, and come from its weights and from the cache that is there now."""
    recipe = runs.read_recipe(run)
    teachers = features_read(recipe)
    store = find_store(places.features, data, teachers)
    kept = read_scores(run, store.spec)
    if kept is None:
        return False
    if not find_arm(recipe.arm).per_task:
        return not changes(kept["made_from"], origin_of_scores(run, store, teachers), code=True)
    parts = {part.name: read_scores(part, store.spec) for part in _parts(run) if is_scored(part, data, places)}
    now = {name: part["made_from"]["weights"] for name, part in parts.items() if part}
    return len(parts) == len(_parts(run)) and not changes(kept["made_from"], {"weights": now})


def read_scores(run: Path, spec: SourceSpec) -> dict[str, Any] | None:
    """What is kept of scores on a store: "made_from" (see `pipeline.runs.origin`), "scores" and "details"; None where
    nothing is."""
    kept, more = runs.scores_path(run, spec), runs.details_path(run, spec)
    if not (kept.is_file() and more.is_file()):
        return None
    return {**json.loads(kept.read_text()), "details": json.loads(more.read_text())}


def _write_scores(run: Path, spec: SourceSpec, origin: Origin, scores: Scores, details: Details) -> None:
    runs.scores_path(run, spec).unlink(missing_ok=True)  # it vouches for the details
    runs.write_atomically(runs.details_path(run, spec), json.dumps(details))
    runs.write_atomically(runs.scores_path(run, spec), json.dumps({"made_from": origin, "scores": scores}, indent=1))


def _check_up_to_date(run: Path, recipe: Recipe, places: runs.Places) -> None:
    """Warn where the run was trained on a cache that has been made anew since; refuse it where its heads then read
    other features than they were trained on."""
    if not (run / "results.json").exists() or not (changed := changed_caches(run, recipe, places.features)):
        return
    told = f"{run.name} was trained on a cache that has been made anew since ({'; '.join(changed)})"
    if find_arm(recipe.arm).frozen_features:
        raise UserError(f"{told}: its heads read other features now. Delete {run} and train it anew")
    warn(f"{told}: the scores are the old model's; delete {run} to train it anew")


def check_scorable(recipe: Recipe, tasks: Sequence[Task], trained_on: Store, data: Data, places: runs.Places) -> None:
    """Check that a model that was trained on the store `trained_on` can be scored on `data`.

    Raises:
        UserError: there is no such cache, or it has no labels of its tasks, other classes, or features of other
            teachers.
    """
    loader = open_evaluation(recipe, tasks, data, places, EVALUATION_BATCH)
    for task in tasks:
        here, there = (store.spec.labels[task.name] for store in (trained_on, loader.store))
        if (here.kind, here.classes) != (there.kind, there.classes):
            raise UserError(
                f"{task.name} is not the same task in {trained_on.name} ({here.kind}, {len(here.classes)} classes) and "
                f"in {loader.store.name} ({there.kind}, {len(there.classes)} classes): classes must agree in order"
            )
        metric_of(task, recipe.boundary, row_of(loader.store.spec))
    check_same_teachers(trained_on, loader.store, features_read(recipe))
    check_decoder(recipe, trained_on, tasks, loader.store)


def check_same_teachers(one: Store, other: Store, teachers: Sequence[str]) -> None:
    """Check that two stores hold features of the same networks.

    Raises:
        UserError: under one teacher's name they have those of different networks.
    """
    for name in teachers:
        here, there = (
            {
                key: store.teacher(name).provenance["teacher"].get(key)
                for key in ("library", "model", "weights", "levels")
            }
            for store in (one, other)
        )
        for key, left, right in differences(here, there):
            raise UserError(
                f"{name} is not the same teacher in {one.name} and {other.name}: {key} is {left!r} and {right!r}. "
                "Cache both splits with the same weights"
            )


def _joined(scores: Scores, details: Details) -> dict[str, Any]:
    return {task: {**values, "details": details[task]} for task, values in scores.items()}


def load_model(run: Path, places: runs.Places) -> tuple[nn.Module, list[Task]]:
    """The trained model of a stage-2 run, in evaluation mode, and its tasks.

    Raises:
        UserError: the run is one student a task, or weights or cache are missing or do not fit.
    """
    recipe = runs.read_recipe(run)
    if find_arm(recipe.arm).per_task:
        raise UserError(f"{run} is one student a task: name one of its folders, such as {_parts(run)[0]}")
    store = training_store(places.features, recipe, teachers_read(recipe))
    tasks = store_tasks(store, recipe.tasks, recipe.loss.task_weights)
    model = build_model(recipe, store, tasks)
    runs.load_weights(run, model)
    return model.eval(), tasks


def _parts(run: Path) -> list[Path]:
    """The folders of a run that is one student a task."""
    return [run / task for task in runs.read_results(run)["tasks"]]


def score_model(
    model: nn.Module, recipe: Recipe, tasks: Sequence[Task], data: Data, places: runs.Places
) -> tuple[Scores, Details]:
    """Scores and details of `model` on every valid sample of `data`; its store must hold what a frozen arm reads."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    start = time.monotonic()
    loader = open_evaluation(recipe, tasks, data, places, EVALUATION_BATCH)
    model.eval()
    with progress(f"{recipe.arm} on {data.split}", len(loader), "batches") as advance:
        predictions = _predictions(model, recipe, loader, advance)
        scores, details = score(tasks, recipe.boundary, loader.store, predictions)
    samples = int(loader.store.valid(1).sum())
    say(f"{recipe.arm}: scored {samples} samples of {data.split} in {time.monotonic() - start:.0f} s")
    return scores, details


def constant_scores(recipe: Recipe, test: Data, places: runs.Places) -> Scores:
    """Scores on `test` of the best constant prediction, fitted on the training labels of `recipe`, both in the units of
    the images themselves."""
    store = find_store(places.features, recipe.data)
    tasks = store_tasks(store, recipe.tasks)
    labels = tuple(task.name for task in tasks)
    predictor = ConstantPredictor(tasks)
    for batch in _labels(store, labels):
        scales = stored_scales(tasks, store, batch)
        predictor.update({task.name: own_label(task, batch.labels[task.name], scales) for task in tasks})
    fitted = [task for task in tasks if predictor.is_fitted(task)]
    for task in tasks:
        if task not in fitted:
            warn(f"{task.name}: no pixel of {store.name} has a label, so the best constant prediction is not known")
    tested = find_store(places.features, test)
    constants = {task.name: predictor.constant(task)[None, :, None, None] for task in fitted}

    def predictions() -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        for batch in _labels(tested, labels):
            yield batch, {n: value.expand(len(batch), -1, *batch.pixels.shape[1:3]) for n, value in constants.items()}

    scores, _ = score(fitted, recipe.boundary, tested, predictions(), in_own_units=True)
    return {task.name: scores.get(task.name, {task.score: None}) for task in tasks}


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
    teachers = features_read(recipe)
    store = staged(find_store(places.features, data, teachers), recipe)
    store_tasks(store, [task.name for task in tasks])  # says which labels are missing
    return evaluation_loader(store, teachers, [task.name for task in tasks], batch_size)


def evaluation_loader(
    store: Store,
    teachers: Sequence[str],
    labels: Sequence[str],
    batch_size: int = EVALUATION_BATCH,
    prefixes: Sequence[str] = (),
) -> Loader:
    """The samples of a store in order, this process's share, the last batches padded; `prefixes` as in `Loader`."""
    # several processes share the samples; their metrics' sums meet when scores are computed
    shared = is_distributed()
    return Loader(
        store,
        teachers,
        labels,
        prefixes=prefixes,
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
    return batch.each(lambda tensor: tensor[keep])
