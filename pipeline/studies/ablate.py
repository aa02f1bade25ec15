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
from pipeline.recipes.config import Recipe, Study
from pipeline.recipes.stores import each_place
from pipeline.runs.holder import alone_in
from pipeline.runs.origin import origin_of_run
from pipeline.studies.jobs import PLAN, Job, check, plan, planned
from pipeline.studies.schedule import Call, Schedule, calls_of, grouped
from pipeline.studies.study_table import as_csv, collect, markdown
from sak_common.errors import SakError
from sak_common.extras import how_to_install

if TYPE_CHECKING:
    from distributed import Client

    from pipeline.training.devices import Execution

SEEN_LATE_S = 30.0
"""Seconds within which a shared file system shows what another machine wrote."""


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
        schedule = _schedule(study, jobs, places, share_reads)
        with _maker(workers, devices, scheduler) as make_runs:
            make_runs(schedule)
        result = collect(study, jobs, places, schedule.failed)
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


Ended = dict[Path, str]
"""Runs that have ended, and why where in an error."""
MakeRuns = Callable[[Schedule], None]
"""Makes all runs of a schedule, those of a group side by side; a run that fails leaves the others to be made."""


@contextmanager
def _maker(workers: int, devices: int, scheduler: str | None) -> Iterator[MakeRuns]:
    if scheduler is None:
        yield partial(_make_here, workers=workers, devices=devices)
        return
    from pipeline.cluster import reached

    with reached(scheduler) as client:
        yield partial(_make_on_workers, client)


def _schedule(study: Study, jobs: Sequence[Job], places: runs.Places, share_reads: int) -> Schedule:
    """What is missing of a study."""
    groups: list[list[Call]] = []
    missing: set[Path] = set()
    for calls in calls_of(study, jobs, places):
        left = []
        for call in calls:
            if missing.isdisjoint(call.needs) and call.is_made():
                say(f"{call.run.relative_to(places.runs / study.name)}: finished earlier, skipped")
            else:
                left.append(call)
        missing |= {call.run for call in left}
        groups += grouped(left, share_reads)
    return Schedule(groups)


def _make_here(schedule: Schedule, workers: int, devices: int) -> None:
    """Make all runs on this machine."""
    workers = min(workers, len(schedule))
    if workers > 1:
        for made in each_in_worker(partial(run_group, devices=devices), schedule, workers):
            schedule.ended(made)
        return
    while group := schedule.next():
        schedule.ended(run_group(group, devices))


def _make_on_workers(client: Client, schedule: Schedule) -> None:
    """Make all runs on a scheduler's workers."""
    from pipeline.studies.on_workers import hand_out

    count = schedule.num_calls
    done = 0
    for group, where, answer in hand_out(client, schedule.next):
        made = dict.fromkeys((call.run for call in group), answer) if isinstance(answer, str) else answer
        done += len(group)
        say(f"{', '.join(run.name for run in made)}: ended at {where}; {done} of {count} runs")
        for call in group:
            if not made[call.run] and not _appears(call):
                made[call.run] = f"{where} made it, and it is not here: runs must lie where all machines see them"
            if made[call.run]:
                warn(f"{call.run.name} failed: {made[call.run]}. The study's other runs go on")
        schedule.ended(made)


def _appears(call: Call) -> bool:
    """Whether a run is there, or soon: shared file systems show other machines' files late."""
    deadline = time.monotonic() + SEEN_LATE_S
    while not (found := call.is_made()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def run_group(group: Sequence[Call], devices: int) -> Ended:
    """Make the runs of a group, side by side where they are several."""
    from pipeline.training.devices import Execution

    if len(group) == 1:
        return _attempt(group[0], Execution(devices))
    from pipeline.training.shared_reads import Share, run_sharing

    say(f"side by side, from one read: {', '.join(call.label for call in group)}")

    def work(call: Call) -> Callable[[Share], Ended]:
        return lambda share: _attempt(call, Execution(share=share))

    found = run_sharing([work(call) for call in group], group[0].recipe.accumulate)
    return {run: why for ended in found for run, why in ended.items()}


def _attempt(call: Call, execution: Execution) -> Ended:
    """Make the run of a call: one run's error is not the end of a study."""
    try:
        _make(call, execution)
    except Exception as error:
        if not isinstance(error, SakError):  # a fault of the program keeps its traceback
            traceback.print_exc()
        warn(f"{call.run.name} failed: {error}. The study's other runs go on")
        return {call.run: str(error) or type(error).__name__}
    return {call.run: ""}


def _make(call: Call, execution: Execution) -> None:
    """Train, and score where that is asked for."""
    from pipeline.training.evaluate import evaluate

    call.run.parent.mkdir(parents=True, exist_ok=True)
    _train(call.recipe, call.run, call.stage1, call.places, execution)
    if call.test:
        evaluate(call.run, call.test, call.places)


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
