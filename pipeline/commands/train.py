"""`sak distill`, `sak finetune`, `sak evaluate`, `sak ablate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import DEVICES, DRY, FEATURES, JSON, ROOTS, RUNS, SET, WANDB, WEIGHTS, places, show
from pipeline.console import number, red
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.recipes.config import Recipe, Stage
    from pipeline.runs import Places


@dataclass(frozen=True)
class Asked:
    """What the command lines of both stages have in common."""

    dataset: str | None
    run: Path | None
    assignments: tuple[str, ...]
    features: Path | str
    runs: Path
    roots: tuple[str, ...]
    weights: tuple[str, ...]
    devices: int
    wandb: bool
    dry_run: bool
    as_json: bool

    def load(self, recipe: str | None, stage: Stage) -> tuple[Recipe, Path, Places]:
        """The recipe as it applies to `stage`, its run's folder, and where it finds what it reads."""
        from pipeline import api
        from pipeline.recipes.config import parse_set
        from pipeline.runs import run_name

        where = self.places()
        loaded = api.load(recipe, stage, where, self.dataset, parse_set(self.assignments))
        return loaded, self.run or self.runs / run_name(loaded), where

    def places(self) -> Places:
        """Where caches, runs, data sets and teachers' weights lie."""
        return places(self.features, self.runs, self.roots, self.weights)


DATASET = click.option("--dataset", help="Without RECIPE, and with caches of several data sets: which to train on.")


def _trains(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the recipe's argument and the options of both stages, these as one `Asked`."""

    @wraps(command)
    def with_asked(recipe: str | None, **options: Any) -> None:
        shared = {field.name: options.pop(field.name) for field in fields(Asked)}
        command(recipe, Asked(**shared), **options)

    run = click.option("--run", type=click.Path(path_type=Path), help="The run's folder; else named after the recipe.")
    found: Callable[..., None] = with_asked
    for option in reversed((DATASET, run, SET, FEATURES, RUNS, ROOTS, WEIGHTS, DEVICES, WANDB, DRY, JSON)):
        found = option(found)
    return click.argument("recipe", required=False)(found)


@click.command()
@_trains
def distill(recipe: str | None, asked: Asked) -> None:
    """Stage 1: distil cached teachers into a student, by RECIPE or one written for the caches that are there."""
    loaded, folder, where = asked.load(recipe, "distill")
    if asked.dry_run:
        _show_plan(loaded, folder, asked, where)
        return
    from pipeline.training.devices import Execution
    from pipeline.training.distill import distill as stage

    result = stage(loaded, folder, where, Execution(asked.devices, asked.wandb))
    show(result, asked.as_json, lambda r: f"{folder}")


@click.command()
@_trains
@click.option(
    "--from", "stage1", type=click.Path(path_type=Path), help="The distilled run; the recipe's own when absent."
)
def finetune(recipe: str | None, asked: Asked, stage1: Path | None) -> None:
    """Stage 2: train routers, heads and student on a labelled cache, by RECIPE or one written for the caches."""
    from pipeline.api import stage1_run

    loaded, folder, where = asked.load(recipe, "finetune")
    if not asked.dry_run:
        stage1 = stage1_run(loaded, stage1, where, recipe)
    if asked.dry_run:
        _show_plan(loaded, folder, asked, where)
        return
    from pipeline.training.devices import Execution
    from pipeline.training.finetune import finetune as stage

    result = stage(loaded, folder, stage1, where, Execution(asked.devices, asked.wandb))
    show(result, asked.as_json, lambda r: _scores_text(r.get("validation", {}), str(folder)))


def _show_plan(recipe: Recipe, folder: Path, asked: Asked, where: Places) -> None:
    from pipeline.recipes.arms import parts_read
    from pipeline.recipes.stores import training_store
    from pipeline.training.before import check_validation, warn_of_settings

    store = training_store(asked.features, recipe, parts_read(recipe))
    check_validation(recipe, where)
    warn_of_settings(recipe)
    epochs = recipe.steps * recipe.batch_size / max(int(store.valid(recipe.data.views).sum()), 1)
    plan = {
        "run": str(folder),
        "store": store.name,
        "epochs": round(epochs, 2),
        "recipe": recipe.model_dump(mode="json"),
    }
    text = f"would train {folder}: {recipe.steps} steps, {epochs:.1f} epochs of {store.name}"
    show(plan, asked.as_json, lambda p: text)


def _scores_text(scores: dict[str, dict[str, Any]], where: str) -> str:
    numbers = {task: {k: v for k, v in s.items() if k != "details"} for task, s in scores.items()}
    lines = [f"{task}: " + ", ".join(f"{k} {number(v)}" for k, v in s.items()) for task, s in numbers.items()]
    return "\n".join([*lines, where])


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True)
@click.option("--dataset", help="The recipe's own when absent.")
@FEATURES
@RUNS
@JSON
def evaluate(run: Path, split: str, dataset: str | None, features: Path | str, runs: Path, as_json: bool) -> None:
    """Score the fine-tuned RUN on a labelled split."""
    from pipeline.recipes.config import Data
    from pipeline.runs import find_run, read_recipe
    from pipeline.training.evaluate import evaluate as score

    run = find_run(run, runs)
    recipe = read_recipe(run)
    data = Data(dataset=dataset or recipe.data.dataset, split=split, size=recipe.data.size)
    show(score(run, data, places(features, runs)), as_json, lambda r: _scores_text(r, str(run)))


