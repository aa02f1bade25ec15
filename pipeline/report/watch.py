"""`sak watch`: a study's runs as a table in the terminal, with step, rate, loss, scores and time left."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import runs
from pipeline.console import duration, number
from pipeline.report.collect import runs_of
from pipeline.report.facts import RunFacts, StudyFacts
from pipeline.runs import checkpoint

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Watched:
    """One run now; None where nothing tells.

    Attributes:
        rate: steps a second.
        left_seconds: of its own steps.
    """

    run: str
    state: str
    step: int
    steps: int
    rate: float | None
    loss: float | None
    scores: dict[str, float]
    left_seconds: float | None


def watched(names: Sequence[Path | str], places: runs.Places) -> list[Watched]:
    """The runs of a study, or these runs, as they are now; errors as `runs_of`."""
    found = runs_of(names, places)
    return [_watched(found, run) for run in found.runs]


def _watched(found: StudyFacts, run: RunFacts) -> Watched:
    is_going = run.state == "running"
    rate = _rate(run)
    losses = [line["loss"] for line in run.metrics if line.get("loss") is not None]
    return Watched(
        run=run.name,
        state=run.state,
        step=run.step,
        steps=run.steps,
        rate=rate,
        loss=losses[-1] if losses else None,
        scores=_scores(found, run),
        left_seconds=(run.steps - run.step) / rate if is_going and rate else None,
    )


def _rate(run: RunFacts) -> float | None:
    """Steps a second: of all its training where a checkpoint says so, else since the run began."""
    if run.results.get("seconds") and run.stage == "distill":
        return run.steps / float(run.results["seconds"])
    if last := checkpoint.find(run.folder / checkpoint.LAST):
        state = json.loads((last / "state.json").read_text())
        return state["step"] / state["seconds"] if state["seconds"] else None
    begun, logged = run.folder / "recipe.json", run.folder / "metrics.jsonl"
    if not (run.step and begun.exists() and logged.exists()):
        return None
    seconds = logged.stat().st_mtime - begun.stat().st_mtime
    return run.step / seconds if seconds > 0 else None


def _scores(found: StudyFacts, run: RunFacts) -> dict[str, float]:
    """The primary scores: of the split that the study compares on, else of the last validation within training, whose
    names say so."""
    if run.on is not None:
        told = {task.name: run.on.scores.get(task.name, {}).get(task.score) for task in found.tasks}
        return {name: value for name, value in told.items() if value is not None}
    for line in reversed(run.metrics):
        values = {key: value for key, value in line.items() if key.startswith(("validation/", "probe/"))}
        if values:
            return {key: value for key, value in values.items() if value is not None}
    return {}


def as_table(title: str, rows: Sequence[Watched]) -> Table:
    """The rows for a terminal."""
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for column in ("run", "state", "step", "steps/s", "loss", "scores", "left"):
        shown.add_column(column, justify="right" if column in ("step", "steps/s", "loss", "left") else "left")
    for row in rows:
        shown.add_row(
            row.run,
            row.state,
            f"{row.step}/{row.steps}" if row.steps else "–",
            number(row.rate, ".2f"),
            number(row.loss),
            ", ".join(f"{name} {number(value)}" for name, value in row.scores.items()),
            "–" if row.left_seconds is None else duration(row.left_seconds),
        )
    return shown


def watch(names: Sequence[Path | str], places: runs.Places, every_s: float) -> list[Watched]:
    """Show the table on a terminal, anew every `every_s` seconds, until no run is left that goes on.

    Returns:
        The last rows.
    """
    from rich.console import Console
    from rich.live import Live

    title = ", ".join(map(str, names))
    rows = watched(names, places)
    with Live(as_table(title, rows), console=Console(), auto_refresh=False) as live:
        while any(row.state in ("running", "waiting") for row in rows):
            time.sleep(every_s)
            rows = watched(names, places)
            live.update(as_table(title, rows), refresh=True)
    return rows


def as_json(rows: Sequence[Watched]) -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    return [dict(vars(row)) for row in rows]
