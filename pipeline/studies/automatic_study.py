"""A study of the arms that the caches allow: what `sak ablate` runs where none is named."""

from __future__ import annotations

import json
from pathlib import Path

from cache.format.manifest import SOURCE
from cache.store import find_stores
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.recipes.automatic import EVALUATION, Choice, choose, missing_labels, save_recipe
from pipeline.recipes.config import Data, Study
from pipeline.recipes.stores import Caches, each_place
from pipeline.runs import write_atomically
from sak_core.datasets import DATASETS

PREPARED = 200
"""Samples of a test split that is prepared for a study, of a data set that needs no folder."""


def automatic_study(features: Caches, runs: Path, dataset: str | None = None, prepares: bool = True) -> Study:
    """The study of a recipe for the caches below `features`: multi-task, each teacher, many-to-one, sak.

    An arm teacher:NAME needs the teacher cached on the labelled splits, too; those that are not are left out, in words.
    Where no labelled split is there to score on and the data set needs no folder, one is prepared (no teacher runs),
    if `prepares`.

    Raises:
        UserError: there are no labels, or there is no split to score on and none could be prepared.
    """
    choice = choose(features, dataset)
    if choice.finetune is None:
        raise UserError(missing_labels(choice))
    if not choice.evaluation:
        if not prepares:
            raise UserError(f"a labelled split to score on would be prepared first: {PREPARED} samples, no teacher")
        _prepare_test(choice, features)
        choice = choose(features, dataset)
    recipe = save_recipe(choice, runs / f"{choice.name}.toml")
    split = next(name for name in EVALUATION if name in choice.evaluation)
    tested, labelled = choice.evaluation[split], choice.finetune
    assert labelled is not None
    everywhere = [name for name in choice.teachers if name in labelled.teachers and name in tested.teachers]
    for name in choice.teachers:
        if name not in everywhere:
            say(f"left out: teacher:{name}, which is not cached on {labelled.store.name} and {tested.store.name} both")
    return Study(
        name=f"{choice.name}-study",
        recipe=str(recipe),
        arms=("multi-task", *(f"teacher:{name}" for name in everywhere), "many-to-one", "sak"),
        baseline="multi-task",
        test=Data(dataset=tested.store.spec.dataset, split=split, size=tested.size),
    )


def write_study(features: Caches, runs: Path, dataset: str | None = None, prepares: bool = True) -> Study:
    """As `automatic_study`, kept as a file below `runs`."""
    study = automatic_study(features, runs, dataset, prepares)
    runs.mkdir(parents=True, exist_ok=True)
    write_atomically(runs / f"{study.name}.toml", study_text(study))
    return study


def study_text(study: Study) -> str:
    """The study as TOML, to keep and edit."""
    size = f', size = "{study.test.size}"' if study.test.size else ""
    return "\n".join(
        [
            f"# sak ablate {study.name}.toml",
            f"recipe = {json.dumps(study.recipe)}",
            f"arms = {json.dumps(list(study.arms))}",
            f'baseline = "{study.baseline}"',
            f"seeds = {json.dumps(list(study.seeds))}  # several show what is noise",
            f'test = {{ dataset = "{study.test.dataset}", split = "{study.test.split}"{size} }}',
            "",
        ]
    )


def _prepare_test(choice: Choice, features: Caches) -> None:
    """Prepare a test split in the first place."""
    from pipeline.extraction.prepare import prepare
    from pipeline.extraction.samples import DatasetRequest

    spec, places = choice.distill.store.spec, each_place(features)
    below = ", ".join(map(str, places))
    row = DATASETS.get(spec.dataset)
    if row is None or row.needs_root or "test" not in row.splits:
        raise UserError(
            f"no labelled val or test split of {spec.dataset} at {choice.distill.size} below {below} to compare "
            f"arms on. Cache one: make cache DATASET=... ROOT=... SPLIT=val SIZE={choice.distill.size}"
        )
    say(f"no labelled split to score on: preparing {PREPARED} samples of {spec.dataset}/test (no teacher runs)")
    prepare(DatasetRequest(spec.dataset, "test", spec.size, limit=PREPARED), places[0], 1)
    assert any(store.is_complete(SOURCE, 1) for store in find_stores(places[0], spec.dataset, "test", spec.size))
