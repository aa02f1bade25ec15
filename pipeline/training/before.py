"""What is said before a run's first step: what it will need at its end, and settings that cannot do what they say."""

from __future__ import annotations

import torch

from pipeline import runs
from pipeline.console import warn
from pipeline.recipes.arms import check_decoder, find_arm, parts_read, teachers_read
from pipeline.recipes.config import Recipe
from pipeline.recipes.stores import store_tasks, training_store
from pipeline.runs.origin import validation_store
from pipeline.training.class_tokens import check_class_tokens
from pipeline.training.evaluate import check_same_teachers, check_scorable
from pipeline.training.validation import validation_of

INITIAL_SHARE = 0.1
"""Of the initial weights in averaged ones, at the end, from which on the average is not one of the training."""


def check_validation(recipe: Recipe, places: runs.Places) -> None:
    """Check, before a run begins, what it is validated on.

    Raises:
        UserError: the split, or what chooses the run's best checkpoint, is not there or does not belong to what it
            trains on; or a decoder of all tasks does not fit the views.
    """
    store = training_store(places.features, recipe, parts_read(recipe))
    tasks = store_tasks(store, recipe.tasks, recipe.loss.task_weights) if recipe.stage == "finetune" else []
    if not find_arm(recipe.arm).per_task:  # each of its students has its own
        validation_of(recipe, tasks, lambda model: {})
        check_decoder(recipe, store, tasks)
    if (validated := validation_store(recipe, places.features)) is None:
        return
    if recipe.stage == "finetune":
        assert recipe.validation
        check_scorable(recipe, tasks, store, recipe.validation, places)
    else:
        check_class_tokens(recipe, validated)
        check_same_teachers(store, validated, teachers_read(recipe))


def odd_settings(recipe: Recipe) -> list[str]:
    """Settings of a recipe that cannot do what they say, in words."""
    found = []
    if recipe.schedule.warmup_steps >= recipe.steps:
        found.append(
            f"schedule.warmup_steps = {recipe.schedule.warmup_steps} is no shorter than the training ({recipe.steps} "
            f"steps): the learning rate never reaches optimizer.lr = {recipe.optimizer.lr:g}"
        )
    if recipe.ema is not None and (share := recipe.ema**recipe.steps) > INITIAL_SHARE:
        found.append(
            f"ema = {recipe.ema:g} is too slow for {recipe.steps} steps: {share:.0%} of the averaged weights, which "
            f"are scored, will be the initial ones. At most {INITIAL_SHARE ** (1 / recipe.steps):.4g} fits"
        )
    if recipe.precision == "16-mixed" and not torch.cuda.is_available():
        found.append("precision = '16-mixed' needs a GPU: this CPU computes in bf16, as precision = 'bf16-mixed' does")
    return found


def warn_of_settings(recipe: Recipe) -> None:
    """Say what `odd_settings` finds."""
    for found in odd_settings(recipe):
        warn(found)
