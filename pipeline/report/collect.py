"""From folders to facts: which runs a report is of, which arm each belongs to, and what keeps them from comparing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import runs
from pipeline.errors import UserError
from pipeline.recipes.config import STAGES, load_study, recipe_names
from pipeline.recipes.stores import parse_size
from pipeline.report.caches import caches_read
from pipeline.report.facts import ArmFacts, RunFacts, StudyFacts, TaskFacts
from pipeline.report.read_run import read_json, read_run
from pipeline.report.remarks import remarks
from pipeline.studies.jobs import PLAN
from pipeline.studies.study_table import CONSTANT
from sak_common.names import part_name, unknown
from sak_core.tasks import KINDS


def collect(names: Sequence[Path | str], places: runs.Places) -> StudyFacts:
    """The facts of one study, or of runs.

    Args:
        names: a study's name, file or folder; or runs, by path or by name below the folder of runs.

    Raises:
        UserError: there is no such thing, or nothing in it.
    """
    found = runs_of(names, places)
    caches, troubles = caches_read(found.runs, places.features)
    found = replace(found, caches=caches)
    return replace(found, remarks=(*remarks(found), *troubles))


def runs_of(names: Sequence[Path | str], places: runs.Places) -> StudyFacts:
    """As `collect`, of the runs' own folders alone: no cache is opened, and nothing remarked on."""
    if not names:
        raise UserError("name a study or runs to report on")
    folders = [_folder(str(name), places) for name in names]
    study = [folder for folder in folders if not (folder / "recipe.json").exists()]
    if study and len(folders) > 1:
        raise UserError(f"{study[0]} is a study: a report is of one study, or of runs")
    found = _on_one_split(_study(study[0]) if study else _single_runs(folders))
    return replace(found, tasks=_tasks(found))


def _folder(name: str, places: runs.Places) -> Path:
    """The folder that a study's or a run's name stands for."""
    if name.endswith(".toml") or (name in recipe_names("recipes/studies") and not Path(name).is_dir()):
        folder = places.runs / load_study(name).name
        if not folder.is_dir():
            raise UserError(f"study {name} has not begun: there is no {folder}. sak ablate {name}")
        return folder
    for folder in (Path(name), places.runs / name):
        if folder.is_dir():
            if not ((folder / "recipe.json").exists() or (folder / PLAN).exists() or _runs_below(folder)):
                raise UserError(f"{folder} holds no run and no study: no recipe.json, no {PLAN}")
            return folder
    have = sorted({path.parent.name for path in places.runs.glob("*/*.json")}) if places.runs.is_dir() else []
    raise UserError(f"{unknown('study or run', name, have)} (looked at {name} and below {places.runs})")


def _runs_below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/recipe.json"))


def _study(folder: Path) -> StudyFacts:
    plan = read_json(folder / PLAN) or _guessed_plan(folder)
    table = read_json(folder / "table.json") or {}
    failed = {entry["run"]: entry["why"] for entry in table.get("failed", ())}
    made: dict[str, dict[str, dict[int, RunFacts]]] = {}
    arms: dict[str, str] = {}
    for job in plan["jobs"]:
        arms[job["label"]] = job["arm"]
        stages = made.setdefault(job["label"], {stage: {} for stage in STAGES})
        for stage, name in (("finetune", job["run"]), ("distill", job["stage1"])):
            if name:
                into = stages[stage]
                why = failed.get(name, "")
                into[job["seed"]] = read_run(folder / name, job["label"], job["arm"], job["seed"], stage, why)
    rows = {row["arm"]: row for row in table.get("rows", ())}
    known = {CONSTANT, *arms}
    return StudyFacts(
        name=plan["study"]["name"],
        is_study=True,
        split=_split_name(plan["study"].get("test")),
        baseline=plan["study"].get("baseline", ""),
        seeds=tuple(plan["study"].get("seeds") or sorted({job["seed"] for job in plan["jobs"]})),
        arms=[ArmFacts(label, arm, made[label]["finetune"], made[label]["distill"]) for label, arm in arms.items()],
        tasks=(),
        caches={},
        constant={task: score["mean"] for task, score in rows.get(CONSTANT, {}).get("scores", {}).items()},
        derived={label: row["scores"] for label, row in rows.items() if label not in known},
    )


def _split_name(test: Mapping[str, Any] | None) -> str:
    """The name of a study's test split, as files of scores have it; empty where the plan does not say."""
    if not test or not test.get("size"):
        return ""
    height, width = parse_size(test["size"])
    return f"{test['dataset']}-{test['split']}-{height}x{width}"


