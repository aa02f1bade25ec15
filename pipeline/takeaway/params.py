"""How many parameters a recipe's or a run's model has, by part, and how many of them learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import STAGES, Recipe, Stage, load_recipe
from pipeline.console import table
from pipeline.errors import UserError
from pipeline.stores import store_tasks, training_store
from pipeline.studies.arms import SINGLE_TASK, build_model, find_arm, parts_read
from pipeline.training import lineage, runs
from sak_core.parts import count_parameters, freeze
from sak_core.student import Student, StudentConfig


def run_parameters(run: Path) -> dict[str, Any]:
    """Parameters by part of a finished run's student, and `trained`, how many of them it trained."""
    described = lineage.read(run).student
    if described is None:
        raise UserError(f"{run} has no student; ask for its recipe's parameters: sak params RECIPE --set arm=...")
    with torch.device("meta"):
        model = Student(StudentConfig.from_dict(described))
    trains = runs.read_recipe(run).trains if (run / "recipe.json").is_file() else "all"
    return _counted(model, trains)


def recipe_parameters(name: str, stage: Stage | None, overrides: dict[str, Any], places: runs.Places) -> dict[str, Any]:
    """Parameters by part of what a recipe trains in `stage` (its last one when absent); the caches say how wide its
    teachers are. Of `single-task`, all its students together."""
    recipe = _load(name, stage, overrides)
    if find_arm(recipe.arm).derived:
        raise UserError(f"arm {recipe.arm} has no parameters of its own")
    store = training_store(places.features, recipe, parts_read(recipe))
    tasks = store_tasks(store, recipe.tasks) if recipe.stage == "finetune" else []
    groups = [[task] for task in tasks] if recipe.arm == SINGLE_TASK else [tasks]
    total: dict[str, Any] = {}
    for group in groups:
        with torch.device("meta"):
            model = build_model(recipe, store, group)
        for part, count in _counted(model, recipe.trains).items():
            total[part] = total.get(part, 0) + count
    return total


def params_text(counts: dict[str, Any]) -> str:
    """Counts as a table."""
    rows = [[part, f"{count:,}", f"{count / counts['total']:.1%}"] for part, count in counts.items()]
    return table(["part", "parameters", "share"], rows)


def _counted(model: nn.Module, trains: str) -> dict[str, Any]:
    freeze(model, trains)
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**count_parameters(model), "trained": learn}


def _load(name: str, stage: Stage | None, overrides: dict[str, Any]) -> Recipe:
    if stage is not None:
        return load_recipe(name, stage, overrides)
    for last in reversed(STAGES):
        try:
            return load_recipe(name, last, overrides)
        except UserError as error:
            if "has no [" not in str(error):
                raise
    raise UserError(f"recipe {name!r} describes no stage")
