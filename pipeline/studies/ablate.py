"""Studies: arms, variations and seeds over the same caches; what is finished is skipped, no teacher is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import runs
from pipeline.console import each_in_worker, say, warn
from pipeline.errors import UserError
from pipeline.interrupts import Interrupted
from pipeline.recipes.arms import find_arm
from pipeline.recipes.config import Recipe, Study
from pipeline.recipes.stores import each_place
from pipeline.runs.holder import alone_in
from pipeline.runs.origin import origin_of_run
from pipeline.studies.jobs import PLAN, Job, check, is_finished, plan, planned, single_jobs
from pipeline.studies.study_table import as_csv, collect, markdown
from sak_common.errors import SakError
from sak_common.extras import how_to_install

if TYPE_CHECKING:
    from distributed import Client

    from pipeline.training.devices import Execution

SEEN_LATE_S = 30.0
"""Seconds within which a shared file system shows what another machine wrote."""
SAME_ROWS = ("stage", "data", "seed", "batch_size", "accumulate", "loader", "source")
"""The keys of a recipe that decide which rows come in which order."""


def ablate(
    study: Study,
    places: runs.Places,
    workers: int = 1,
    share_reads: int = 1,
    devices: int = 1,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Run what is missing of the study with `workers` processes, each training up to `share_reads` runs side by side,
    or one run at a time on `devices` devices, or on the workers of a Dask scheduler, and return (and write) its table.

    The result has `columns`, `rows` (label, scores with mean and std over seeds, gain, parameters, seconds), and
    `failed`: the runs that ended in an error and leave a gap in the table, with the reason.
    """
    jobs = plan(study, places)
    check(study, jobs, places)
    folder = places.runs / study.name
    with alone_in(folder):
        runs.write_atomically(folder / PLAN, json.dumps(planned(study, jobs), indent=1))
        with _runner(workers, devices, scheduler) as run_groups:
            failed = _train_all(study, jobs, places, share_reads, run_groups)
        result = collect(study, jobs, places, failed)
        runs.write_atomically(folder / "table.json", json.dumps(result, indent=1))
        runs.write_atomically(folder / "table.md", markdown(result) + "\n")
        runs.write_atomically(folder / "table.csv", as_csv(result))
    return result


def check_options(workers: int, share_reads: int, devices: int, scheduler: str | None) -> None:
    """Check that the options of `ablate` go together, and with what started this process.

    Raises:
        UserError: they do not.
    """
    from pipeline.training.devices import started_together

    if started := started_together():
        raise UserError(f"{started.by} starts many processes, and a study is one that starts its runs: run it alone")
    if devices > 1 and max(workers, share_reads) > 1:
        raise UserError("a run takes all the devices: choose --devices, or one of --workers and --share-reads")
    if scheduler and max(workers, devices) > 1:
        raise UserError("--scheduler uses the workers that are there: leave --workers and --devices out")
    if scheduler and find_spec("distributed") is None:
        raise UserError(f"--scheduler needs distributed; {how_to_install('teachers')}")


Call = tuple[Callable[..., None], Job, Study, runs.Places]
Failed = dict[Path, str]
"""Runs that ended in an error, and why."""
RunGroups = Callable[[Sequence[list[Call]]], Failed]
"""Makes the runs of every group, those of one side by side."""


@contextmanager
def _runner(workers: int, devices: int, scheduler: str | None) -> Iterator[RunGroups]:
    if scheduler is None:
        yield partial(_run_here, workers=workers, devices=devices)
        return
    from pipeline.cluster import reached

    with reached(scheduler) as client:
        yield partial(_run_on_workers, client)


def _train_all(
    study: Study, jobs: Sequence[Job], places: runs.Places, share_reads: int, run_groups: RunGroups
) -> Failed:
    """Train and score all jobs; a run that fails leaves the others to be trained.

    Stage 1 comes first, and beside it what needs none, so that no worker waits for another's distillation.
    """
    distilled: dict[Path, Job] = {}
    for job in jobs:
        if job.stage1:
            distilled.setdefault(job.stage1, job)
    split = {job.run: single_jobs(job, places) for job in jobs if find_arm(job.finetune.arm).per_task}
    calls: list[Call] = [(_distill_job, job, study, places) for job in distilled.values()]
    calls += [(_single_job, single, study, places) for singles in split.values() for single in singles]
    calls += [(_finetune_job, job, study, places) for job in jobs if not job.stage1 and job.run not in split]
    failed = _run_all(calls, share_reads, run_groups)
    calls = []
    for job in jobs:
        if job.stage1 in failed:
            failed[job.run] = f"its stage 1, {job.stage1.name}, failed"
        elif job.stage1:
            calls.append((_finetune_job, job, study, places))
    failed |= _run_all(calls, share_reads, run_groups)
    for run, singles in split.items():
        for single in singles:
            if single.run in failed:
                failed[run] = f"{single.run.name}: {failed.pop(single.run)}"
    calls = [(_finetune_job, job, study, places) for job in jobs if job.run in split and job.run not in failed]
    return failed | _run_all(calls, 1, run_groups)


