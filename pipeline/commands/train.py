"""`sak distill`, `sak finetune`, `sak evaluate`, `sak ablate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import (
    DEVICES,
    DRY,
    JSON,
    NODES,
    PATH,
    PLACES,
    ROOTS,
    RUNS,
    SET,
    WANDB,
    WEIGHTS,
    keywords,
    show,
)
from pipeline.console import red
from pipeline.errors import UserError
from pipeline.results import RunResult, ScoreResult, Training, score_lines


@dataclass(frozen=True)
class Asked:
    """What the command lines of both stages have in common."""

    dataset: str | None
    run: Path | None
    assignments: tuple[str, ...]
    places: tuple[Path | str, ...]
    runs: Path
    roots: tuple[str, ...]
    weights: tuple[str, ...]
    devices: int
    nodes: int
    wandb: bool
    dry_run: bool
    as_json: bool

    def keywords(self) -> dict[str, Any]:
        """As `pipeline.api.training` takes them."""
        from pipeline.recipes.config import parse_set

        where = keywords(self.places, self.runs, self.roots, self.weights)
        return {"dataset": self.dataset, "overrides": parse_set(self.assignments), "run": self.run, **where}

    def execution(self) -> dict[str, Any]:
        """How the stage is carried out."""
        return {"devices": self.devices, "nodes": self.nodes, "wandb": self.wandb}


DATASET = click.option("--dataset", help="Which data set to train on, if no file says and there are caches of several.")


def _trains(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the recipe's argument and the options of both stages, these as one `Asked`."""

    @wraps(command)
    def with_asked(recipe: str | None, **options: Any) -> None:
        from pipeline.training.devices import follow_others

        follow_others()
        shared = {field.name: options.pop(field.name) for field in fields(Asked)}
        command(recipe, Asked(**shared), **options)

    run = click.option("--run", type=PATH, help="The run's folder; named after the recipe when absent.")
    found: Callable[..., None] = with_asked
    for option in reversed((DATASET, run, SET, PLACES, RUNS, ROOTS, WEIGHTS, DEVICES, NODES, WANDB, DRY, JSON)):
        found = option(found)
    return click.argument("recipe", required=False)(found)


@click.command()
@_trains
def distill(recipe: str | None, asked: Asked) -> None:
    """Stage 1: distil cached teachers into a student, by RECIPE or one written for the caches that are there."""
    from pipeline import api

    if asked.dry_run:
        _show_plan(api.training("distill", recipe, **asked.keywords()), asked.as_json)
        return
    made = api.distill(recipe, **asked.execution(), **asked.keywords())
    show(made.results, asked.as_json, lambda r: f"{made.path}")


@click.command()
@_trains
@click.option("--from", "stage1", type=PATH, help="The distilled run to start from; the recipe's own when absent.")
def finetune(recipe: str | None, asked: Asked, stage1: Path | None) -> None:
    """Stage 2: train routers, heads and student on a labelled cache, by RECIPE or one written for the caches."""
    from pipeline import api

    if asked.dry_run:
        _show_plan(api.training("finetune", recipe, **asked.keywords()), asked.as_json)
        return
    made = api.finetune(recipe, stage1=stage1, **asked.execution(), **asked.keywords())
    show(made.results, asked.as_json, lambda r: _scored(made))


def _show_plan(asked: Training, as_json: bool) -> None:
    from pipeline.recipes.arms import parts_read
    from pipeline.recipes.stores import training_store
    from pipeline.training.before import check_validation, warn_of_settings

    recipe = asked.recipe
    store = training_store(asked.places.features, recipe, parts_read(recipe))
    check_validation(recipe, asked.places)
    warn_of_settings(recipe)
    epochs = recipe.steps * recipe.batch_size / max(int(store.valid(recipe.data.views).sum()), 1)
    plan = {
        "run": str(asked.run),
        "store": store.name,
        "epochs": round(epochs, 2),
        "recipe": recipe.model_dump(mode="json"),
    }
    text = f"would train {asked.run}: {recipe.steps} steps, {epochs:.1f} epochs of {store.name}"
    show(plan, as_json, lambda p: text)


def _scored(made: RunResult | ScoreResult) -> str:
    """A line a task, and the run's folder."""
    return "\n".join([*score_lines(made.scores), str(made.path)])


@click.command()
@click.argument("run", type=PATH)
@click.option("--split", default="test", show_default=True, help="The split to score on.")
@click.option("--dataset", help="The data set to score on; the recipe's own when absent.")
@PLACES
@RUNS
@JSON
def evaluate(
    run: Path, split: str, dataset: str | None, places: tuple[Path | str, ...], runs: Path, as_json: bool
) -> None:
    """Score the fine-tuned RUN on a labelled split."""
    from pipeline import api

    made = api.evaluate(run, split, dataset=dataset, out=places, runs=runs)
    show(made.results, as_json, lambda r: _scored(made))


@click.command()
@click.argument("study", required=False)
@DATASET
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes, each with one run at a time."
)
@click.option(
    "--share-reads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs per process that are trained side by side and share one read of the cache.",
)
@DEVICES
@click.option("--scheduler", help="Hand the runs to the workers of this Dask scheduler, such as tcp://10.0.0.1:8786.")
@PLACES
@RUNS
@ROOTS
@WEIGHTS
@DRY
@JSON
def ablate(
    study: str | None,
    dataset: str | None,
    workers: int,
    share_reads: int,
    devices: int,
    scheduler: str | None,
    places: tuple[Path | str, ...],
    runs: Path,
    roots: tuple[str, ...],
    weights: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run what is not finished of STUDY (or of the arms that the caches allow), and print its table."""
    from pipeline import api
    from pipeline.studies.study_table import markdown

    where = keywords(places, runs, roots, weights)
    how: dict[str, Any] = {"workers": workers, "share_reads": share_reads, "devices": devices, "scheduler": scheduler}
    result = api.ablate(study, dataset=dataset, dry_run=dry_run, **how, **where)
    if dry_run:
        show(result, as_json, lambda r: "\n".join(r["runs"]))
        return
    mark = "(random weights)"
    show(result, as_json, lambda r: markdown(r).replace(mark, red(mark)))
    if failed := result["failed"]:
        reasons = "; ".join(f"{one['run']}: {one['why']}" for one in failed)
        raise UserError(f"study {result['study']}: {len(failed)} runs failed and leave gaps in the table: {reasons}")


@click.command("recipe")
@click.option("--dataset", help="Which data set to train on, if there are caches of several.")
@click.option("--to", type=PATH, help="The file; one below runs/ if absent.")
@PLACES
@JSON
def recipe(dataset: str | None, to: Path | None, places: tuple[Path | str, ...], as_json: bool) -> None:
    """Write a commented recipe for the caches that are there, to keep and edit; trains nothing."""
    from pipeline import api

    path = api.recipe(dataset, to=to, out=places)
    show({"recipe": str(path), "text": path.read_text()}, as_json, lambda r: f"{r['text']}\n{r['recipe']}")
