"""The whole line on rendered rooms with the miniature teachers: cache, distil, fine-tune, compare, draw."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pipeline.console import duration, number, say
from pipeline.errors import UserError
from pipeline.recipes.config import Data, Study, load_study
from pipeline.runs import Places
from pipeline.studies import ablate, jobs
from pipeline.studies.caches import prepare_caches, run_teachers
from pipeline.studies.reproduce import small_study
from pipeline.studies.study_table import CONSTANT, markdown
from sak_core.datasets import open_dataset

MARGIN = 0.10
"""By how much every trained arm must beat the constant predictor on every task."""

PICTURED = (192, 192)
"""Size of the scenes on the contact sheet, px: twice that of the views, as large as a student sees whole."""


def run_demo(folder: Path, *, small: bool = False, workers: int = 2) -> dict[str, Any]:
    """Run the demo below `folder`; what is cached or trained is skipped.

    Returns:
        Table, pictures and seconds.

    Raises:
        UserError: a trained arm does not beat the constant predictor by `MARGIN` on every task (not with `small`, whose
            scores mean nothing).
    """
    places = Places(folder / "features", folder / "runs")
    study = small_study(load_study("demo")) if small else load_study("demo")
    caches = study.caches
    teachers = dict.fromkeys(name for cache in caches for name in cache.teachers)
    stages: dict[str, float] = {}
    start = time.monotonic()

    scenes = sum(cache.limit or 0 for cache in caches)
    say(f"1/4 rooms: rendering and keeping {scenes} scenes, each teacher's input from now on")
    prepare_caches(caches, folder / "features")
    stages["render"] = time.monotonic() - start

    views = sum((cache.limit or 0) * cache.views for cache in caches)
    say(f"2/4 cache: {', '.join(teachers)} once over {views} views")
    began = time.monotonic()
    run_teachers(caches, folder / "features", workers)
    stages["cache"] = time.monotonic() - began

    say(f"3/4 train: {', '.join(study.arms)}, from the caches alone, {workers} runs side by side")
    began = time.monotonic()
    table = ablate.ablate(study, places, workers)
    stages["train"] = time.monotonic() - began

    say("4/4 draw")
    began = time.monotonic()
    pictures = _draw(study, places)
    stages["draw"] = time.monotonic() - began
    stages["total"] = time.monotonic() - start
    weak = [] if small else beaten_by_constant(table)
    if weak:
        print(markdown(table))
        raise UserError(f"not {MARGIN:.0%} better than the constant predictor: " + "; ".join(weak))
    return {
        "table": table,
        "pictures": [str(p) for p in pictures],
        "seconds": {k: round(v, 1) for k, v in stages.items()},
    }


def demo_text(result: dict[str, Any]) -> str:
    """`run_demo`'s result for people."""
    seconds = ", ".join(f"{name} {duration(s)}" for name, s in result["seconds"].items())
    return "\n".join(["", markdown(result["table"]), "", f"Time: {seconds}", "Look at:", *result["pictures"]])


def beaten_by_constant(table: dict[str, Any]) -> list[str]:
    """Arms and tasks whose score is not `MARGIN` better than the constant predictor's, in words."""
    constant = next(row for row in table["rows"] if row["arm"] == CONSTANT)["scores"]
    found = []
    for row in table["rows"]:
        for column in table["columns"] if row["arm"] != CONSTANT else ():
            task = column["task"]
            score, base = row["scores"][task]["mean"], constant[task]["mean"]
            factor = 1 + MARGIN if column["higher_is_better"] else 1 - MARGIN
            is_known = score is not None and base is not None
            if not is_known or (score < base * factor if column["higher_is_better"] else score > base * factor):
                found.append(f"{row['arm']} {task} {number(score, '.3g')} (constant {number(base, '.3g')})")
    return found


def _draw(study: Study, places: Places) -> list[Path]:
    from pipeline.export.models import from_run
    from pipeline.studies import sheets

    test: Data = study.test
    folder = places.runs / study.name
    run = next(job.run for job in jobs.plan(study, places) if job.label == "sak")
    return [
        sheets.contact_sheet(from_run(run), open_dataset("rooms", "test", size=PICTURED), folder / "contact-sheet.png"),
        sheets.pca_sheet(run, test, places, folder / "pca.png"),
        sheets.router_sheet(run, test, places, folder / "routers.png"),
    ]
