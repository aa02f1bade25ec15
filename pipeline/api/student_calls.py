"""Students from Python: trained, scored, compared, shown, and given away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.advice import with_advice
from pipeline.api.arguments import Paths, as_list, as_size, places
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.results import RunResult, ScoreResult, Training

if TYPE_CHECKING:
    from pipeline.recipes.config import Stage


@with_advice
def recipe(dataset: str | None = None, *, to: Path | str | None = None, out: Paths = "features") -> Path:
    """Write a commented recipe for the caches that are there; trains nothing. Returns its path.

    Args:
        dataset: whose caches, where there are those of several.
        to: the file; one below ``runs/`` when None.
        out: folders or addresses of caches.

    Raises:
        SakError: there are no caches, or of several data sets.
    """
    from pipeline.recipes.automatic import write_recipe

    return write_recipe(places(out).features, None if to is None else Path(to), dataset)


def training(
    stage: Stage,
    recipe: str | Path | None = None,
    *,
    dataset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    run: Path | str | None = None,
    **where: Any,
) -> Training:
    """What `distill` and `finetune` are asked for, checked; parameters as theirs.

    Raises:
        UserError: there is a data set beside a recipe, or stage 2 has no labels.
    """
    from pipeline.recipes.automatic import choose, missing_labels, save_recipe
    from pipeline.recipes.config import load_recipe
    from pipeline.recipes.stores import at_commits, commits_now
    from pipeline.runs import check_live_options, run_name

    at = places(**where)
    if recipe is not None and dataset is not None:
        raise UserError("a recipe names its data set: leave --dataset out, or the recipe")
    if recipe is None:
        choice = choose(at.features, dataset)
        if stage == "finetune" and choice.finetune is None:
            raise UserError(missing_labels(choice))
        recipe = save_recipe(choice, at.runs / f"{choice.name}.toml")
    loaded = at_commits(load_recipe(str(recipe), stage, overrides), commits_now())
    check_live_options([loaded], at)
    return Training(loaded, Path(run) if run else at.runs / run_name(loaded), at)


@with_advice
def plan_training(recipe: str | Path, stage: Stage = "distill", **options: Any) -> dict[str, Any]:
    """What a run of `recipe` reads and takes, measured by a few steps that nothing is kept of. JSON-able.

    Args:
        recipe: a name or a TOML file.
        stage: which of its two stages.
        options: as of `distill`.

    Raises:
        SakError: as `distill`; or the recipe reads no cache.
    """
    from pipeline.studies.training_plan import plan_training as planned

    asked = training(stage, recipe, **options)
    return planned(asked.recipe, asked.places)


@with_advice
def distill(
    recipe: str | Path | None = None, *, devices: int = 1, nodes: int = 1, wandb: bool = False, **options: Any
) -> RunResult:
    """Stage 1: distil cached teachers into a student; goes on where an earlier call stopped.

    Args:
        recipe: a name or a TOML file; when None, one is written for the caches that are there.
        devices: processes a machine, a GPU each or CPU cores.
        nodes: machines.
        wandb: whether Weights & Biases is told, too.
        options: dataset (where caches of several are there and no recipe says), overrides (dotted keys of the recipe to
            values), run (its folder; named after the recipe when None), and, as of `places`, out, runs, roots, weights.

    Raises:
        SakError: what is asked cannot be, or what it needs is missing.
    """
    from pipeline.training.devices import Execution
    from pipeline.training.distill import distill as train

    asked = training("distill", recipe, **options)
    return RunResult(asked.run, train(asked.recipe, asked.run, asked.places, Execution(devices, nodes, wandb)))


def _stage1_run(asked: Training, given: Path | str | None, recipe: str | Path | None) -> Path | None:
    """The finished stage-1 run that a stage-2 run starts from, if any: the `given` one, or the recipe's own."""
    from pipeline.recipes.arms import starts_from_stage1
    from pipeline.runs import find_run, run_name

    runs = asked.places.runs
    if given is not None:
        found = find_run(Path(given), runs)
    elif starts_from_stage1(asked.recipe):
        found = runs / run_name(asked.recipe.model_copy(update={"stage": "distill"}))
    else:
        return None
    if starts_from_stage1(asked.recipe) and not (found / "results.json").exists():
        named = f" RECIPE={recipe}" if recipe else ""
        raise UserError(f"{found} is no finished stage-1 run: make distill{named}, or FROM=RUN")
    return found


@with_advice
def finetune(
    recipe: str | Path | None = None,
    *,
    stage1: Path | str | None = None,
    devices: int = 1,
    nodes: int = 1,
    wandb: bool = False,
    **options: Any,
) -> RunResult:
    """Stage 2: train routers, heads and student on a labelled cache; goes on where an earlier call stopped.

    Args:
        recipe: as of `distill`.
        stage1: the distilled run that it starts from, the recipe's own when None.
        devices, nodes, wandb, options: as of `distill`.

    Raises:
        SakError: as `distill`; or stage 1 is not finished, or nothing is labelled.
    """
    from pipeline.training.devices import Execution
    from pipeline.training.finetune import finetune as train

    asked = training("finetune", recipe, **options)
    start = _stage1_run(asked, stage1, recipe)
    return RunResult(asked.run, train(asked.recipe, asked.run, start, asked.places, Execution(devices, nodes, wandb)))


