"""`sak plan RECIPE`: what a training reads and how fast it could go, from a few of its steps and its own loader."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.places.local import LocalPlace
from cache.places.staged import StagedPlace
from pipeline import runs
from pipeline.console import amount, duration
from pipeline.errors import UserError
from pipeline.recipes.arms import find_arm, parts_read
from pipeline.recipes.config import Recipe
from pipeline.recipes.stores import training_store
from pipeline.studies.estimate import train_steps
from pipeline.training.devices import Execution
from pipeline.training.following import FollowingBatches
from pipeline.training.loop import Batches

WARM_STEPS = 3
"""That take longer than those after them and are not counted."""
STEPS = 8
READ_S = 3.0
"""Seconds for which the loader alone is timed, at most."""


class Timed(FollowingBatches):
    """A loader whose reader is timed: between two batches the step runs.

    Attributes:
        loader: itself.
        steps: seconds of each part of a step, until the loop asks for the next batch.
    """

    def __init__(self, loader: Batches) -> None:
        super().__init__(loader)
        self.loader, self.steps = loader, list[float]()

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            given = time.perf_counter()
            yield batch
            self.steps.append(time.perf_counter() - given)


def plan_training(recipe: Recipe, places: runs.Places) -> dict[str, Any]:
    """What a run of `recipe` reads and takes on this machine, JSON-able; nothing of it is kept.

    A few steps are trained for the rate that the student asks for, and the loader is read by itself for the rate that
    the place and the codecs give. Validation is not counted.

    Raises:
        UserError: a run that reads no cache, or is many.
    """
    if recipe.source == "live":
        raise UserError("source = 'live' renders its images in every step and reads no cache: there is nothing to plan")
    if find_arm(recipe.arm).per_task:
        raise UserError(f"arm {recipe.arm} is one run a task: plan its parts by arm = 'multi-task' and tasks = [...]")
    store = training_store(places.features, recipe, parts_read(recipe))
    timed: list[Timed] = []

    held = list[int]()

    def share(loader: Batches) -> Batches:
        assert isinstance(loader, Loader)
        places = [store.place for store in loader.store.stores]
        held.append(sum(place.held_bytes() for place in places if isinstance(place, StagedPlace)))
        timed.append(Timed(loader))
        return timed[-1]

    # a GPU works on after the loop has asked for more: there every step is logged, which waits for it
    each = recipe.model_copy(update={"log_every": 1}) if torch.cuda.is_available() else recipe
    train_steps(each, places, WARM_STEPS + STEPS, Execution(share=share))
    step_s = recipe.accumulate * median(timed[0].steps[recipe.accumulate * WARM_STEPS :])
    loader = timed[0].loader
    assert isinstance(loader, Loader)
    read_rate, core_s = _reading(loader, recipe)
    wanted = recipe.batch_size / step_s
    rows = len(loader) // recipe.accumulate * recipe.batch_size
    stored = loader.stored_bytes
    is_local = all(isinstance(one.place, LocalPlace) for one in store.stores)
    row_bytes = stored / (recipe.data.views * store.spec.num_samples)
    found = {
        "store": store.name,
        "steps": recipe.steps,
        "epochs": round(recipe.steps * recipe.batch_size / rows, 2),
        "epoch_rows": rows,
        "epoch_bytes": round(rows * row_bytes),
        "row_bytes": round(row_bytes),
        "stored_bytes": stored,
        "step_s": round(step_s, 4),
        "wanted_rows_s": round(wanted, 1),
        "read_rows_s": round(read_rate, 1),
        "read_bytes_s": round(read_rate * row_bytes),
        "reading_cores": round(min(wanted, read_rate) * core_s, 2),
        "cores": os.cpu_count() or 1,
        "page_cache_share": round(_page_cache_share(stored), 3) if is_local else 0.0,
        "is_local": is_local,
        "stage_share": None if recipe.loader.stage is None else round(held[0] / stored, 3),
        "seconds": round(recipe.steps * max(step_s, recipe.batch_size / read_rate), 1),
    }
    return {**found, "changes": changes(recipe, found)}


def _reading(loader: Loader, recipe: Recipe) -> tuple[float, float]:
    """Rows a second that the loader gives by itself, and seconds of a core that a row takes."""
    loader.set_epoch(1)
    batches = iter(loader)
    rows = recipe.batch_size // recipe.accumulate
    began, busy, read = time.perf_counter(), time.process_time(), 0
    for _ in islice(batches, len(loader)):
        read += rows
        if time.perf_counter() - began > READ_S:
            break
    return read / (time.perf_counter() - began), (time.process_time() - busy) / read


def _page_cache_share(stored: int) -> float:
    """How much of so many bytes the memory that is free now can hold."""
    told = {line.split(":")[0]: line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()}
    return min(1.0, 1024 * int(told["MemAvailable"]) / max(stored, 1))


def changes(recipe: Recipe, found: Mapping[str, Any]) -> list[str]:
    """What would make reading keep up with the student; nothing where it does."""
    if found["read_rows_s"] >= found["wanted_rows_s"]:
        return []
    made = []
    if not found["is_local"]:
        if found["stage_share"] is None:
            made.append('loader.stage = "/scratch", on a disk of this machine: what was read once is read from there')
        made.append("sak copy the caches to this machine's own disk")
    if recipe.loader.shuffle != "block":
        made.append('loader.shuffle = "block": neighbouring rows are read together')
    if found["reading_cores"] > 0.7 * found["cores"]:
        made.append("decoding takes this machine's cores: a codec without entropy coding (int8, klt), or more cores")
    else:
        made.append("fewer bytes a row: a smaller codec (sak frontier) or a coarser grid (sak cache --grid)")
    if found["is_local"] and found["page_cache_share"] < 1:
        if recipe.data.views > 1:
            made.append(f"data.views below {recipe.data.views}: fewer views are more of them in memory")
        if not recipe.loader.direct:
            made.append("loader.direct = true, where the disk is fast: what does not stay in memory need not pass it")
    return made


def _stage_text(plan: Mapping[str, Any]) -> str:
    held = f"the stage holds {plan['stage_share']:.0%} of it"
    return held if plan["stage_share"] == 1 else f"{held}: the rate is that of reading the rest from where it lies"


def training_plan_text(plan: Mapping[str, Any]) -> str:
    """`plan_training` for people."""
    held = f"{plan['page_cache_share']:.0%} of its {amount(plan['stored_bytes'])} in all views fit into free memory"
    slower = plan["read_rows_s"] < plan["wanted_rows_s"]
    return "\n".join(
        [
            plan["store"],
            f"{plan['steps']} steps, {plan['epochs']} epochs; an epoch is {plan['epoch_rows']} rows, "
            f"{amount(plan['epoch_bytes'])} ({amount(plan['row_bytes'])} a row)",
            f"the student asks for {plan['wanted_rows_s']} rows/s ({plan['step_s']} s a step)",
            f"reading gives {plan['read_rows_s']} rows/s, {amount(plan['read_bytes_s'])}/s: "
            + ("SLOWER than the student" if slower else "it keeps up"),
            f"reading and decoding take {plan['reading_cores']} of {plan['cores']} cores at the run's rate",
            held if plan["is_local"] else "far away: no page cache holds any of it",
            *([] if plan["stage_share"] is None else [_stage_text(plan)]),
            f"to the end: {duration(plan['seconds'])}, validation not counted",
            *(f"faster: {change}" for change in plan["changes"]),
        ]
    )
