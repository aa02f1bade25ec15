"""Studies: arms, variations and seeds over the same caches; what is finished is skipped, no teacher is loaded."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe, Study, differences, load_recipe
from pipeline.console import say, start_worker
from pipeline.errors import UserError
from pipeline.stores import find_store, training_store
from pipeline.studies.arms import ORACLE, TEACHER_PREFIX, find_arm, parts_read, starts_from_stage1, teachers_read
from pipeline.studies.study_table import as_csv, collect, markdown
from pipeline.training import runs
from sak_core.names import part_name, unknown

if TYPE_CHECKING:
    from pipeline.training.devices import Execution

SAME_ROWS = ("data", "seed", "batch_size", "accumulate", "shuffle", "shuffle_rows", "source")
"""The keys of a recipe that decide which rows come in which order."""


@dataclass(frozen=True)
class Job:
    """One trained system of a study: its stage-1 run (None where the arm does not distil) and its stage-2 run."""

    label: str
    seed: int
    finetune: Recipe
    run: Path
    distill: Recipe | None = None
    stage1: Path | None = None


def plan(study: Study, places: runs.Places) -> list[Job]:
    """The study's jobs. A variation that changes nothing of stage 1 starts from its arm's own distilled run."""
    folder = places.runs / study.name
    jobs: list[Job] = []
    for seed in study.seeds:
        plain: dict[str, Job] = {}
        for arm in study.arms:
            if find_arm(arm).derived:
                continue
            plain[arm] = _job(study, folder, arm, arm, {}, seed)
            jobs.append(plain[arm])
        for variation in study.variations:
            base = plain.get(variation.arm)
            job = _job(study, folder, variation.name, variation.arm, variation.set, seed)
            if base and base.distill and job.distill and _same_training(base.distill, job.distill):
                job = Job(job.label, seed, job.finetune, job.run, base.distill, base.stage1)
            jobs.append(job)
    return jobs


def _job(study: Study, folder: Path, label: str, arm: str, changes: dict[str, Any], seed: int) -> Job:
    overrides = {**study.set, "arm": arm, **changes, "seed": seed}
    name = f"{part_name(label)}-seed{seed}"
    job = Job(label, seed, load_recipe(study.recipe, "finetune", overrides), folder / f"{name}-finetune")
    if not starts_from_stage1(job.finetune):
        return job
    # routers and heads are stage 2's alone: what trains only them starts from the arm's own distilled student
    distilled = dict(overrides)
    if distilled.get("trains") == "routers":
        distilled = {key: value for key, value in overrides.items() if key not in ("trains", "frozen")}
    distill = load_recipe(study.recipe, "distill", distilled)
    return Job(label, seed, job.finetune, job.run, distill, folder / f"{name}-distill")


def _same_training(a: Recipe, b: Recipe) -> bool:
    """Whether two stage-1 recipes compute the same: what only stage 2 reads is left aside."""
    stage2_only = {"tasks", "task_weights", "alpha", "validation", "boundary", "stage1"}
    left, right = (r.model_dump(mode="json", exclude=stage2_only) for r in (a, b))
    for side in (left, right):
        side["student"] = {k: v for k, v in side["student"].items() if k not in ("router", "head")}
    return not differences(left, right)


def check(study: Study, jobs: Sequence[Job], places: runs.Places) -> None:
    """Raise `UserError` before anything runs where a cache that some job reads is missing or unfinished, or the arms
    do not fit together."""
    for job in jobs:
        for recipe in filter(None, (job.distill, job.finetune)):
            training_store(places.features, recipe, parts_read(recipe))
        frozen = find_arm(job.finetune.arm).frozen_features
        find_store(places.features, study.test, teachers_read(job.finetune) if frozen else ())
    labels = {job.label for job in jobs}
    if ORACLE in study.arms:
        if not any(label.startswith(TEACHER_PREFIX) for label in labels):
            raise UserError(f"study {study.name}: arm {ORACLE} chooses among arms teacher:<name>; add some")
        labels.add(ORACLE)
    if study.baseline not in labels:
        raise UserError(f"study {study.name}: baseline: {unknown('arm', study.baseline, sorted(labels))}")


def ablate(study: Study, places: runs.Places, workers: int = 1, together: int = 1) -> dict[str, Any]:
    """Run what is missing of the study with `workers` processes, each training up to `together` runs side by side,
    and return (and write) its table.

    The result has `columns`, `rows` (label, scores with mean and std over seeds, gain, parameters, seconds).
    """
    jobs = plan(study, places)
    check(study, jobs, places)
    folder = places.runs / study.name
    distilled = {job.stage1: job for job in jobs if job.distill}
    _run_all([(_distill_job, job, study, places) for job in distilled.values()], workers, together)
    _run_all([(_finetune_job, job, study, places) for job in jobs], workers, together)
    result = collect(study, jobs, places)
    runs.write_atomically(folder / "table.json", json.dumps(result, indent=1))
    runs.write_atomically(folder / "table.md", markdown(result) + "\n")
    runs.write_atomically(folder / "table.csv", as_csv(result))
    return result


Call = tuple[Callable[..., None], Job, Study, runs.Places]


def _run_all(calls: Sequence[Call], workers: int, together: int) -> None:
    pending = []
    for call in calls:
        if name := _finished(*call):
            say(f"{name}: finished earlier, skipped")
        else:
            pending.append(call)
    groups = _groups(pending, together)
    if workers <= 1 or len(groups) <= 1:
        for group in groups:
            _run_group(group)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(groups)), mp_context=context, initializer=start_worker) as pool:
        futures = [pool.submit(_run_group, group) for group in groups]
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
                os.kill(process.pid or 0, signal.SIGTERM)
            raise


def _recipe(call: Call) -> Recipe:
    """The recipe of the stage that a call runs."""
    function, job = call[:2]
    return job.distill if function is _distill_job and job.distill else job.finetune


def _groups(calls: Sequence[Call], together: int) -> list[list[Call]]:
    """The calls in groups of at most `together`, each of runs that read the same rows in the same order."""
    groups: list[list[Call]] = []
    open_groups: dict[str, list[Call]] = {}
    for call in calls:
        recipe = _recipe(call)
        key = json.dumps([getattr(recipe, name) for name in SAME_ROWS], default=str)
        group = open_groups.get(key)
        if group is None or len(group) >= together or find_arm(recipe.arm).per_task or recipe.source == "live":
            group = open_groups[key] = []
            groups.append(group)
        group.append(call)
        if find_arm(recipe.arm).per_task:
            del open_groups[key]
    return groups


def _run_group(group: Sequence[Call]) -> None:
    if len(group) == 1:
        function, job, study, places = group[0]
        function(job, study, places)
        return
    from pipeline.training.devices import Execution
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
    done = job.run.exists() and runs.begin(job.run, job.finetune) and runs.scores_path(job.run, study.test).exists()
    return job.run.name if done else None


def _distill_job(job: Job, study: Study, places: runs.Places, execution: Execution | None = None) -> None:
    from pipeline.training.devices import ALONE
    from pipeline.training.distill import distill

    assert job.stage1 and job.distill
    distill(job.distill, job.stage1, places, execution or ALONE)


def _finetune_job(job: Job, study: Study, places: runs.Places, execution: Execution | None = None) -> None:
    from pipeline.training.devices import ALONE
    from pipeline.training.evaluate import evaluate
    from pipeline.training.finetune import finetune

    finetune(job.finetune, job.run, job.stage1, places, execution or ALONE)
    evaluate(job.run, study.test, places)
