"""How long a study will take and how much disk, before it starts: from its own runs, or a few steps of each kind."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Recipe
from pipeline.console import amount, duration, say
from pipeline.studies.ablate import Job
from pipeline.studies.arms import find_arm
from pipeline.training import checkpoint, runs

SAMPLE_STEPS = 3
WORTH_MEASURING = 50
"""Steps of a run below which a sample would take about as long as the run."""
COPIES = 3
"""Of the weights in a checkpoint: themselves and AdamW's two moments."""
FREE_OF_TIME = {
    "name",
    "seed",
    "steps",
    "optimizer",
    "schedule",
    "alpha",
    "task_weights",
    "level_weights",
    "validation",
}
"""Keys of a recipe that a step's time does not depend on (or hardly)."""


def estimate(jobs: Sequence[Job], places: runs.Places, workers: int, measures: bool = True) -> dict[str, Any]:
    """What is left of a study's training: `runs`, `steps`, `seconds` (None where nothing tells), `disk_bytes`.

    Evaluation is not counted. measures: whether kinds of runs that never ran are sampled for a few steps.
    """
    known: dict[str, tuple[float, int]] = {}
    pending: list[tuple[Recipe, int]] = []
    stages = {job.stage1: job.distill for job in jobs if job.stage1 and job.distill}
    stages |= {job.run: job.finetune for job in jobs}
    for run, recipe in stages.items():
        last = checkpoint.find(run / checkpoint.LAST)
        state = json.loads((last / "state.json").read_text()) if last else None
        if state and last:
            files = sum(path.stat().st_size for path in last.iterdir())
            known[_kind(recipe)] = state["seconds"] / max(state["step"], 1), files
        if not (run / "results.json").is_file():
            pending.append((recipe, recipe.steps - (state["step"] if state else 0)))
    for recipe, _ in pending:
        if measures and _kind(recipe) not in known and _can_sample(recipe):
            say(f"measuring {SAMPLE_STEPS} steps of {recipe.arm}, {recipe.stage}")
            known[_kind(recipe)] = _sample(recipe, places)
    told = [known.get(_kind(recipe)) for recipe, _ in pending]
    seconds = [steps * found[0] for (_, steps), found in zip(pending, told, strict=True) if found]
    whole = len(seconds) == len(pending)
    return {
        "runs": len(pending),
        "steps": sum(steps for _, steps in pending),
        "seconds": round(sum(seconds) / max(workers, 1), 1) if whole else None,
        "disk_bytes": sum(found[1] for found in told if found) if whole else None,
    }


def estimate_text(found: dict[str, Any]) -> str:
    """An estimate in words."""
    if not found["runs"]:
        return "nothing is left to train"
    left = f"{found['runs']} runs to train, {found['steps']} steps"
    if found["seconds"] is None:
        return f"{left}; how long is not known before some have run"
    return f"{left}: about {duration(found['seconds'])} and {amount(found['disk_bytes'])} of checkpoints"


def _kind(recipe: Recipe) -> str:
    return json.dumps(recipe.model_dump(mode="json", exclude=FREE_OF_TIME), sort_keys=True)


def _can_sample(recipe: Recipe) -> bool:
    """Whether a few steps can be run by themselves: frozen parts belong to a run that may not be there yet."""
    return recipe.steps >= WORTH_MEASURING and recipe.frozen is None and not find_arm(recipe.arm).per_task


def _sample(recipe: Recipe, places: runs.Places) -> tuple[float, int]:
    """Seconds a step, and bytes of a checkpoint; the stem starts untrained, which takes as long."""
    from pipeline.training.distill import distill
    from pipeline.training.finetune import finetune

    stem = recipe.student.stem.model_copy(update={"weights": None})
    student = recipe.student.model_copy(update={"stem": stem})
    changes = {"steps": SAMPLE_STEPS, "stage1": "off", "validation": None, "validate_every": None, "student": student}
    short = recipe.model_copy(update=changes)
    with tempfile.TemporaryDirectory(prefix="sak-sample-") as folder:
        run = Path(folder) / "sample"
        result = distill(short, run, places) if recipe.stage == "distill" else finetune(short, run, None, places)
        return result["seconds"] / SAMPLE_STEPS, COPIES * 4 * int(result["parameters"])
