"""How many parameters a recipe's or a run's model has, by part, how many of them learn, and what an image costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import runs
from pipeline.console import say, table
from pipeline.errors import UserError
from pipeline.recipes.arms import SINGLE_TASK, find_arm, model_of, parts_read, teachers_built
from pipeline.recipes.config import Recipe, Stage, load_recipe, some_stages
from pipeline.recipes.stores import parse_size, store_tasks, training_store
from pipeline.runs import lineage
from sak_common.names import part_name, unknown
from sak_core.datasets import DATASETS, open_dataset
from sak_core.student.config import StudentConfig
from sak_core.student.costs import count_macs
from sak_core.student.network import StudentNetwork
from sak_core.student.parts import count_parameters, freeze
from sak_core.tasks import Task


def run_parameters(run: Path) -> dict[str, Any]:
    """Parameters by part of a finished run's student, `trained`, how many of them it trained, and `macs`: multiply-adds
    of one image of the size of its views, by part.

    Raises:
        UserError: the run has no student.
    """
    described = lineage.read(run).student
    if described is None:
        raise UserError(f"{run} has no student; ask for its recipe's parameters: sak params RECIPE --set arm=...")
    with torch.device("meta"):
        model = StudentNetwork(StudentConfig.from_dict(described))
    trains = runs.read_recipe(run).trains if (run / "recipe.json").is_file() else "all"
    return {**_counted(model, trains), "macs": count_macs(model, model.config.stem.image_size)}


def recipe_parameters(name: str, stage: Stage | None, overrides: dict[str, Any], places: runs.Places) -> dict[str, Any]:
    """Parameters by part of what a recipe trains in `stage` (its last one when absent), `trained` and `macs` as of
    `run_parameters` (no `macs` of arms without a student); of `single-task`, all its students together.

    The caches say how large its views are, how wide its teachers and what its tasks; where they are not there, the rows
    of teachers and data sets say so.

    Raises:
        UserError: neither says; the cache to make is named.
    """
    recipe = load_recipe(name, stage or some_stages(name)[-1], overrides)
    if find_arm(recipe.arm).derived:
        raise UserError(f"arm {recipe.arm} has no parameters of its own")
    try:
        store = training_store(places.features, recipe, parts_read(recipe))
        size, tasks = store.spec.size, store_tasks(store, recipe.tasks) if recipe.stage == "finetune" else []
        widths = {name: tuple(level.width for level in store.teacher(name).maps) for name in teachers_built(recipe)}
    except UserError as error:
        size, widths, tasks = _from_rows(recipe, error)
        say(f"{error}\ncounted from the rows of teachers and data sets instead")
    groups = [[task] for task in tasks] if recipe.arm == SINGLE_TASK else [tasks]
    total: dict[str, Any] = {}
    macs: dict[str, int] = {}
    for group in groups:
        with torch.device("meta"):
            model = model_of(recipe, size, widths, group)
        for part, count in _counted(model, recipe.trains).items():
            total[part] = total.get(part, 0) + count
        if isinstance(model, StudentNetwork):
            for part, count in count_macs(model, size).items():
                macs[part] = macs.get(part, 0) + count
    return {**total, "macs": macs} if macs else total


def _from_rows(recipe: Recipe, missing: UserError) -> tuple[tuple[int, int], dict[str, tuple[int, ...]], list[Task]]:
    """Size of the views (H, W) in px, widths of the teachers and tasks, as far as rows tell without a cache.

    Args:
        missing: why the cache does not tell, which is said again where the rows do not either.
    """
    from sak_core.teachers.facts import known_facts

    known = {part_name(facts["name"]): tuple(facts["widths"]) for facts in known_facts()}
    for name in teachers_built(recipe):
        if name not in known:
            raise UserError(
                f"{missing}\nOf {name}, which is no row of `sak teachers`, only its cache says how wide it is"
            )
    row = DATASETS.get(recipe.data.dataset)
    if recipe.data.size is None and (row is None or row.needs_root):
        raise UserError(f"{missing}\nOf {recipe.data.dataset} only a cache says its size; set data.size")
    size = parse_size(recipe.data.size) if recipe.data.size else open_dataset(recipe.data.dataset, "train").default_size
    tasks: list[Task] = []
    if recipe.stage == "finetune":
        if row is None or row.tasks is None:
            raise UserError(f"{missing}\nOf {recipe.data.dataset} only a cache says its tasks")
        have = {task.name: task for task in row.tasks()}
        for name in recipe.tasks or ():
            if name not in have:
                raise UserError(unknown(f"task of {recipe.data.dataset}", name, have))
        tasks = [have[name] for name in recipe.tasks or have]
    return size, {name: known[name] for name in teachers_built(recipe)}, tasks


def params_text(counts: dict[str, Any]) -> str:
    """Counts as a table."""
    macs = counts.get("macs", {})
    rows = [
        [part, f"{count:,}", f"{count / counts['total']:.1%}", f"{macs[part]:,}" if part in macs else "-"]
        for part, count in counts.items()
        if part != "macs"
    ]
    return table(["part", "parameters", "share", "MACs an image"], rows)


def _counted(model: nn.Module, trains: str) -> dict[str, Any]:
    freeze(model, trains)
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**count_parameters(model), "trained": learn}
