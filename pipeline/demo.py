"""The whole line on rendered rooms with the miniature teachers: cache, distil, fine-tune, compare, draw."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console import duration, number, say, start_worker
from pipeline.errors import UserError
from pipeline.extraction.caching import run_cache
from pipeline.extraction.prepare import prepare
from pipeline.extraction.request import CacheRequest, TeacherOptions
from pipeline.extraction.samples import DatasetRequest
from pipeline.recipes.config import Data, Study, load_study
from pipeline.runs import Places
from pipeline.studies import ablate, jobs
from pipeline.studies.study_table import CONSTANT, markdown

MARGIN = 0.05
"""By how much every trained arm must beat the constant predictor on every task."""


@dataclass(frozen=True)
class Split:
    """One cache of the demo."""

    name: str
    samples: int
    views: int


SPLITS = (Split("unlabelled", 1000, 2), Split("train", 600, 2), Split("val", 48, 1), Split("test", 200, 1))
SMALL_SPLITS = (Split("unlabelled", 32, 2), Split("train", 32, 2), Split("val", 16, 1), Split("test", 16, 1))
SMALL_STEPS: dict[str, Any] = {"steps": 4, "batch_size": 8}


def run_demo(folder: Path, *, small: bool = False, workers: int = 2) -> dict[str, Any]:
    """Run the demo below `folder`; what is cached or trained is skipped. Returns table, pictures and seconds.

    Raises `UserError` if a trained arm does not beat the constant predictor by `MARGIN` on every task (not with
    `small`, whose scores mean nothing).
    """
    places = Places(folder / "features", folder / "runs")
    splits = SMALL_SPLITS if small else SPLITS
    loaded = load_study("demo")
    study = loaded.model_copy(update={"set": SMALL_STEPS}) if small else loaded
    teachers = tuple(a.removeprefix("teacher:") for a in study.arms if a.startswith("teacher:"))
    stages: dict[str, float] = {}
    start = time.monotonic()

    say(f"1/4 rooms: rendering and keeping {sum(s.samples for s in splits)} scenes, each teacher's input from now on")
    prepare_splits(splits, places.features)
    stages["render"] = time.monotonic() - start

    say(f"2/4 cache: {', '.join(teachers)} once over {sum(s.samples * s.views for s in splits)} views")
    began = time.monotonic()
    cache_splits(splits, teachers, places.features, workers)
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


def prepare_splits(splits: Sequence[Split], features: Path | str) -> None:
    """Pixels and labels of every split."""
    for split in splits:
        prepare(_source(split), features, split.views)


def _source(split: Split) -> DatasetRequest:
    return DatasetRequest("rooms", split.name, limit=split.samples)


def _request(split: Split, teacher: str, features: Path | str, options: TeacherOptions) -> CacheRequest:
    return CacheRequest(_source(split), (teacher,), split.views, features, options, decoders=0, strict=True)


ONE_THREAD = TeacherOptions(threads=1)
"""One core a teacher, so that two can run at once."""


def cache_splits(
    splits: Sequence[Split],
    teachers: Sequence[str],
    features: Path | str,
    workers: int,
    options: TeacherOptions = ONE_THREAD,
) -> None:
    """Every teacher over every split; different teachers of one store may run at once, each with one thread.

    The splits' sources must be there. `options`: codec, fidelity and the like.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker) as pool:
        requests = [_request(split, teacher, features, options) for split in splits for teacher in teachers]
        for job in [pool.submit(run_cache, request) for request in requests]:
            job.result()


def _draw(study: Study, places: Places) -> list[Path]:
    from pipeline.studies import sheets

    test: Data = study.test
    folder = places.runs / study.name
    run = next(job.run for job in jobs.plan(study, places) if job.label == "sak")
    return [
        sheets.contact_sheet(run, test, places, folder / "contact-sheet.png"),
        sheets.pca_sheet(run, test, places, folder / "pca.png"),
        sheets.router_sheet(run, test, places, folder / "routers.png"),
    ]
