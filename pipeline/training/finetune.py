"""Stage 2: routers and heads on the labelled cache, task losses plus alpha times the distillation loss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cache.loading.batch import Batch
from cache.store import Store
from pipeline import runs
from pipeline.console import duration, say, warn
from pipeline.errors import UserError
from pipeline.recipes.arms import (
    build_model,
    find_arm,
    initialize,
    matches_of,
    one_a_task,
    parts_read,
    run_model,
    say_matches,
    starts_from_stage1,
    teachers_read,
)
from pipeline.recipes.config import Recipe
from pipeline.recipes.frozen import check_frozen
from pipeline.recipes.stores import find_store, random_teachers, store_tasks, training_store, warn_of_random
from pipeline.runs import lineage
from pipeline.runs.origin import Origin, changed_caches, origin_of_run, trained_from
from pipeline.training.before import check_validation, warn_of_settings
from pipeline.training.clock import PARTS
from pipeline.training.devices import ALONE, Execution, over_ranks, sole_writer, start
from pipeline.training.distill import noise_of, open_loader, results_of
from pipeline.training.evaluate import EVALUATION_BATCH, open_evaluation, score_model
from pipeline.training.labels_seen import warn_of_labels
from pipeline.training.loop import Batches, train
from pipeline.training.probes import cosines, router_means
from pipeline.training.scales import seen_labels
from pipeline.training.targets import Targets
from pipeline.training.validation import Values, measure, validation_of
from pipeline.training.watch import StepResult
from sak_core.losses.step import load_balance, task_losses
from sak_core.student.parts import freeze
from sak_core.tasks import Task
from sak_core.tasks.losses import OverRanks, labelled_rows


def finetune(
    recipe: Recipe, run: Path, stage1: Path | None, places: runs.Places, execution: Execution = ALONE
) -> dict[str, Any]:
    """Run stage 2 of `recipe` in the folder `run`, starting from the run `stage1` where the arm distils.

    Returns:
        The results: scores on the recipe's validation split, parameters, seconds of both stages.

    Raises:
        UserError: the arm trains nothing, or there is a stage 1 too many or too few; and as `train`.
    """
    arm = find_arm(recipe.arm)
    if arm.derived:
        raise UserError(f"arm {recipe.arm} trains nothing; a study derives it from its other arms: sak ablate")
    if recipe.probe is not None:
        raise UserError("probe belongs to stage 1, which has no scores of its own: write it under [distill]")
    store = training_store(places.features, recipe, parts_read(recipe))
    tasks = store_tasks(store, recipe.tasks, recipe.loss.task_weights)
    if starts_from_stage1(recipe) != (stage1 is not None):
        raise UserError(
            f"arm {recipe.arm} with stage1 = {recipe.stage1!r} starts from "
            + ("a distilled run: `sak distill` first, or say --from RUN" if stage1 is None else "no distilled run")
        )
    made_from = origin_of_run(recipe, places.features, stage1)
    if runs.is_finished(run, recipe, made_from):
        say(f"{run.name}: already fine-tuned")
        return runs.read_results(run)
    check_validation(recipe, places)
    warn_of_settings(recipe)
    warn_of_labels(store, tasks)
    if stage1 and (changed := changed_caches(stage1, runs.read_recipe(stage1), places.features)):
        warn(f"{stage1} was distilled from a cache that has been made anew since: {'; '.join(changed)}")
    with sole_writer(run):
        runs.begin(run, recipe, made_from)
        if arm.per_task:
            return _one_a_task(recipe, [task.name for task in tasks], run, places, made_from, execution)
        return _finetune(recipe, run, stage1, store, tasks, places, made_from, execution)


def _finetune(
    recipe: Recipe,
    run: Path,
    stage1: Path | None,
    store: Store,
    tasks: list[Task],
    places: runs.Places,
    made_from: Origin,
    execution: Execution,
) -> dict[str, Any]:
    """Train in the run's folder, which is this process's own."""
    teachers = teachers_read(recipe)
    targets = Targets(recipe, store, teachers) if find_arm(recipe.arm).distils and teachers else None
    matches = matches_of(recipe, store)
    if stage1 is not None:
        _check_matches(stage1, matches)
    # where a decoder reads a task's own maps at some levels alone, paths may have norms that nothing reads
    fabric = start(recipe, execution, unused=recipe.student.decoder != "none")
    say_matches(matches)
    model = build_model(recipe, store, tasks)
    seconds, untrained = 0.0, set(random_teachers(store, teachers))
    if stage1 is None:
        initialize(recipe, model)
    else:
        runs.start_from(stage1, model, lineage.read(stage1).image_size)
        first = runs.read_results(stage1)
        seconds = first["seconds"]
        untrained |= set(first["random_weights"])
    warn_of_random(run.name, sorted(untrained))
    freeze(model, recipe.trains)
    check_frozen(recipe, store, model)
    labels = tuple(task.name for task in tasks)
    loader: Batches = execution.share(open_loader(store, recipe, labels, fabric, places))
    loss = partial(_loss, recipe, tasks, targets, store, over_ranks(fabric, recipe))
    runs.describe(run, recipe, made_from)

    def measured(scored: nn.Module) -> Values:
        assert recipe.validation
        rows = open_evaluation(recipe, tasks, recipe.validation, places, EVALUATION_BATCH)
        alone = partial(_loss, recipe, tasks, None, rows.store, None, beside=False)
        return measure(scored, rows, alone, tasks, recipe.boundary)

    validation = validation_of(recipe, tasks, measured)
    trained = train(
        fabric,
        recipe,
        run,
        model,
        loader,
        loss,
        trained_from(recipe, made_from),
        tasks=tasks,
        validation=validation,
        wandb=execution.wandb,
    )
    results = results_of(recipe, trained, model, store, sorted(untrained), seconds)
    results["stage1"] = stage1.name if stage1 else None
    if recipe.validation:
        results["validation"], _ = score_model(model, recipe, tasks, recipe.validation, places)
        results["caches"].append(find_store(places.features, recipe.validation).name)
    lineage.record(run, recipe, model, store, teachers, stage1)
    runs.finish(run, recipe, made_from, results)
    say(f"{run.name}: fine-tuned in {duration(trained.seconds)}, {run}")
    return results


def _check_matches(stage1: Path, matches: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a stage 1 that compared a teacher's levels with others of the student than this run would."""
    before = (lineage.read(stage1).student or {}).get("matches", {})
    for name in {*before, *matches}:
        then, now = (list(table[name]) if name in table else "each with its own" for table in (before, matches))
        if then != now:
            raise UserError(
                f"{stage1} compared the levels of {name} with the student's {then}, here it would be {now}: say which "
                "in both stages, loss.match_levels = {" + f"{name} = [...]" + "}"
            )


