"""A run's folder as facts, however much of it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.report.facts import RunFacts, Scored, State
from pipeline.runs.holder import holder
from pipeline.runs.lineage import Lineage
from pipeline.training.boards import read_metrics

SCORES, DETAILS = "scores-", "details-"
FILES = ("recipe.json", "results.json", "model.json")


def read_run(folder: Path, label: str, arm: str, seed: int, stage: str, failed: str = "") -> RunFacts:
    """The facts of one run.

    Never raises for what lies in the folder: what cannot be read makes the run "broken", and `why` says which file.

    Args:
        failed: why it ended in an error, as its study's table says.
    """
    troubles: list[str] = []
    recipe, results, model = (_checked_json(folder / name, troubles) for name in FILES)
    lineage = None
    if model:
        try:
            lineage = Lineage.model_validate(model)
        except ValidationError as error:
            troubles.append(f"model.json is not what a run writes: {error.errors()[0]['msg']}")
    splits = _splits(folder, troubles)
    if not splits and results.get("validation"):
        data = recipe.get("validation") or {}
        name = f"validation ({data.get('dataset', '?')} {data.get('split', '?')})"
        splits[name] = Scored(results["validation"])
    state, why = _state(folder, recipe, results, troubles, failed)
    return RunFacts(
        folder=folder,
        label=label,
        arm=arm,
        seed=seed,
        stage=stage,
        state=state,
        why=why,
        recipe=recipe,
        results=results,
        lineage=lineage,
        metrics=read_metrics(folder),
        splits=splits,
        command=_command(folder),
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's JSON object; None where there is none, or it cannot be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _checked_json(path: Path, troubles: list[str]) -> dict[str, Any]:
    """As `read_json`, empty for None; a file that is there and cannot be read is a trouble."""
    found = read_json(path)
    if found is None and path.exists():
        troubles.append(f"{path.name} cannot be read")
    return found or {}


def _state(
    folder: Path, recipe: Mapping[str, Any], results: Mapping[str, Any], troubles: list[str], failed: str
) -> tuple[State, str]:
    if troubles:
        return "broken", "; ".join(troubles)
    if failed:
        return "failed", failed
    if results:
        return "finished", ""
    if not recipe:
        return "waiting", "not begun"
    if said := holder(folder):
        return "running", said
    return "stopped", "begun, not finished, and no process works there; the same command goes on"


def _splits(folder: Path, troubles: list[str]) -> dict[str, Scored]:
    """The scores by split, with details where they are there."""
    found = {}
    for path in sorted(folder.glob(f"{SCORES}*.json")):
        split = path.stem.removeprefix(SCORES)
        kept = _checked_json(path, troubles)
        if isinstance(kept.get("scores"), dict):
            details = _checked_json(folder / f"{DETAILS}{split}.json", troubles)
            found[split] = Scored(kept["scores"], details, kept.get("made_from", {}))
    return found


def _command(folder: Path) -> str:
    """The command that began a run, from its README; empty where that does not tell."""
    try:
        lines = (folder / "README.md").read_text().splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in lines if line.startswith("    ")), "")
