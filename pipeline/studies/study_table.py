"""A study's table from its finished runs: mean and standard deviation over seeds, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from pipeline import runs
from pipeline.console import number, table
from pipeline.recipes.arms import ORACLE, TEACHER_PREFIX
from pipeline.recipes.config import Study
from pipeline.recipes.stores import find_store, store_tasks
from pipeline.studies.jobs import Job

if TYPE_CHECKING:
    from sak_core.tasks import Task

CONSTANT = "constant"
"""The row of the best constant prediction."""


@dataclass(frozen=True)
class Entry:
    """What one row of the table rests on.

    scores: the primary score of every task on the test split, one mapping a seed; None where no pixel has a label.
    results: of its runs.
    note: what a reader must know about it.
    """

    scores: Sequence[Mapping[str, float | None]]
    results: Sequence[Mapping[str, Any]] = ()
    note: str = ""


def collect(study: Study, jobs: Sequence[Job], places: runs.Places) -> dict[str, Any]:
    """The study's table: `columns` (task, score, sense), `rows` (arm, scores and gain with mean and std over seeds,
    parameters, seconds), `seeds` and `baseline`. The gain is delta_m, the mean relative gain over the tasks; None where
    a score is.
    """
    from pipeline.training.evaluate import constant_scores

    first = jobs[0].finetune
    tasks = store_tasks(find_store(places.features, first.data), first.tasks)
    by_label: dict[str, list[Job]] = {}
    for job in jobs:
        by_label.setdefault(job.label, []).append(job)
    constant = _primary(tasks, constant_scores(first, study.test, places))
    entries = {CONSTANT: Entry([constant]), **{label: _entry(tasks, study, group) for label, group in by_label.items()}}
    if ORACLE in study.arms:
        entries = _with_oracle(study, entries, tasks)
    higher_is_better = {task.name: task.higher_is_better for task in tasks}
    baseline = {t.name: _mean_std([s[t.name] for s in entries[study.baseline].scores])["mean"] for t in tasks}
    return {
        "study": study.name,
        "seeds": list(study.seeds),
        "baseline": study.baseline,
        "columns": [{"task": t.name, "score": t.score, "higher_is_better": t.higher_is_better} for t in tasks],
        "rows": [
            {
                "arm": label,
                "scores": {task.name: _mean_std([s[task.name] for s in entry.scores]) for task in tasks},
                "gain_percent": _mean_std([_gain(s, baseline, higher_is_better) for s in entry.scores]),
                "parameters": entry.results[0]["parameters"] if entry.results else 0,
                "seconds": mean(r["seconds"] for r in entry.results) if entry.results else 0.0,
                "random_weights": sorted({name for r in entry.results for name in r["random_weights"]}),
                "note": entry.note,
            }
            for label, entry in entries.items()
        ],
    }


def _entry(tasks: Sequence[Task], study: Study, group: Sequence[Job]) -> Entry:
    scores = [_primary(tasks, json.loads(runs.scores_path(job.run, study.test).read_text())) for job in group]
    return Entry(scores, [runs.read_results(job.run) for job in group])


def _gain(
    scores: Mapping[str, float | None], baseline: Mapping[str, float | None], higher_is_better: Mapping[str, bool]
) -> float | None:
    from sak_core.metrics import delta_m

    ours, theirs = ({name: s for name, s in some.items() if s is not None} for some in (scores, baseline))
    complete = ours.keys() >= higher_is_better.keys() <= theirs.keys()
    return delta_m(ours, theirs, higher_is_better) if complete else None


def _primary(tasks: Sequence[Task], scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    return {task.name: scores[task.name][task.score] for task in tasks}


def _with_oracle(study: Study, entries: Mapping[str, Entry], tasks: Sequence[Task]) -> dict[str, Entry]:
    """The entries with the oracle's in its place among the arms.

    It takes, for each task, the teacher whose validation score is best (mean over seeds): nothing is trained, and
    the test split decides only where the recipe has no validation split, which its note then says.
    """
    teachers = {label: e for label, e in entries.items() if label.startswith(TEACHER_PREFIX)}
    validated = all("validation" in r for e in teachers.values() for r in e.results)
    chosen: dict[str, str] = {}
    for task in tasks:

        def merit(label: str, task: Task = task) -> float:
            entry = teachers[label]
            values = [r["validation"][task.name][task.score] for r in entry.results] if validated else []
            value = _mean_std(values or [s[task.name] for s in entry.scores])["mean"]
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
    order = [CONSTANT, *study.arms, *(label for label in entries if label not in (CONSTANT, *study.arms))]
    return {label: oracle if label == ORACLE else entries[label] for label in order}


def _mean_std(values: Sequence[float | None]) -> dict[str, float | None]:
    """None for both where one of the values is no number."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "std": None}
    return {"mean": mean(known), "std": stdev(known) if len(known) > 1 else None}


def _cell(value: dict[str, Any], digits: int) -> str:
    std = "" if value["std"] is None else f" ± {value['std']:.{digits}f}"
    return number(value["mean"], f".{digits}f") + std


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
        cells = [_cell(row["scores"][c["task"]], 3 if c["score"] == "RMSE" else 1) for c in result["columns"]]
        mark = " (random weights)" if row["random_weights"] else ""
        parameters = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else "-"
        seconds = f"{row['seconds']:.0f}" if row["seconds"] else "-"
        lines.append([row["arm"] + mark, *cells, _cell(row["gain_percent"], 1), parameters, seconds])
    seeds = result["seeds"]
    said = "one seed: differences of a few percent may be noise" if len(seeds) == 1 else f"{len(seeds)} seeds, ± std"
    notes = [f"{row['arm']}: {row['note']}." for row in result["rows"] if row["note"]]
    below = f"Test scores, {said}; gain: mean over tasks against {result['baseline']}."
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