@click.command()
@click.argument("study", required=False)
@DATASET
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes, a run each.")
@click.option(
    "--share-reads", type=click.IntRange(1), default=1, show_default=True, help="Runs of a process that share one read."
)
@DEVICES
@FEATURES
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
    features: Path | str,
    runs: Path,
    roots: tuple[str, ...],
    weights: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run what is not finished of STUDY (or of the arms that the caches allow), and print its table."""
    from pipeline.api import study_of
    from pipeline.console import say
    from pipeline.studies import ablate as studies
    from pipeline.studies.estimate import estimate, estimate_text
    from pipeline.studies.jobs import check, plan
    from pipeline.studies.study_table import markdown

    if devices > 1 and max(workers, share_reads) > 1:
        raise UserError("a run takes all the devices: choose --devices, or one of --workers and --share-reads")
    where = places(features, runs, roots, weights)
    loaded = study_of(study, where, dataset, prepares=not dry_run)
    jobs = plan(loaded, where)
    check(loaded, jobs, where)
    left = estimate(jobs, where, workers, measures=not dry_run)
    say(f"study {loaded.name}: {estimate_text(left)}")
    if dry_run:
        names = [str(path) for job in jobs for path in (job.stage1, job.run) if path]
        show({"runs": sorted(set(names)), "left": left}, as_json, lambda r: "\n".join(r["runs"]))
        return
    mark = "(random weights)"
    table = studies.ablate(loaded, where, workers, share_reads, devices)
    show(table, as_json, lambda r: markdown(r).replace(mark, red(mark)))
    if failed := table["failed"]:
        reasons = "; ".join(f"{one['run']}: {one['why']}" for one in failed)
        raise UserError(f"study {loaded.name}: {len(failed)} runs failed and leave gaps in the table: {reasons}")


@click.command("recipe")
@click.option("--dataset", help="With caches of several data sets: which to train on.")
@click.option("--to", type=click.Path(path_type=Path), help="The file; one below runs/ if absent.")
@FEATURES
@JSON
def recipe(dataset: str | None, to: Path | None, features: Path | str, as_json: bool) -> None:
    """Write a commented recipe for the caches that are there, to keep and edit; trains nothing."""
    from pipeline import api

    path = api.recipe(dataset, to=to, out=features)
    show({"recipe": str(path), "text": path.read_text()}, as_json, lambda r: f"{r['text']}\n{r['recipe']}")