@with_advice
def evaluate(run: Path | str, split: str = "test", *, dataset: str | None = None, **where: Any) -> ScoreResult:
    """Score a fine-tuned run on a labelled split.

    Args:
        run: a folder, or a name below ``runs``.
        split: of the data set.
        dataset: the recipe's own when None.
        where: as of `places`.

    Raises:
        SakError: the run is not finished, or the split has no cache or no labels of its tasks.
    """
    from pipeline.recipes.config import Data
    from pipeline.runs import find_run, read_recipe
    from pipeline.training.evaluate import evaluate as score

    at = places(**where)
    folder = find_run(Path(run), at.runs)
    made = read_recipe(folder)
    data = Data(dataset=dataset or made.data.dataset, split=split, size=made.data.size, out=made.out)
    return ScoreResult(folder, score(folder, data, at))


@with_advice
def ablate(
    study: str | Path | None = None,
    *,
    dataset: str | None = None,
    workers: int = 1,
    share_reads: int = 1,
    devices: int = 1,
    scheduler: str | None = None,
    dry_run: bool = False,
    **where: Any,
) -> dict[str, Any]:
    """Run what is missing of a study and return its table: columns, rows, seeds, baseline, and the runs that failed.

    Args:
        study: a name or a TOML file; when None, the arms that the caches allow, written as one below the runs.
        workers, share_reads: processes, a run each; runs of a process that share one read of the cache.
        devices: of each run.
        scheduler: address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``, on whose workers the runs are made.
        dry_run: run nothing, and return the runs and what is left of them.
        where: as of `places`.

    Raises:
        SakError: options do not go together, or what a run needs is missing; nothing has run then.
    """
    from pipeline.recipes.config import load_study
    from pipeline.studies import ablate as studies
    from pipeline.studies.automatic_study import write_study
    from pipeline.studies.estimate import estimate, estimate_text
    from pipeline.studies.jobs import check, plan, tested_where_trained

    studies.check_options(workers, share_reads, devices, scheduler)
    at = places(**where)
    if study is None:
        asked = write_study(at.features, at.runs, dataset, not dry_run)
    else:
        asked = tested_where_trained(load_study(str(study)))
    jobs = plan(asked, at)
    check(asked, jobs, at)
    left = estimate(jobs, at, workers, measures=not dry_run)
    say(f"study {asked.name}: {estimate_text(left)}")
    if dry_run:
        return {"runs": sorted({str(path) for job in jobs for path in (job.stage1, job.run) if path}), "left": left}
    return studies.ablate(asked, at, workers, share_reads, devices, scheduler)


@with_advice
def report(names: Paths, *, to: Path | str = "report.html", live: bool = False, **where: Any) -> dict[str, Any]:
    """Write a study's or runs' report, one HTML file, and return its path, bytes, remarks and every table's numbers.

    Args:
        names: a study by name, file or folder; or runs.
        to: the file.
        live: whether teachers run on the pictured images, too.
        where: as of `places`.

    Raises:
        SakError: there is no such study or run.
    """
    from pipeline.report.report import report as write

    return write(as_list(names), Path(to), places(**where), live)


@with_advice
def predict(
    sources: Paths,
    model: Path | str,
    out: Path | str,
    *,
    every: int = 1,
    runs: Path | str = "runs",
    dry_run: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Draw a student's predictions for images, folders and videos into the folder `out`; returns counts and reasons.

    Args:
        sources: images, folders and videos.
        model: a run, an exported folder or a hub id.
        every: of a video, each such frame.
        dry_run: count, and draw nothing.
        settings: size, tile, raw, batch_size, overwrite, see `pipeline.prediction.predict.Settings`.

    Raises:
        SakError: there is no such model, nothing to predict, or files that would be overwritten.
    """
    from pipeline.export.models import open_model
    from pipeline.prediction import predict as prediction
    from pipeline.prediction.sources import open_sources

    found = open_sources([Path(source) for source in as_list(sources)], every)
    run = prediction.plan if dry_run else prediction.predict
    return run(open_model(str(model), Path(runs)), found, Path(out), prediction.Settings(**settings))


@with_advice
def export(
    run: Path | str,
    out: Path | str,
    *,
    onnx: bool = False,
    torch_export: bool = False,
    size: str | tuple[int, int] | None = None,
    half: bool = False,
    push: str | None = None,
    public: bool = False,
    licence: str | None = None,
    confirm: Callable[[str], bool] | None = None,
    runs: Path | str = "runs",
) -> dict[str, Any]:
    """Write a trained student as a folder that `Student.from_pretrained` loads; returns folder, files and checks.

    Args:
        run: a run, a folder or a hub id.
        onnx, torch_export, size: further files, and of which images.
        half: keep the weights as fp16.
        push, public: OWNER/NAME on the hub; make a new repository of it public.
        licence, confirm: of the student, on its card; one that allows more than its teachers' do is refused, unless
            `confirm` says yes to the question.

    Raises:
        SakError: the run is not finished, the licence is refused, or what was written does not give the same values.
    """
    from pipeline.export import model_folder
    from pipeline.export.models import open_model

    formats = model_folder.Formats(onnx=onnx, program=torch_export, size=as_size(size), half=half)
    result = model_folder.export(open_model(str(run), Path(runs)), Path(out), formats, push, licence, confirm)
    return {**result, "pushed": model_folder.push(Path(out), push, public)} if push else result
