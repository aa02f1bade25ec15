"""The command line. Heavy libraries are imported inside the commands, so that `sak --help` is quick."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UserError

FEATURES = click.option(
    "--out", "features", type=click.Path(path_type=Path), default=Path("features"), help="Folder of the caches."
)
RUNS = click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of the runs.")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, all else on stderr.")
DRY = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
SET = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a recipe's key.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="sak")
def sak() -> None:
    """Run each vision foundation model once, keep its features, distil one student from the cache."""


def main() -> None:
    """Entry point: turn errors that are the user's to mend into one line and an exit code of 2."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sak.main(standalone_mode=False)
    except click.exceptions.Abort:
        _leave("interrupted; the same command goes on where it stopped", 130)
    except KeyboardInterrupt:
        _leave("interrupted; the same command goes on where it stopped", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        _leave(f"error: {message}", 2)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _explain(error: Exception) -> str | None:
    """What to tell the user of `error`, or None for a fault of the program, which keeps its traceback."""
    text = str(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    known = {"UserError", "CacheError", "DatasetError", "UnknownName", "TeacherUnavailable", "TeacherError"}
    if names & known:
        return text
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        first = text.partition("\n")[0]
        return f"out of memory ({first}); lower batch_size (--batch-size, --set batch_size=8) or use bf16 precision"
    if isinstance(error, OSError) and error.errno == 28:
        return f"no space left on the disk: {text}; free some and run the same command again"
    if isinstance(error, PermissionError):
        return f"not allowed: {text}"
    return None


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


def _places(features: Path, runs: Path) -> Any:
    from pipeline.runs import Places

    return Places(features, runs)


@sak.command()
@click.option("--teacher", "teachers", default="", help="Names, comma-separated; none prepares pixels and labels.")
@click.option("--dataset", default="rooms", show_default=True)
@click.option("--split", default="train", show_default=True)
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data set, where it has one.")
@click.option("--size", help="S or HxW in px; the data set's own when absent.")
@click.option("--views", type=click.IntRange(1), help="Views a sample; 4 for training splits, 1 for val and test.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the views.")
@click.option("--limit", type=click.IntRange(1), help="The first N samples, as a store of its own.")
@click.option("--codec", default="fp16", show_default=True, help="fp32, fp16, bf16 or int8.")
@click.option("--levels", help="Block numbers, comma-separated; four evenly spaced when absent.")
@click.option("--grid", default="native", show_default=True, help="hxw cells, area-averaged, or native.")
@click.option("--weights", type=click.Path(path_type=Path), help="The teacher's weights (.safetensors or .pth).")
@click.option("--random-weights", is_flag=True, help="Run untrained towers, for trials; recorded in the store.")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the teacher; torch's own choice when absent.")
@click.option("--workers", type=click.IntRange(0), help="Processes that decode and draw views; all cores when absent.")
@click.option("--strict", is_flag=True, help="Stop at the first unreadable sample.")
@FEATURES
@DRY
@JSON
def cache(**options: Any) -> None:
    """Run teachers once over a data set and store their features."""
    from pipeline.caching import CacheRequest, run_cache

    as_json = options.pop("as_json")
    result = run_cache(CacheRequest.from_options(options))
    _show(result, as_json, lambda r: f"{r['store']}  {r['rows']} rows, {', '.join(r['teachers']) or 'no teachers'}")


def _show(result: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    print(json.dumps(result, indent=1) if as_json else text(result))


@sak.command()
@click.argument("recipe", default="demo")
@click.option("--run", type=click.Path(path_type=Path), help="The run's folder; named after the recipe when absent.")
@SET
@FEATURES
@RUNS
@DRY
@JSON
def distill(
    recipe: str,
    run: Path | None,
    assignments: tuple[str, ...],
    features: Path,
    runs: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Stage 1: distil cached teachers into the student of RECIPE."""
    from pipeline.config import load_recipe, parse_set
    from pipeline.runs import run_name

    loaded = load_recipe(recipe, "distill", parse_set(assignments))
    folder = run or runs / run_name(loaded)
    if dry_run:
        _show_plan(loaded, folder, features, as_json)
        return
    from pipeline.distill import distill as stage

    _show(stage(loaded, folder, _places(features, runs)), as_json, lambda r: f"{folder}")


@sak.command()
@click.argument("recipe", default="demo")
@click.option(
    "--from", "stage1", type=click.Path(path_type=Path), help="The distilled run; the recipe's own when absent."
)
@click.option("--run", type=click.Path(path_type=Path), help="The run's folder; named after the recipe when absent.")
@SET
@FEATURES
@RUNS
@DRY
@JSON
def finetune(
    recipe: str,
    stage1: Path | None,
    run: Path | None,
    assignments: tuple[str, ...],
    features: Path,
    runs: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Stage 2: train routers, heads and student on the labelled cache of RECIPE."""
    from pipeline.arms import find_arm
    from pipeline.config import load_recipe, parse_set
    from pipeline.runs import run_name

    loaded = load_recipe(recipe, "finetune", parse_set(assignments))
    folder = run or runs / run_name(loaded)
    if find_arm(loaded.arm).distils:
        if stage1 is None:
            stage1 = runs / run_name(loaded.model_copy(update={"stage": "distill"}))
        elif not stage1.exists() and (runs / stage1).exists():
            stage1 = runs / stage1
        if not (stage1 / "results.json").exists() and not dry_run:
            raise UserError(f"{stage1} is no finished stage-1 run: make distill RECIPE={recipe}, or FROM=RUN")
    if dry_run:
        _show_plan(loaded, folder, features, as_json)
        return
    from pipeline.finetune import finetune as stage

    result = stage(loaded, folder, stage1, _places(features, runs))
    _show(result, as_json, lambda r: _scores_text(r.get("validation", {}), str(folder)))


def _show_plan(recipe: Any, folder: Path, features: Path, as_json: bool) -> None:
    from pipeline.arms import teachers_read
    from pipeline.stores import find_store

    store = find_store(features, recipe.data, teachers_read(recipe))
    epochs = recipe.steps * recipe.batch_size / max(int(store.valid(recipe.data.views).sum()), 1)
    plan = {
        "run": str(folder),
        "store": store.path.name,
        "epochs": round(epochs, 2),
        "recipe": recipe.model_dump(mode="json"),
    }
    _show(plan, as_json, lambda p: f"would train {p['run']}: {recipe.steps} steps, {epochs:.1f} epochs of {p['store']}")


def _scores_text(scores: dict[str, dict[str, float]], where: str) -> str:
    lines = [f"{task}: " + ", ".join(f"{k} {v:.4g}" for k, v in s.items()) for task, s in scores.items()]
    return "\n".join([*lines, where])


@sak.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True)
@click.option("--dataset", help="The recipe's own when absent.")
@FEATURES
@RUNS
@JSON
def evaluate(run: Path, split: str, dataset: str | None, features: Path, runs: Path, as_json: bool) -> None:
    """Score the fine-tuned RUN on a labelled split."""
    from pipeline.config import Data
    from pipeline.evaluate import evaluate as score
    from pipeline.runs import read_recipe

    run = run if run.exists() else runs / run
    recipe = read_recipe(run)
    data = Data(dataset=dataset or recipe.data.dataset, split=split, size=recipe.data.size)
    _show(score(run, data, _places(features, runs)), as_json, lambda r: _scores_text(r, str(run)))


@sak.command()
@click.argument("study", default="demo")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Runs trained side by side.")
@FEATURES
@RUNS
@DRY
@JSON
def ablate(study: str, workers: int, features: Path, runs: Path, dry_run: bool, as_json: bool) -> None:
    """Run the arms, variations and seeds of STUDY that are not finished, and print their table."""
    from pipeline import ablate as studies
    from pipeline.config import load_study

    loaded, places = load_study(study), _places(features, runs)
    if dry_run:
        jobs = studies.plan(loaded, places)
        studies.check(loaded, jobs, places)
        names = [str(path) for job in jobs for path in (job.stage1, job.run) if path]
        _show({"runs": sorted(set(names))}, as_json, lambda r: "\n".join(r["runs"]))
        return
    _show(studies.ablate(loaded, places, workers), as_json, studies.markdown)


@sak.command()
@click.argument("store", type=click.Path(path_type=Path))
@JSON
def info(store: Path, as_json: bool) -> None:
    """What STORE holds, what of it is committed, its bytes, fidelity and provenance."""
    from pipeline.inspect import info_text, store_info

    _show(store_info(store), as_json, info_text)


@sak.command()
@click.argument("store", type=click.Path(path_type=Path))
@JSON
def verify(store: Path, as_json: bool) -> None:
    """Check every digest and checksum of STORE; exit code 1 if anything is damaged."""
    from pipeline.inspect import verify_text, verify_with_progress

    result = verify_with_progress(store)
    _show(result, as_json, verify_text)
    if result["problems"]:
        sys.exit(1)


@sak.command()
@click.option("--out", "folder", type=click.Path(path_type=Path), default=Path("demo"), help="Where the demo lives.")
@click.option("--small", is_flag=True, help="A shrunken line for tests: minutes become seconds, scores mean nothing.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@JSON
def demo(folder: Path, small: bool, workers: int, as_json: bool) -> None:
    """The whole line on rendered rooms: cache, distil, fine-tune, ablate, pictures."""
    from pipeline.demo import demo_text, run_demo

    _show(run_demo(folder, small=small, workers=workers), as_json, demo_text)


@sak.group()
def data() -> None:
    """Look at data sets."""


@data.command()
@click.argument("dataset", default="rooms")
@click.option("--split", default="train", show_default=True)
@click.option("--root", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1), default=8, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("preview.png"), show_default=True)
def preview(dataset: str, split: str, root: Path | None, count: int, out: Path) -> None:
    """Draw a sheet of samples with every label beside them."""
    from pipeline.report import preview_sheet

    print(preview_sheet(dataset, split, root, count, out))


@sak.group()
def miniature() -> None:
    """The miniature teachers: train them again, or probe them."""


@miniature.command("train")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/miniatures"), show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Length of the run; the teacher's own when absent.")
@click.option("--scenes", "num_scenes", type=click.IntRange(64), default=8000, show_default=True)
def miniature_train(name: str, out: Path, steps: int | None, num_scenes: int) -> None:
    """Train the miniature teacher NAME again, from rendered scenes; goes on where it stopped."""
    from pipeline.console import say
    from pipeline.miniatures.training import train
    from sak_core.names import unknown
    from sak_core.teachers.miniature import MINIATURES

    if name not in MINIATURES:
        raise UserError(unknown("miniature teacher", name, MINIATURES))
    print(train(name, out, num_scenes=num_scenes, num_steps=steps, report=say))


@miniature.command("probe")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/miniatures/probe.json"), show_default=True)
@JSON
def miniature_probe(out: Path, as_json: bool) -> None:
    """Score the miniature teachers' frozen features under one head on all six tasks."""
    from pipeline.console import say
    from pipeline.miniatures.probe import probe, render_table

    _show(probe(out=out, report=say), as_json, render_table)