def _one_a_task(
    recipe: Recipe, tasks: list[str], run: Path, places: runs.Places, made_from: Origin, execution: Execution
) -> dict[str, Any]:
    """A student a task, each in a folder of its own below `run`; their results together are the run's."""
    singles = [
        finetune(single, run / task, None, places, execution) for task, single in one_a_task(recipe, tasks).items()
    ]
    results: dict[str, Any] = {
        **singles[0],
        "arm": recipe.arm,
        "tasks": tasks,
        **{key: sum(part[key] for part in singles) for key in ("seconds", "parameters")},
    }
    by_part = [single.get("seconds_by_part", {}) for single in singles]  # a run of an earlier version has none
    results["seconds_by_part"] = {part: sum(one[part] for one in by_part) for part in PARTS} if all(by_part) else {}
    if recipe.validation:
        results["validation"] = {task: part["validation"][task] for task, part in zip(tasks, singles, strict=True)}
    runs.finish(run, recipe, made_from, results)
    return results


def _loss(
    recipe: Recipe,
    tasks: list[Task],
    targets: Targets | None,
    store: Store,
    over_ranks: OverRanks | None,
    model: nn.Module,
    batch: Batch,
    step: int,
    beside: bool = True,
) -> StepResult:
    """What a part of a step gives; where `beside`, as in training alone, losses of a decoder beside the tasks' own
    count.
    """
    noise = noise_of(recipe, batch, store.spec.num_samples, step)
    output = run_model(recipe, model, batch, noise)
    labels = seen_labels(tasks, store, batch)
    total, terms = task_losses(tasks, output.outputs, labels, over_ranks, recipe.loss.boundary_positives)
    if beside and output.initial:
        own, initial = task_losses(tasks, output.initial, labels, over_ranks, recipe.loss.boundary_positives)
        total = total + recipe.loss.initial * own
        terms |= {f"initial/{name}": recipe.loss.initial * term for name, term in initial.items()}
    if beside and output.routes:
        terms["experts/balance"] = recipe.loss.expert_balance * load_balance(output.routes, over_ranks)
        total = total + terms["experts/balance"]
    if targets is not None:
        distillation, by_level = targets(output, batch, noise, over_ranks)
        total = total + recipe.loss.alpha * distillation
        terms = {**terms, **by_level, "distillation": distillation}

    def probe() -> dict[str, Tensor]:
        near = cosines(output.aligned, targets.balanced(batch.features)) if targets is not None else {}
        return {**near, **router_means(output, recipe.teachers)}

    labelled = {task.name: labelled_rows(batch.labels[task.name]).any() for task in tasks}
    if over_ranks is not None:  # a process's term is its share of all processes' pixels, and may be 0
        labelled = {name: over_ranks(found.float()) > 0 for name, found in labelled.items()}
    labelled |= {f"initial/{name}": found for name, found in labelled.items()}
    return StepResult(total, terms, output, probe, labelled)
