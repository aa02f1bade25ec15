"""A study's table from its finished runs: mean and standard deviation over seeds, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cache.format.spec import SourceSpec
from pipeline import runs
from pipeline.console import spread, table
from pipeline.recipes.arms import ORACLE, TEACHER_PREFIX
from pipeline.recipes.config import Study
from pipeline.recipes.stores import find_store, store_tasks
from pipeline.studies.jobs import Job
from pipeline.studies.statistics import is_known, summary, whole_mean

if TYPE_CHECKING:
    from sak_core.tasks import Task

CONSTANT = "constant"
"""The row of the best constant prediction."""


@dataclass(frozen=True)
class Entry:
    """What one row of the table rests on.

    Attributes:
        scores: the primary score of every task on the test split, one mapping a seed whose run did not fail; None where
            no pixel has a label.
        results: of these runs.
        note: what a reader must know about it.
    """

    scores: Sequence[Mapping[str, float | None]]
    results: Sequence[Mapping[str, Any]] = ()
    note: str = ""


def collect(
    study: Study, jobs: Sequence[Job], places: runs.Places, failed: Mapping[Path, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The study's table: `columns` (task, score, sense), `rows` (arm, scores and gain with mean and std over seeds,
    parameters, seconds), `seeds` and `baseline`. The gain is delta_m, the mean relative gain over the tasks.

    Args:
        failed: runs without scores, and why; a mean over no run is None. Gains are None where the baseline allows none,
            which `no_gain` then explains.
    """
    from pipeline.training.evaluate import constant_scores

    first = jobs[0].finetune
    tasks = store_tasks(find_store(places.features, first.data), first.tasks)
    by_label: dict[str, list[Job]] = {}
    for job in jobs:
        by_label.setdefault(job.label, []).append(job)
    constant = _primary(tasks, constant_scores(first, study.test, places))
    tested = find_store(places.features, study.test).spec
    entries = {CONSTANT: Entry([constant])}
    entries |= {label: _entry(tasks, tested, group, failed) for label, group in by_label.items()}
    if ORACLE in study.arms:
        entries = _with_oracle(study, entries, tasks)
    baseline = {task.name: whole_mean([s[task.name] for s in entries[study.baseline].scores]) for task in tasks}
    no_gain = _no_gain(study.baseline, baseline)
    by_run = {run: job for job in jobs for run in (job.stage1, job.run) if run}
    return {
        "study": study.name,
        "seeds": list(study.seeds),
        "baseline": study.baseline,
        "no_gain": no_gain,
        "columns": [{"task": t.name, "score": t.score, "higher_is_better": t.higher_is_better} for t in tasks],
        "rows": [
            {
                "arm": label,
                "scores": {task.name: _mean_std([s[task.name] for s in entry.scores]) for task in tasks},
                "gain_percent": _mean_std([] if no_gain else [_gain(tasks, s, baseline) for s in entry.scores]),
                "parameters": entry.results[0]["parameters"] if entry.results else 0,
                "seconds": mean(r["seconds"] for r in entry.results) if entry.results else 0.0,
                "random_weights": sorted({name for r in entry.results for name in r["random_weights"]}),
                "note": entry.note,
            }
            for label, entry in entries.items()
        ],
        "failed": [
            {"run": run.name, "arm": by_run[run].label, "seed": by_run[run].seed, "why": why}
            for run, why in failed.items()
        ],
    }


def _entry(tasks: Sequence[Task], tested: SourceSpec, group: Sequence[Job], failed: Mapping[Path, str]) -> Entry:
    from pipeline.training.evaluate import read_scores

    done = [job for job in group if job.run not in failed]
    kept = [read_scores(job.run, tested) for job in done]
    scores = [_primary(tasks, found["scores"]) for found in kept if found]
    notes = [f"seed {job.seed} failed ({failed[job.run]})" for job in group if job.run in failed]
    begun = dict.fromkeys(job.distill.init for job in group if job.distill and job.distill.init)
    notes += [f"stage 1 goes on from {name}, which was trained before" for name in begun]
    return Entry(scores, [runs.read_results(job.run) for job in done], "; ".join(notes))


def _no_gain(name: str, baseline: Mapping[str, float | None]) -> str:
    """Why there is no gain over the baseline, in words; empty where there is one."""
    zero = [task for task, score in baseline.items() if score == 0]
    unknown = [task for task, score in baseline.items() if score is None]
    if zero:
        return f"{name} scores 0 on {', '.join(zero)}, and nothing can be told relative to 0"
    return f"{name} has no score on {', '.join(unknown)}" if unknown else ""


def _gain(tasks: Sequence[Task], scores: Mapping[str, float | None], baseline: Mapping[str, Any]) -> float | None:
    from sak_core.metrics import delta_m

    known = {name: score for name, score in scores.items() if is_known(score)}
    if len(known) < len(scores):
        return None
    return delta_m(known, baseline, {task.name: task.higher_is_better for task in tasks})


