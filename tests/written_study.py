"""A study as files alone, with numbers that tests know: nothing was trained, and no cache is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPLIT = "rooms-test-96x96"
SEEDS = (0, 1, 2)
TEACHERS = ("mini-dino", "mini-sam")
CACHES = {
    "rooms-train-96x96-aaaa.zarr": {"source": "5" * 64, "teachers/mini-dino": "d" * 64, "teachers/mini-sam": "e" * 64}
}
TESTED = {"rooms-test-96x96-bbbb.zarr": {"source": "7" * 64}}
MIOU = {
    "multi-task": (10.0, 12.0, 14.0),
    "many-to-one": (19.0, 22.0, 24.0),
    "sak": (21.0, 22.5, 24.6),
    "without mini-sam": (20.0, 21.0, 23.0),
}
"""By arm and seed."""
RMSE = {
    "multi-task": (1.00, 1.10, 0.90),
    "many-to-one": (0.95, 0.99, 0.88),
    "sak": (0.80, 0.91, 0.69),
    "without mini-sam": (0.85, 0.94, 0.74),
}
SECONDS_BY_PART = {"data": 0.9, "forward": 9.0, "backward": 15.0, "optimizer": 3.0, "logging": 0.6, "saving": 1.5}
"""Of stage 1: 30 s, 60 steps."""
IMAGES = {"room-0": 0.5, "room-1": 1.5, "room-2": 1.0}
"""By image: its own score, as a multiple of its run's."""


def write_study(
    runs: Path, name: str = "known", seeds: tuple[int, ...] = SEEDS, tasks: tuple[str, ...] = ("semseg", "depth")
) -> Path:
    """The study's folder below `runs`, finished."""
    folder = runs / name
    jobs = []
    for arm in MIOU:
        slug = arm.replace(" ", "-")
        system = "sak" if arm == "without mini-sam" else arm
        for seed in seeds:
            distils = system != "multi-task"
            stage1 = f"{slug}-seed{seed}-distill" if distils else None
            run = f"{slug}-seed{seed}-finetune"
            jobs.append(
                {
                    "label": arm,
                    "arm": system,
                    "seed": seed,
                    "run": run,
                    "stage1": stage1,
                    "steps": 40,
                    "stage1_steps": 60,
                }
            )
            if stage1:
                write_run(folder / stage1, system, seed, "distill", arm)
            write_run(folder / run, system, seed, "finetune", arm, stage1, tasks)
    test = {"dataset": "rooms", "split": "test", "size": "96x96", "views": 1}
    study = {
        "name": name,
        "recipe": "demo",
        "arms": list(MIOU)[:3],
        "baseline": "multi-task",
        "seeds": list(seeds),
        "test": test,
    }
    put(folder / "study.json", {"study": study, "jobs": jobs})
    rows = [{"arm": "constant", "scores": {"semseg": {"mean": 2.0, "std": None}, "depth": {"mean": 1.5, "std": None}}}]
    put(folder / "table.json", {"study": name, "rows": rows, "failed": []})
    return folder


def write_run(
    folder: Path,
    arm: str,
    seed: int,
    stage: str,
    label: str = "",
    stage1: str | None = None,
    tasks: tuple[str, ...] = ("semseg", "depth"),
) -> Path:
    """One finished run's folder."""
    label = label or arm
    teachers = [] if arm == "multi-task" else list(TEACHERS[:1] if label == "without mini-sam" else TEACHERS)
    steps = 60 if stage == "distill" else 40
    recipe = {
        "name": "tiny",
        "stage": stage,
        "arm": arm,
        "seed": seed,
        "teachers": teachers,
        "steps": steps,
        "batch_size": 8,
    }
    put(
        folder / "recipe.json", {**recipe, "student": {"router": "mor"}, "data": {"dataset": "rooms", "split": "train"}}
    )
    caches = {
        store: {
            part: digest for part, digest in parts.items() if part == "source" or part.partition("/")[2] in teachers
        }
        for store, parts in CACHES.items()
    }
    environment = {
        "commit": "c" * 40,
        "device": "TestChip",
        "kind": "CPU",
        "threads": 1,
        "python": "3.12",
        "torch": "2.9",
        "sak": "0.1.0",
    }
    results = {
        "stage": stage,
        "arm": arm,
        "seed": seed,
        "stage1": stage1,
        "step": steps,
        "seconds": 30.0 if stage == "distill" else 50.0 + seed,
        "seconds_by_part": SECONDS_BY_PART,
        "parameters": 1_200_000,
        "caches": list(caches),
        "random_weights": [],
        "made_from": {"caches": caches, "code": {"sak": "0.1.0", "torch": "2.9"}},
        "environment": environment,
    }
    put(folder / "results.json", results)
    origins = [
        {"name": name, "library": "sak", "model": "miniature-v1", "weights": f"sha256:{name}", "licence": "Apache-2.0"}
        for name in teachers
    ]
    put(folder / "model.json", {"arm": arm, "student": {}, "stem_weights": None, "teachers": origins, "data": []})
    (folder / "README.md").write_text(f"# {folder.name}\n\n    sak {stage} tiny --set seed={seed}\n")
    lines = [metrics(label, seed, step, stage, teachers, tasks) for step in range(10, steps + 1, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if stage == "finetune":
        write_scores(folder, label, seed, tasks)
    return folder


def metrics(
    label: str, seed: int, step: int, stage: str, teachers: list[str], tasks: tuple[str, ...]
) -> dict[str, Any]:
    """A log line: cosines that rise with the step, router weights that differ by seed in one place."""
    found: dict[str, Any] = {"step": step, "loss": 10 / step, "lr": 1e-3}
    for place, teacher in enumerate(teachers):
        for level in (1, 2):
            found[f"cosine/{teacher}_level{level}"] = 0.5 + 0.1 * place + 0.05 * level + step / 1000
            if stage == "distill" and step % 20 == 0:
                held = found[f"cosine/{teacher}_level{level}"] - 0.1
                found[f"validation/cosine/{teacher}_level{level}"] = held + 0.01 * (seed - 1)
    if stage == "finetune" and label in ("sak", "without mini-sam"):
        for task in tasks:
            share = 0.5 + (0.1 * seed if task == "semseg" else 0.0)
            others = {teacher: (1 - share) / len(teachers) for teacher in teachers}
            for expert, weight in {"stem": share, **others}.items():
                found[f"router/{task}_level1/{expert}"] = weight
    return found


def write_scores(folder: Path, label: str, seed: int, tasks: tuple[str, ...] = ("semseg", "depth")) -> None:
    """Scores and details of one run on the test split."""
    miou, rmse = MIOU[label][seed % 3], RMSE[label][seed % 3]
    scores = {"semseg": {"mIoU": miou, "accuracy": 50.0}, "depth": {"RMSE": rmse, "AbsRel": 0.3}}
    details: dict[str, Any] = {
        "semseg": {
            "per_image": {image: factor * miou for image, factor in IMAGES.items()},
            "per_class": {"floor": miou + 5, "wall": miou - 5},
            "confusion": [[30, 10], [20, 60]],
        },
        "depth": {"per_image": {image: factor * rmse for image, factor in IMAGES.items()}},
    }
    put(folder / f"details-{SPLIT}.json", {task: details[task] for task in tasks})
    kept = {"made_from": {"caches": TESTED, "weights": "w"}, "scores": {task: scores[task] for task in tasks}}
    put(folder / f"scores-{SPLIT}.json", kept)


def put(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON, its folder, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