def _run_all(calls: Sequence[Call], share_reads: int, run_groups: RunGroups) -> Failed:
    pending = []
    for call in calls:
        if name := is_made(*call):
            say(f"{name}: finished earlier, skipped")
        else:
            pending.append(call)
    return run_groups(_groups(pending, share_reads)) if pending else {}


def _run_here(groups: Sequence[list[Call]], workers: int, devices: int) -> Failed:
    """Make the runs of all groups on this machine."""
    if workers <= 1 or len(groups) <= 1:
        return {run: why for group in groups for run, why in run_group(group, devices).items()}
    made = each_in_worker(partial(run_group, devices=devices), groups, workers)
    return {run: why for failed in made for run, why in failed.items()}


def _run_on_workers(client: Client, groups: Sequence[list[Call]]) -> Failed:
    """Make the runs of all groups on a scheduler's workers."""
    from pipeline.studies.on_workers import hand_out

    failed: Failed = {}
    done = 0
    for number, where, answer in hand_out(client, groups):
        made = {run_of(call[0], call[1]): call for call in groups[number]}
        failed |= dict.fromkeys(made, answer) if isinstance(answer, str) else answer
        done += len(made)
        say(f"{', '.join(run.name for run in made)}: ended at {where}; {done} of {sum(map(len, groups))} runs")
        for run, call in made.items():
            if run not in failed and not _appears(call):
                failed[run] = f"{where} made it, and it is not here: runs must lie where all machines see them"
            if run in failed:
                warn(f"{run.name} failed: {failed[run]}. The study's other runs go on")
    return failed


def _appears(call: Call) -> bool:
    """Whether a run is there, or soon: shared file systems show other machines' files late."""
    deadline = time.monotonic() + SEEN_LATE_S
    while not (found := is_made(*call)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return bool(found)


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


def run_group(group: Sequence[Call], devices: int) -> Failed:
    """Make the runs of a group, side by side where they are several; those that failed, and why."""
    from pipeline.training.devices import Execution

    if len(group) == 1:
        return _attempt(group[0], Execution(devices))
    from pipeline.training.shared_reads import Share, run_sharing

    say(f"side by side, from one read: {', '.join(call[1].label for call in group)}")

    def work(call: Call) -> Callable[[Share], Failed]:
        return lambda share: _attempt(call, Execution(share=share))

    found = run_sharing([work(call) for call in group], _recipe(group[0]).accumulate)
    return {run: why for failed in found for run, why in failed.items()}


def _attempt(call: Call, execution: Execution) -> Failed:
    """Make the run of a call; nothing, or why it failed: one run's error is not the end of a study."""
    function, job, study, places = call
    run = run_of(function, job)
    try:
        function(job, study, places, execution)
    except Exception as error:
        if not isinstance(error, SakError):  # a fault of the program keeps its traceback
            traceback.print_exc()
        warn(f"{run.name} failed: {error}. The study's other runs go on")
        return {run: str(error) or type(error).__name__}
    return {}


def run_of(function: Callable[..., None], job: Job) -> Path:
    """The folder of the run that `function` makes of a job."""
    if function is not _distill_job:
        return job.run
    assert job.stage1
    return job.stage1


def is_made(function: Callable[..., None], job: Job, study: Study, places: runs.Places) -> str | None:
    """The name of the run that `function` would make, if it is there already (and scored, where that is its part)."""
    from pipeline.training.evaluate import is_scored

    run = run_of(function, job)
    if function is _distill_job:
        assert job.distill
        return run.name if is_finished(run, job.distill, None, places) else None
    if not is_finished(run, job.finetune, job.stage1, places):
        return None
    if function is _single_job:
        return f"{run.parent.name}/{run.name}"
    return run.name if is_scored(run, study.test, places) else None


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
    if runs.begin(run, recipe, origin_of_run(recipe, places.features, stage1)):
        return
    command: list[object] = [sys.executable, "-m", "pipeline", recipe.stage, run / "recipe.json", "--run", run]
    command += ["--devices", devices, "--runs", places.runs]
    command += [word for place in each_place(places.features) for word in ("--out", place)]
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