def _primary(tasks: Sequence[Task], scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    return {task.name: scores[task.name][task.score] for task in tasks}


def _with_oracle(study: Study, entries: Mapping[str, Entry], tasks: Sequence[Task]) -> dict[str, Entry]:
    """The entries with the oracle's in its place among the arms.

    It takes, for each task, the teacher whose validation score is best (mean over seeds): nothing is trained, and
    the test split decides only where the recipe has no validation split, which its note then says.
    """
    every = {label: e for label, e in entries.items() if label.startswith(TEACHER_PREFIX)}
    teachers = {label: e for label, e in every.items() if _is_whole(study, e)}
    if not teachers:
        return _in_order(study, entries, Entry([], note="no arm teacher:<name> has a score on every task and seed"))
    validated = all("validation" in r for e in teachers.values() for r in e.results)
    chosen: dict[str, str] = {}
    for task in tasks:

        def merit(label: str, task: Task = task) -> float:
            entry = teachers[label]
            values = [r["validation"][task.name][task.score] for r in entry.results] if validated else []
            value = whole_mean(values or [s[task.name] for s in entry.scores])
            if value is None:
                return -math.inf
            return value if task.higher_is_better else -value

        chosen[task.name] = max(teachers, key=merit)
    seeds = range(len(study.seeds))
    used = [teachers[label] for label in dict.fromkeys(chosen.values())]
    results = [
        {
            "parameters": sum(e.results[seed]["parameters"] for e in used),
            "seconds": sum(e.results[seed]["seconds"] for e in used),
            "random_weights": [name for e in used for name in e.results[seed]["random_weights"]],
        }
        for seed in seeds
    ]
    by = "validation" if validated else "TEST"
    picked = ", ".join(f"{task} {label.removeprefix(TEACHER_PREFIX)}" for task, label in chosen.items())
    oracle = Entry(
        [{task.name: teachers[chosen[task.name]].scores[seed][task.name] for task in tasks} for seed in seeds],
        results,
        f"derived: each task's best teacher by {by} scores ({picked})",
    )
    return _in_order(study, entries, oracle)


def _is_whole(study: Study, entry: Entry) -> bool:
    known = [is_known(score) for scores in entry.scores for score in scores.values()]
    return len(entry.scores) == len(study.seeds) and all(known)


def _in_order(study: Study, entries: Mapping[str, Entry], oracle: Entry) -> dict[str, Entry]:
    order = [CONSTANT, *study.arms, *(label for label in entries if label not in (CONSTANT, *study.arms))]
    return {label: oracle if label == ORACLE else entries[label] for label in order}


def _mean_std(values: Sequence[float | None]) -> dict[str, float | None]:
    found = summary(values)
    return {"mean": found.mean, "std": found.std} if found.count == len(values) else {"mean": None, "std": None}


def markdown(result: dict[str, Any]) -> str:
    """The study's table as Markdown, with what it rests on below."""
    arrows = {True: "↑", False: "↓"}
    columns = [
        "arm",
        *(f"{c['task']} {c['score']} {arrows[c['higher_is_better']]}" for c in result["columns"]),
        "gain %",
        "parameters",
        "seconds",
    ]
    lines = []
    for row in result["rows"]:
        cells = [spread(**row["scores"][c["task"]], digits=3 if c["score"] == "RMSE" else 1) for c in result["columns"]]
        mark = " (random weights)" if row["random_weights"] else ""
        parameters = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else "-"
        seconds = f"{row['seconds']:.0f}" if row["seconds"] else "-"
        lines.append([row["arm"] + mark, *cells, spread(**row["gain_percent"], digits=1), parameters, seconds])
    seeds = result["seeds"]
    said = "one seed: differences of a few percent may be noise" if len(seeds) == 1 else f"{len(seeds)} seeds, ± std"
    notes = [f"{row['arm']}: {row['note']}." for row in result["rows"] if row["note"]]
    gain = f"none, {result['no_gain']}" if result["no_gain"] else f"mean over tasks against {result['baseline']}"
    below = f"Test scores, {said}; gain: {gain}."
    return "\n\n".join([table(columns, lines), " ".join([below, *notes])])


def as_csv(result: dict[str, Any]) -> str:
    """The study's table as CSV, means and standard deviations in columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out)
    names = [c["task"] for c in result["columns"]]
    head = ["arm", *names, *(f"{n}_std" for n in names), "gain_percent", "gain_percent_std", "parameters", "seconds"]
    writer.writerow(head)
    for row in result["rows"]:
        scores = [*(row["scores"][n] for n in names), row["gain_percent"]]
        stds = ["" if s["std"] is None else s["std"] for s in scores]
        means = ["" if s["mean"] is None else s["mean"] for s in scores]
        writer.writerow([row["arm"], *means[:-1], *stds[:-1], means[-1], stds[-1], row["parameters"], row["seconds"]])
    return out.getvalue()
