"""The commands as functions: what `import sak` offers, and what the command line calls.

Errors that the caller can mend are `sak_common.errors.SakError`s. Progress goes to stderr.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.advice import with_advice
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.results import CacheResult, RunResult, ScoreResult, Training

if TYPE_CHECKING:
    from pipeline.extraction.request import CacheRequest
    from pipeline.recipes.config import Stage
    from pipeline.runs import Places

TRAINING_VIEWS = 4
"""Views a sample of a training split, unless asked otherwise; evaluation splits have the one padded view."""

Names = str | Sequence[str]  # or one text with commas between them
Paths = Path | str | Sequence[Path | str]


def _names(given: Names) -> tuple[str, ...]:
    listed = given.split(",") if isinstance(given, str) else given
    return tuple(name.strip() for name in listed if name.strip())


def _listed(given: Paths) -> list[Path | str]:
    return [given] if isinstance(given, Path | str) else list(given)


def _size(given: str | int | tuple[int, int] | None) -> tuple[int, int] | None:
    from pipeline.recipes.stores import parse_size

    return given if given is None or isinstance(given, tuple) else parse_size(str(given))


def cache_request(
    teachers: Names = (),
    dataset: str = "rooms",
    split: str = "train",
    *,
    root: Path | str | None = None,
    size: str | int | tuple[int, int] | None = None,
    views: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    images: str | None = None,
    out: Path | str = "features",
    grid: str | tuple[int, int] | None = None,
    decoders: int | None = None,
    strict: bool = False,
    scheduler: str | None = None,
    workers: int = 0,
    **options: Any,
) -> CacheRequest:
    """What `cache` and `plan` are asked for, checked; parameters as of `cache`.

    Raises:
        UserError: values that cannot be, or do not go together.
    """
    from pipeline.extraction.request import CacheRequest, teacher_options
    from pipeline.extraction.samples import DatasetRequest

    names, is_scored = _names(teachers), split in ("val", "test")
    if is_scored and views not in (None, 1):
        raise UserError(f"split {split} has one padded evaluation view; leave VIEWS out")
    if options.get("weights") and len(names) != 1:
        raise UserError("--weights FILE goes with exactly one teacher")
    if scheduler and workers:
        raise UserError("--scheduler uses the workers that are there; leave --workers out")
    source = DatasetRequest(dataset, split, _size(size), Path(root).expanduser() if root else None, limit, seed, images)
    return CacheRequest(
        source,
        names,
        views or (1 if is_scored else TRAINING_VIEWS),
        out,
        teacher_options(grid=None if grid in (None, "native") else _size(grid), **options),
        decoders=decoders,
        strict=strict,
        scheduler=scheduler,
        workers=workers,
    )


@with_advice
def cache(teachers: Names = (), dataset: str = "rooms", split: str = "train", **options: Any) -> CacheResult:
    """Run teachers once over a data set and store their features; goes on where an earlier call stopped.

    Args:
        teachers: names, as `sak teachers` lists them; none prepares pixels and labels alone.
        dataset, split: such as "folder", "train".
        options: root (the data set's folder), size ("S", "HxW" or (H, W), px), views, limit, seed, images (which of a
            sample's images is the input), out (folder or address of the caches), grid ("hxw"), decoders, strict,
            scheduler, workers; and those of `pipeline.extraction.request.TeacherOptions`: codec, probes, fidelity (or,
            as text, what tasks may lose: "semseg=0.5"), levels, weights, device, ...

    Raises:
        SakError: what is asked cannot be, or what it needs is missing.
    """
    from pipeline.extraction.caching import run_cache

    made = run_cache(cache_request(teachers, dataset, split, **options))
    return CacheResult(made.pop("store"), **{**made, "teachers": tuple(made["teachers"])})


@with_advice
def plan(teachers: Names = (), dataset: str = "rooms", split: str = "train", **options: Any) -> dict[str, Any]:
    """What `cache` with these arguments would write, hold and take; nothing of it is done. JSON-able."""
    from pipeline.extraction.plan import plan as planned

    # all that this process has done so far a run does, too
    return planned(cache_request(teachers, dataset, split, **options), time.process_time())


@with_advice
def plan_training(recipe: str | Path, stage: Stage = "distill", **options: Any) -> dict[str, Any]:
    """What a run of `recipe` reads and takes, measured by a few steps that nothing is kept of. JSON-able; options as of
    `distill`.
    """
    from pipeline.studies.training_plan import plan_training as planned

    asked = training(stage, recipe, **options)
    return planned(asked.recipe, asked.places)


def places(
    out: Paths = "features",
    runs: Path | str = "runs",
    roots: Mapping[str, Path] | None = None,
    weights: Mapping[str, Path] | None = None,
) -> Places:
    """Where caches and runs lie, and for live runs data sets and teachers' weights; see `pipeline.runs.Places`.

    Of several places in `out`, each teacher is read from the first that has it whole. Those on the hub are at one
    commit from here on, whoever commits meanwhile.
    """
    from pipeline.recipes.stores import caches_at
    from pipeline.runs import Places

    return Places(caches_at(_listed(out)), Path(runs), roots or {}, weights or {})


@with_advice
def recipe(dataset: str | None = None, *, to: Path | str | None = None, out: Paths = "features") -> Path:
    """Write a commented recipe for the caches below `out`, those of `dataset` where there are several; trains nothing.
    Returns its path, `to` or one below ``runs/``.
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
    """Stage 2: train routers, heads and student on a labelled cache; arguments as of `distill`. It starts from the
    distilled run `stage1`, the recipe's own when None.
    """
    from pipeline.training.devices import Execution
    from pipeline.training.finetune import finetune as train

    asked = training("finetune", recipe, **options)
    start = _stage1_run(asked, stage1, recipe)
    return RunResult(asked.run, train(asked.recipe, asked.run, start, asked.places, Execution(devices, nodes, wandb)))


@with_advice
def evaluate(run: Path | str, split: str = "test", *, dataset: str | None = None, **where: Any) -> ScoreResult:
    """Score a fine-tuned run, a folder or a name below ``runs``, on a labelled split, by default of the recipe's own
    `dataset`.
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
        live: whether teachers run on the pictured images, too.
    """
    from pipeline.report.report import report as write

    return write(_listed(names), Path(to), places(**where), live)


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
        model: a run, an exported folder or a hub id.
        every: of a video, each such frame.
        dry_run: count, and draw nothing.
        settings: size, tile, raw, batch_size, overwrite, see `pipeline.prediction.predict.Settings`.
    """
    from pipeline.export.models import open_model
    from pipeline.prediction import predict as prediction
    from pipeline.prediction.sources import open_sources

    found = open_sources([Path(source) for source in _listed(sources)], every)
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
    """
    from pipeline.export import model_folder
    from pipeline.export.models import open_model

    formats = model_folder.Formats(onnx=onnx, program=torch_export, size=_size(size), half=half)
    result = model_folder.export(open_model(str(run), Path(runs)), Path(out), formats, push, licence, confirm)
    return {**result, "pushed": model_folder.push(Path(out), push, public)} if push else result


@with_advice
def publish(stores: Paths, target: Path | str, **options: Any) -> dict[str, Any]:
    """Copy stores, or folders of them, for others to read; options as of `maintenance.publish.PublishRequest`."""
    from pipeline.maintenance import publish as publishing

    return publishing.publish(publishing.PublishRequest(stores, target, **options))


@with_advice
def join(features: Path | str, root: Path | str | None = None, out: Path | str | None = None) -> dict[str, Any]:
    """Render pixels and labels of stores published without them; parameters as of `maintenance.join.JoinRequest`."""
    from pipeline.maintenance import join as joining

    return joining.join(joining.JoinRequest(features, None if root is None else Path(root), out))
