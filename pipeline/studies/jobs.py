"""What a study comes to: a job for every arm, variation and seed, in folders below the study's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache.store import Store
from pipeline import runs
from pipeline.errors import UserError
from pipeline.recipes.arms import (
    ORACLE,
    TEACHER_PREFIX,
    find_arm,
    one_a_task,
    parts_read,
    starts_from_stage1,
)
from pipeline.recipes.config import Recipe, Study, load_recipe, recipe_differences
from pipeline.recipes.stores import at_commits, commits_now, store_tasks, training_store
from pipeline.runs.origin import origin_of_run
from pipeline.training.before import check_validation
from pipeline.training.class_tokens import check_class_tokens
from pipeline.training.evaluate import check_scorable
from sak_common.names import part_name, unknown
from sak_core.tasks import Task


@dataclass(frozen=True)
class Job:
    """One trained system of a study: its stage-1 run (None where the arm does not distil) and its stage-2 run."""

    label: str
    seed: int
    finetune: Recipe
    run: Path
    distill: Recipe | None = None
    stage1: Path | None = None


PLAN = "study.json"
"""Beside a study's runs: what it is, and which run is which arm's, so that a report needs no recipe to read them."""


def tested_where_trained(study: Study) -> Study:
    """`study`, with its test split looked for where its recipe looks for caches, if it does not say where itself."""
    out = study.test.out or at_commits(load_recipe(study.recipe, "finetune", study.set), commits_now()).out
    return study.model_copy(update={"test": study.test.model_copy(update={"out": out})})


def planned(study: Study, jobs: Sequence[Job]) -> dict[str, Any]:
    """What a study comes to, JSON-able: "study" itself, and "jobs", runs by the names of their folders."""
    return {
        "study": study.model_dump(mode="json"),
        "jobs": [
            {
                "label": job.label,
                "arm": job.finetune.arm,
                "seed": job.seed,
                "run": job.run.name,
                "stage1": job.stage1.name if job.stage1 else None,
                "steps": job.finetune.steps,
                "stage1_steps": job.distill.steps if job.distill else None,
            }
            for job in jobs
        ],
    }


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
    now = commits_now()
    return [
        replace(job, finetune=at_commits(job.finetune, now), distill=job.distill and at_commits(job.distill, now))
        for job in jobs
    ]


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
    stage2_only: dict[str, Any] = {"tasks": True, "boundary": True, "stage1": True}
    beside_tasks = {"boundary_positives", "initial", "expert_balance"}
    stage2_only |= {"loss": {"alpha", "task_weights", *beside_tasks}}
    stage2_only |= {"student": {"router", "head", "decoder", "invpt", "mlore"}}
    if a.validate_every is None and b.validate_every is None:
        stage2_only["validation"] = True  # nothing is chosen by it
    left, right = (r.model_dump(mode="json", exclude=stage2_only) for r in (a, b))
    return not recipe_differences(left, right)


def check(study: Study, jobs: Sequence[Job], places: runs.Places) -> None:
    """Check, before anything runs, that all jobs of a study can.

    Raises:
        UserError: a cache that some job reads is missing or unfinished, or the arms do not fit together, or a data set
            that live runs make their views from is not there, or what is finished was made from other caches than
            these.
    """
    from pipeline.training.fresh import fresh_dataset

    live: dict[str, Store] = {}
    for job in jobs:
        for recipe in filter(None, (job.distill, job.finetune)):
            store = training_store(places.features, recipe, parts_read(recipe))
            check_class_tokens(recipe, store)
            if recipe.source == "live":
                live[store.name] = store
            check_validation(recipe, places)
        check_scorable(job.finetune, _tasks(job.finetune, places), store, study.test, places)
    runs.check_live_options([recipe for job in jobs for recipe in (job.distill, job.finetune) if recipe], places)
    for store in live.values():
        fresh_dataset(store, places.root(store.spec.dataset))
    labels = {job.label for job in jobs}
    if ORACLE in study.arms:
        if not any(label.startswith(TEACHER_PREFIX) for label in labels):
            raise UserError(f"study {study.name}: arm {ORACLE} chooses among arms teacher:<name>; add some")
        labels.add(ORACLE)
    if study.baseline not in labels:
        raise UserError(f"study {study.name}: baseline: {unknown('arm', study.baseline, sorted(labels))}")
    _check_up_to_date(study, jobs, places)


def _check_up_to_date(study: Study, jobs: Sequence[Job], places: runs.Places) -> None:
    """Refuse a study with finished runs that were made from something else than is there now; all of them are named."""
    trained: dict[Path, tuple[Recipe, Path | None]] = {}
    for job in jobs:
        if job.stage1 and job.distill:
            trained[job.stage1] = job.distill, None
    for job in jobs:
        trained[job.run] = job.finetune, job.stage1
        if find_arm(job.finetune.arm).per_task:
            trained |= {single.run: (single.finetune, None) for single in single_jobs(job, places)}
    wrong = []
    for run, (recipe, stage1) in trained.items():
        try:
            is_finished(run, recipe, stage1, places)
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError(f"study {study.name} would mix what does not belong together:\n  " + "\n  ".join(wrong))


def is_finished(run: Path, recipe: Recipe, stage1: Path | None, places: runs.Places) -> bool:
    """As `runs.is_finished`, of a run that begins with the run `stage1`, which may not be there yet."""
    if not (run / "recipe.json").exists():
        return False
    begun = stage1 if stage1 and (stage1 / "results.json").exists() else None
    return runs.is_finished(run, recipe, origin_of_run(recipe, places.features, begun))


def single_jobs(job: Job, places: runs.Places) -> list[Job]:
    """The students of a job whose arm has one a task: the same rows, in folders below the job's run."""
    tasks = [task.name for task in _tasks(job.finetune, places)]
    return [
        Job(f"{job.label} {task}", job.seed, single, job.run / task)
        for task, single in one_a_task(job.finetune, tasks).items()
    ]


def _tasks(recipe: Recipe, places: runs.Places) -> list[Task]:
    """The tasks that a stage-2 recipe trains."""
    store = training_store(places.features, recipe, parts_read(recipe))
    return store_tasks(store, recipe.tasks, recipe.loss.task_weights)