def _guessed_plan(folder: Path) -> dict[str, Any]:
    """A plan of a study that was made before studies kept theirs: from the names of its runs."""
    table = read_json(folder / "table.json") or {}
    labels = {part_name(row["arm"]): row["arm"] for row in table.get("rows", ())}
    jobs: dict[tuple[str, int], dict[str, Any]] = {}
    for path in _runs_below(folder):
        recipe = read_json(path / "recipe.json") or {}
        stem, _, stage = path.name.rpartition("-")
        name, _, seed = stem.rpartition("-seed")
        if stage not in STAGES or not seed.isdigit():
            continue
        empty = {"label": labels.get(name, name), "arm": recipe.get("arm", name), "seed": int(seed), "stage1": None}
        job = jobs.setdefault((name, int(seed)), {**empty, "run": f"{stem}-finetune"})
        if stage == "distill":
            job["stage1"] = path.name
        elif (results := read_json(path / "results.json")) and results.get("stage1"):
            job["stage1"] = results["stage1"]
    return {"study": {"name": folder.name, "baseline": table.get("baseline", "")}, "jobs": list(jobs.values())}


def _single_runs(folders: Sequence[Path]) -> StudyFacts:
    """Runs without a study: those whose recipes differ in nothing but the seed are one arm's."""
    recipes = {folder: read_json(folder / "recipe.json") or {} for folder in dict.fromkeys(folders)}
    groups: dict[str, list[Path]] = {}
    for folder, recipe in recipes.items():
        key = json.dumps(
            {name: value for name, value in recipe.items() if name not in ("seed", "name")}, sort_keys=True
        )
        groups.setdefault(key if recipe else str(folder), []).append(folder)
    arms: list[ArmFacts] = []
    used = Counter(recipes[group[0]].get("arm", group[0].name) for group in groups.values())
    for group in groups.values():
        recipe = recipes[group[0]]
        arm = str(recipe.get("arm", group[0].name))
        label = arm if used[arm] == 1 else group[0].name
        made: dict[str, dict[int, RunFacts]] = {stage: {} for stage in STAGES}
        for folder in group:
            seed, stage = int(recipes[folder].get("seed", 0)), str(recipes[folder].get("stage", "finetune"))
            if seed in made[stage]:  # the same recipe twice
                seed = max(made[stage]) + 1
            made[stage][seed] = run = read_run(folder, label, arm, seed, stage)
            first = folder.parent / str(run.results.get("stage1"))
            if stage == "finetune" and run.results.get("stage1") and first.is_dir():
                made["distill"][seed] = read_run(first, label, arm, seed, "distill")
        arms.append(ArmFacts(label, arm, made["finetune"], made["distill"]))
    arms = _without_repetition(arms)
    seeds = sorted({seed for arm in arms for seed in (*arm.runs, *arm.stage1)})
    name = folders[0].name if len(folders) == 1 else f"{len(folders)} runs"
    baseline = arms[0].label if len(arms) > 1 else ""
    return StudyFacts(name, False, "", baseline, tuple(seeds), arms, (), {})


def _without_repetition(arms: Sequence[ArmFacts]) -> list[ArmFacts]:
    """Without arms of nothing but a stage 1 that another arm began with."""
    used = {run.folder for arm in arms if arm.runs for run in arm.stage1.values()}
    return [arm for arm in arms if arm.runs or not {run.folder for run in arm.stage1.values()} <= used]


def _on_one_split(found: StudyFacts) -> StudyFacts:
    """With the scores of one split: the study's own, or the one that most runs have, of those the test split."""
    have = Counter(name for run in found.runs for name in run.splits)
    split = found.split
    if not split and have:
        split = max(have, key=lambda name: (have[name], "-test-" in name, name))

    def scored(runs_by_seed: Mapping[int, RunFacts]) -> dict[int, RunFacts]:
        return {seed: replace(run, on=run.splits.get(split)) for seed, run in runs_by_seed.items()}

    return replace(found, split=split, arms=[replace(arm, runs=scored(arm.runs)) for arm in found.arms])


def _tasks(found: StudyFacts) -> tuple[TaskFacts, ...]:
    """The tasks that any run has scores of, in the order of the first that names them."""
    tasks: dict[str, TaskFacts] = {}
    for run in found.runs:
        for name, scores in (run.on.scores if run.on else {}).items():
            kind = kind_of(scores)
            if kind and name not in tasks:
                tasks[name] = TaskFacts(name, kind, KINDS[kind].score, KINDS[kind].higher_is_better)
    return tuple(tasks.values())


def kind_of(scores: Mapping[str, float | None]) -> str | None:
    """The kind of task that scores of these names are of; None where no kind has them. Saliency has an mIoU, too."""
    kinds = [kind for kind, row in KINDS.items() if row.score in scores]
    return next((kind for kind in kinds if kind != "classes"), kinds[0] if kinds else None)
