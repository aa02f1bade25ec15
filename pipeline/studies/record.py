"""What a study found, as a file to keep: every run's scores and origin, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.format.manifest import teacher_part
from pipeline import runs
from pipeline.recipes.arms import parts_read
from pipeline.recipes.config import Recipe, Study
from pipeline.recipes.stores import find_store, training_store
from pipeline.runs import Places
from pipeline.studies import findings
from pipeline.studies.coding_loss import coding_figures, foretold
from pipeline.studies.jobs import Job, plan
from pipeline.studies.record_page import page
from pipeline.studies.router_weights import router_weights
from pipeline.training.boards import read_metrics

RESULTS = ("seconds", "parameters", "step", "made_from", "environment")
"""What a record keeps of a run's results."""


def record(study: Study, places: Places, result: Mapping[str, Any]) -> dict[str, Any]:
    """A finished study as JSON can hold it; `result` is its table, as `ablate` returns it.

    `runs` has a row a run: arm, seed, scores, the caches that it read, the commit and the machine that trained it,
    cosines to the teachers over stage 1's steps.
    `differences` is of the pairs that the study compares, with 95 % intervals; `ratios`, `held_out`, `left_out`,
    `caches` and `foretold` are empty where the study cannot tell: see `pipeline.studies.findings` and `coding_loss`.
    """
    found = [_run(study, places, job) for job in plan(study, places)]
    arms = list(dict.fromkeys(run["arm"] for run in found))
    columns = result["columns"]
    compared = findings.differences(findings.pairs_of(study.compare, arms), found, columns)
    first = study.compare[0][0] if study.compare else findings.EVERY
    subject = "" if first == findings.EVERY else first
    return {
        "study": study.model_dump(mode="json"),
        "subject": subject,
        "table": dict(result),
        "differences": compared,
        "ratios": findings.ratios(subject, found, columns),
        "held_out": findings.all_held_out(found),
        "left_out": findings.left_out(subject, found, compared),
        "caches": findings.cheapest(
            found, [one for one in compared if (findings.EVERY, one["against"]) in study.compare]
        ),
        "foretold": foretold(found, compared, columns),
        "runs": found,
    }


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
    row["teachers"] = list(job.finetune.teachers)
    if (job.run / "results.json").is_file():
        results = runs.read_results(job.run)
        row |= {key: results[key] for key in RESULTS if key in results}
        row["routers"] = _routers(read_metrics(job.run), job.finetune.steps)
    if job.distill and job.stage1 and (job.stage1 / "results.json").is_file():
        results = runs.read_results(job.stage1)
        row["stage1"] = {"run": job.stage1.name, "seconds": results["seconds"]}
        row["stage1"] |= {"environment": results["environment"]} if "environment" in results else {}
        row["stage1"] |= _cosines(read_metrics(job.stage1))
        row |= _cache(job.distill, places)
    return row


def _routers(lines: Sequence[Mapping[str, Any]], steps: int) -> dict[str, dict[str, float]]:
    """Mean router weight by task and expert, over levels; empty where there are no routers."""
    by_task: dict[str, dict[str, list[float]]] = {}
    for (task, _, expert), weight in router_weights(lines, steps).items():
        by_task.setdefault(task, {}).setdefault(expert, []).append(weight)
    return {
        task: {expert: round(sum(w) / len(w), 4) for expert, w in experts.items()} for task, experts in by_task.items()
    }


def _cosines(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Cosines to each teacher's levels by step, on held-out rows where they were validated and on those of training."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for key, prefix in {"held_out": "validation/cosine/", "training": "cosine/"}.items():
        curves = found.setdefault(key, {})
        for line in lines:
            for name, value in line.items():
                if name.startswith(prefix):
                    curves.setdefault(name.removeprefix(prefix), []).append((line["step"], round(value, 4)))
    return found


def _cache(recipe: Recipe, places: Places) -> dict[str, Any]:
    """Of the cache that a stage 1 reads: "cache_bytes", of its features, committed, and "coding", what its codec does
    to them (see `coding_figures`); nothing of a live one."""
    if recipe.source == "live":
        return {}
    teachers = parts_read(recipe)
    store = training_store(places.features, recipe, teachers)
    views = (store.part(teacher_part(name)).view(view) for name in teachers for view in range(recipe.data.views))
    size = sum(sum(sizes) for view in views for sizes in view.sizes.values())
    return {"cache_bytes": size, "coding": coding_figures(store, teachers)}
