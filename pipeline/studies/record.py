"""What a study found, as a file to keep: every run's scores and origin, paired differences, a page to read."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import runs
from pipeline.console import number, table
from pipeline.recipes.arms import TEACHER_PREFIX
from pipeline.recipes.config import Study
from pipeline.recipes.stores import find_store
from pipeline.runs import Places
from pipeline.studies.jobs import Job, plan
from pipeline.studies.statistics import compare, whole_mean
from pipeline.studies.study_table import markdown

Scores = Mapping[int, float | None]
"""One score by seed."""


def record(study: Study, places: Places, result: Mapping[str, Any]) -> dict[str, Any]:
    """A finished study as JSON can hold it; `result` is its table, as `ablate` returns it.

    `runs` has a row a run: arm, seed, scores, the caches that it read, cosines to the teachers over stage 1's steps.
    `differences` pairs `study.subject` with every other arm by seed, with 95 % intervals; `ratios` sets its mean score
    over the best teacher's, a task each (of errors, lower is better).
    """
    jobs = plan(study, places)
    found = [_run(study, places, job) for job in jobs]
    by_arm: dict[str, dict[str, dict[int, float | None]]] = {}
    for run in found:
        for column in result["columns"]:
            value = run["scores"].get(column["task"], {}).get(column["score"])
            by_arm.setdefault(run["arm"], {}).setdefault(column["task"], {})[run["seed"]] = value
    return {
        "study": study.model_dump(mode="json"),
        "table": dict(result),
        "differences": differences(study.subject, by_arm, result["columns"]),
        "ratios": ratios(study.subject, by_arm, result["columns"]),
        "runs": found,
    }


def page(recorded: Mapping[str, Any]) -> str:
    """The record as Markdown: table, paired differences, ratios."""
    columns = recorded["table"]["columns"]
    subject = recorded["study"]["subject"]
    parts = [f"# Study `{recorded['study']['name']}`", markdown(recorded["table"])]
    if recorded["differences"]:
        heads = [f"{subject} minus", *(column["task"] for column in columns)]
        lines = [
            [arm, *(_difference(tasks[column["task"]], column) for column in columns)]
            for arm, tasks in recorded["differences"].items()
        ]
        about = (
            "Paired by seed: mean difference [95 % interval], in the score's unit. **Bold**: the interval leaves out 0 "
            f"and {subject} is better; *italic*: it is worse; plain: not established."
        )
        parts += ["## Differences", about, table(heads, lines)]
    if recorded["ratios"]:
        lines = [
            [task, r["teacher"], number(r["best"], ".4g"), number(r["ours"], ".4g"), f"{r['ratio']:.2f}"]
            for task, r in recorded["ratios"].items()
        ]
        parts += [f"## {subject} against each task's best teacher", "Means over seeds on the test split."]
        parts.append(table(["task", "best teacher", "its score", subject, "ratio"], lines))
    return "\n\n".join(_wrapped(paragraph) for part in parts for paragraph in part.split("\n\n")) + "\n"


def _wrapped(paragraph: str) -> str:
    """Prose in lines of at most 118 characters; tables and headings as they are."""
    return paragraph if paragraph.startswith(("|", "#")) else textwrap.fill(paragraph, 118, break_on_hyphens=False)


def write(recorded: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `<study>.json` and `<study>.md` into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    name = recorded["study"]["name"]
    files = {folder / f"{name}.json": json.dumps(recorded, indent=1) + "\n", folder / f"{name}.md": page(recorded)}
    for path, text in files.items():
        runs.write_atomically(path, text)
    return list(files)


def _run(study: Study, places: Places, job: Job) -> dict[str, Any]:
    from pipeline.training.evaluate import read_scores

    tested = find_store(places.features, study.test).spec
    scores = read_scores(job.run, tested)
    row: dict[str, Any] = {"arm": job.label, "seed": job.seed, "scores": scores["scores"] if scores else {}}
    if (job.run / "results.json").is_file():
        results = runs.read_results(job.run)
        row |= {key: results[key] for key in ("seconds", "parameters", "step", "made_from") if key in results}
    if job.stage1 and (job.stage1 / "results.json").is_file():
        row["stage1"] = {"run": job.stage1.name, "seconds": runs.read_results(job.stage1)["seconds"]}
        row["stage1"] |= _cosines(job.stage1 / "metrics.jsonl")
    return row


def _cosines(path: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Cosines to each teacher's levels by step, on held-out rows where they were validated and on those of training."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for key, prefix in {"held_out": "validation/cosine/", "training": "cosine/"}.items():
        curves = found.setdefault(key, {})
        for line in lines:
            for name, value in line.items():
                if name.startswith(prefix):
                    curves.setdefault(name.removeprefix(prefix), []).append((line["step"], round(value, 4)))
    return found


def differences(
    subject: str, by_arm: Mapping[str, Mapping[str, Scores]], columns: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The subject against every other arm, a task each, paired by seed: `statistics.compare` as a dictionary."""
    ours = by_arm.get(subject)
    if ours is None:
        return {}
    return {
        arm: {
            column["task"]: asdict(compare(ours[column["task"]], scores[column["task"]], column["higher_is_better"]))
            for column in columns
        }
        for arm, scores in by_arm.items()
        if arm != subject
    }


def ratios(
    subject: str, by_arm: Mapping[str, Mapping[str, Scores]], columns: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Of every task that all have scores of: the best teacher arm by mean score, and ours over it."""
    teachers = {arm: scores for arm, scores in by_arm.items() if arm.startswith(TEACHER_PREFIX)}
    if subject not in by_arm or not teachers:
        return {}
    found = {}
    for column in columns:
        task = column["task"]
        means = {arm: whole_mean(list(scores[task].values())) for arm, scores in teachers.items()}
        known = {arm: value for arm, value in means.items() if value}
        ours = whole_mean(list(by_arm[subject][task].values()))
        if not known or ours is None:
            continue
        best = (max if column["higher_is_better"] else min)(known, key=known.__getitem__)
        found[task] = {
            "teacher": best.removeprefix(TEACHER_PREFIX),
            "best": known[best],
            "ours": ours,
            "ratio": ours / known[best],
        }
    return found


def _difference(found: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    digits = 3 if column["score"] == "RMSE" else 1
    if found["difference"] is None:
        return "-"
    text = f"{found['difference']:+.{digits}f}"
    if found["low"] is not None:
        text += f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    marks = {"better": "**", "worse": "*"}
    mark = marks.get(found["verdict"], "")
    return f"{mark}{text}{mark}"
