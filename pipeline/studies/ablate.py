"""Studies: arms, variations and seeds over the same caches; what is finished is skipped, no teacher is loaded."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import runs
from pipeline.console import say, start_worker
from pipeline.errors import UserError
from pipeline.interrupts import Interrupted
from pipeline.recipes.arms import find_arm
from pipeline.recipes.config import Recipe, Study
from pipeline.studies.jobs import Job, check, plan, single_jobs
from pipeline.studies.study_table import as_csv, collect, markdown

if TYPE_CHECKING:
    from pipeline.training.devices import Execution

SAME_ROWS = ("data", "seed", "batch_size", "accumulate", "shuffle", "shuffle_rows", "direct", "source")
"""The keys of a recipe that decide which rows come in which order."""


def ablate(
    study: Study, places: runs.Places, workers: int = 1, share_reads: int = 1, devices: int = 1
) -> dict[str, Any]:
    """Run what is missing of the study with `workers` processes, each training up to `share_reads` runs side by side,
    or one run at a time on `devices` devices, and return (and write) its table.

    The result has `columns`, `rows` (label, scores with mean and std over seeds, gain, parameters, seconds).
    """
    jobs = plan(study, places)
    check(study, jobs, places)
    folder = places.runs / study.name
    distilled = {job.stage1: job for job in jobs if job.distill}
    _run_all([(_distill_job, job, study, places) for job in distilled.values()], workers, share_reads, devices)
    split = {job.run: single_jobs(job, places) for job in jobs if find_arm(job.finetune.arm).per_task}
    training: list[Call] = [(_single_job, single, study, places) for singles in split.values() for single in singles]
    training += [(_finetune_job, job, study, places) for job in jobs if job.run not in split]
    _run_all(training, workers, share_reads, devices)
    _run_all([(_finetune_job, job, study, places) for job in jobs if job.run in split], workers, 1)
    result = collect(study, jobs, places)
    runs.write_atomically(folder / "table.json", json.dumps(result, indent=1))
    runs.write_atomically(folder / "table.md", markdown(result) + "\n")
    runs.write_atomically(folder / "table.csv", as_csv(result))
    return result


Call = tuple[Callable[..., None], Job, Study, runs.Places]


def _run_all(calls: Sequence[Call], workers: int, share_reads: int, devices: int = 1) -> None:
    pending = []
    for call in calls:
        if name := _finished(*call):
            say(f"{name}: finished earlier, skipped")
        else:
            pending.append(call)
    groups = _groups(pending, share_reads)
    if workers <= 1 or len(groups) <= 1:
        for group in groups:
            _run_group(group, devices)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(groups)), mp_context=context, initializer=start_worker) as pool:
        futures = [pool.submit(_run_group, group, devices) for group in groups]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _recipe(call: Call) -> Recipe:
    """The recipe of the stage that a call runs."""
    function, job = call[:2]
    return job.distill if function is _distill_job and job.distill else job.finetune


def _groups(calls: Sequence[Call], share_reads: int) -> list[list[Call]]:
    """The calls in groups of at most `share_reads`, each of runs that read the same rows in the same order."""
    groups: list[list[Call]] = []
    open_groups: dict[str, list[Call]] = {}
    for call in calls:
        recipe = _recipe(call)
        key = json.dumps([getattr(recipe, name) for name in SAME_ROWS], default=str)
        group = open_groups.get(key)
        if group is None or len(group) >= share_reads or recipe.source == "live":
            group = open_groups[key] = []
            groups.append(group)
        group.append(call)
    return groups


def _run_group(group: Sequence[Call], devices: int) -> None:
    from pipeline.training.devices import Execution

    if len(group) == 1:
        function, job, study, places = group[0]
        function(job, study, places, Execution(devices))
        return
    from pipeline.training.together import Share, run_together

    say(f"side by side, from one read: {', '.join(call[1].label for call in group)}")

    def work(call: Call) -> Callable[[Share], None]:
        function, job, study, places = call
        return lambda share: function(job, study, places, Execution(share=share))

    run_together([work(call) for call in group], _recipe(group[0]).accumulate)


def _finished(function: Callable[..., None], job: Job, study: Study, places: runs.Places) -> str | None:
    """The name of the run that `function` would make, if it is there already."""
    if function is _distill_job:
        assert job.stage1 and job.distill
        return job.stage1.name if job.stage1.exists() and runs.begin(job.stage1, job.distill) else None
    if function is _single_job:
        is_done = job.run.exists() and runs.begin(job.run, job.finetune)
        return f"{job.run.parent.name}/{job.run.name}" if is_done else None
    done = job.run.exists() and runs.begin(job.run, job.finetune) and runs.scores_path(job.run, study.test).exists()
    return job.run.name if done else None


def _distill_job(job: Job, study: Study, places: runs.Places, execution: Execution) -> None:
    assert job.stage1 and job.distill
    _train(job.distill, job.stage1, None, places, execution)


def _single_job(job: Job, study: Study, places: runs.Places, execution: Execution) -> None:
    job.run.parent.mkdir(parents=True, exist_ok=True)
    _train(job.finetune, job.run, None, places, execution)


def _finetune_job(job: Job, study: Study, places: runs.Places, execution: Execution) -> None:
    from pipeline.training.evaluate import evaluate

    _train(job.finetune, job.run, job.stage1, places, execution)
    evaluate(job.run, study.test, places)


def _train(recipe: Recipe, run: Path, stage1: Path | None, places: runs.Places, execution: Execution) -> None:
    from pipeline.training.distill import distill
    from pipeline.training.finetune import finetune

    if execution.devices > 1:
        _by_its_own_command(recipe, run, stage1, places, execution.devices)
    elif recipe.stage == "distill":
        distill(recipe, run, places, execution)
    else:
        finetune(recipe, run, stage1, places, execution)


def _by_its_own_command(recipe: Recipe, run: Path, stage1: Path | None, places: runs.Places, devices: int) -> None:
    """Train on several devices: every process of a run starts its command anew, which must not be the whole study's."""
    if runs.begin(run, recipe):
        return
    command: list[object] = [sys.executable, "-m", "pipeline", recipe.stage, run / "recipe.json", "--run", run]
    command += ["--devices", devices, "--out", places.features, "--runs", places.runs]
    if recipe.source == "live":
        if root := places.root(recipe.data.dataset):
            command += ["--root", root]
        for teacher, file in places.weights.items():
            command += ["--weights", f"{teacher}={file}" if teacher else file]
    child = subprocess.Popen(
        list(map(str, command + (["--from", stage1] if stage1 else []))), stdout=subprocess.DEVNULL
    )
    try:
        code = child.wait()
    except BaseException as error:
        if isinstance(error, Interrupted):  # a Ctrl-C has reached it already, and a second one would not let it save
            child.terminate()
        child.wait()
        raise
    if code:
        raise UserError(f"{run.name} ended with exit code {code}; what it says stands above")
