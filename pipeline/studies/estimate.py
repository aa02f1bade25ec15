"""How long a study will take and how much disk, before it starts: from its own runs, or a few steps of each kind."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import runs
from pipeline.console import amount, duration, say
from pipeline.errors import UserError
from pipeline.recipes.arms import find_arm
from pipeline.recipes.config import Data, Recipe
from pipeline.runs import checkpoint
from pipeline.studies.jobs import Job, single_jobs

if TYPE_CHECKING:
    from pipeline.training.devices import Execution

SAMPLE_STEPS = 3
WORTH_MEASURING = 50
"""Steps of a run below which a sample would take about as long as the run."""
COPIES = 3
"""Of the weights in a checkpoint: themselves and AdamW's two moments."""
FREE_OF_TIME: Any = {
    **dict.fromkeys(("name", "seed", "steps", "schedule"), True),
    "optimizer": {"lr", "weight_decay", "betas"},
    "loss": {"alpha", "task_weights", "level_weights"},
    "validation": set(Data.model_fields),
}
"""Keys of a recipe that a step's time does not depend on (or hardly)."""


def estimate(jobs: Sequence[Job], places: runs.Places, workers: int, measures: bool = True) -> dict[str, Any]:
    """What is left of a study's training: `runs`, `steps`, `seconds` (None where nothing tells), `disk_bytes`.

    Evaluation is not counted.

    Args:
        measures: whether kinds of runs that never ran are sampled for a few steps.
    """
    known: dict[str, tuple[float, int]] = {}
    pending: list[tuple[Recipe, int]] = []
    stages = {job.stage1: job.distill for job in jobs if job.stage1 and job.distill}
    for job in jobs:
        parts = single_jobs(job, places) if find_arm(job.finetune.arm).per_task else [job]
        stages |= {part.run: part.finetune for part in parts}
    for run, recipe in stages.items():
        last = checkpoint.find(run / checkpoint.LAST)
        state = json.loads((last / "state.json").read_text()) if last else None
        if state and last:
            files = sum(path.stat().st_size for path in last.iterdir())
            known[_kind(recipe)] = state["seconds"] / max(state["step"], 1), files
        if not (run / "results.json").is_file():
            pending.append((recipe, recipe.steps - (state["step"] if state else 0)))
    for recipe, _ in pending:
        if measures and _kind(recipe) not in known and recipe.steps >= WORTH_MEASURING:
            say(f"measuring {SAMPLE_STEPS} steps of {recipe.arm}, {recipe.stage}")
            try:
                known[_kind(recipe)] = _sample(recipe, places)
            except UserError as error:  # of a run that a frozen part comes from and that is not there
                say(f"not measured: {error}")
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


def _sample(recipe: Recipe, places: runs.Places) -> tuple[float, int]:
    """Seconds a step, and bytes of a checkpoint."""
    result, before = train_steps(recipe, places, SAMPLE_STEPS)
    return (result["seconds"] - before) / SAMPLE_STEPS, COPIES * 4 * int(result["parameters"])


def train_steps(
    recipe: Recipe, places: runs.Places, steps: int, execution: Execution | None = None
) -> tuple[dict[str, Any], float]:
    """Train a few steps by a recipe and keep nothing: the results, and the seconds in them that are an earlier run's.

    A stem that learns starts untrained, which takes as long, and rates of learning do not warm up; a cached part must
    belong to the weights that a run keeps frozen, which are then those of the recipe or of the part's run.
    """
    from pipeline.training.devices import ALONE
    from pipeline.training.distill import distill
    from pipeline.training.finetune import finetune

    execution = execution or ALONE
    changes: dict[str, Any] = {"steps": steps, "stage1": "off", "validation": None}
    changes["schedule"] = recipe.schedule.model_copy(update={"warmup_steps": 0})
    stage1: Path | None = None
    if recipe.frozen is None:
        stem = recipe.student.stem.model_copy(update={"weights": None})
        changes["student"] = recipe.student.model_copy(update={"stem": stem})
    elif recipe.stage == "finetune" and (stage1 := _run_of(recipe.frozen, places)):
        changes["stage1"] = "on"
    short = recipe.model_copy(update=changes)
    with tempfile.TemporaryDirectory(prefix="sak-sample-") as folder:
        run = Path(folder) / "sample"
        if recipe.stage == "distill":
            result = distill(short, run, places, execution)
        else:
            result = finetune(short, run, stage1, places, execution)
        return result, runs.read_results(stage1)["seconds"] if stage1 else 0.0


def _run_of(frozen: str, places: runs.Places) -> Path | None:
    """The finished run that a cached part `stem:RUN` or `student:RUN` comes from."""
    return runs.finished_run(frozen.partition(":")[2], places.runs, runs.RUNS)
