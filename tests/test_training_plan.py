"""`sak plan RECIPE`: what a training reads and takes, and what to change where reading is slower than the student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipes.config import Recipe, load_recipe
from pipeline.studies.training_plan import changes
from tests.conftest import refusal, sak

SETTINGS = [
    "steps=40", "batch_size=4", "threads=1", "teachers=['mini-dino']", "student.stem.depth=2",
    "student.stem.weights=''", "student.levels=[0, 1]",
]  # fmt: skip


def test_a_training_is_planned_by_its_own_steps_and_loader(small: Path, tmp_path: Path) -> None:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    done = sak("plan", "demo", "--out", small, "--json", *settings)
    plan = json.loads(done.stdout)
    store = next(small.glob("*.zarr"))
    read = [*store.glob("pixels/c.*"), *store.glob("teachers/mini-dino/level_*/c.*")]
    on_disk = sum(path.stat().st_size for path in read)
    assert plan["stored_bytes"] == on_disk > 0
    assert plan["epoch_rows"] == 16, "of 18 rows, four whole steps"
    assert plan["epoch_bytes"] == pytest.approx(on_disk * 16 / 36, rel=1e-3)
    assert plan["epochs"] == 10 and plan["steps"] == 40
    slowest = max(plan["step_s"], 4 / plan["read_rows_s"])
    assert plan["seconds"] == pytest.approx(40 * slowest, rel=0.02, abs=0.1) and plan["seconds"] > 0
    assert plan["wanted_rows_s"] == pytest.approx(4 / plan["step_s"], rel=0.05)
    assert sorted(path.name for path in small.iterdir()) == [store.name], "nothing is kept"
    said = refusal("plan", "demo", "--out", small, "--codec", "int8")
    assert "--codec: a cache's, not a training's" in said
    assert "--set: a training is planned from RECIPE" in refusal("plan", "--set", "steps=1")


def recipe(**changed: Any) -> Recipe:
    return load_recipe("demo", "distill", changed)


def found(**changed: Any) -> dict[str, Any]:
    plan = {"read_rows_s": 50.0, "wanted_rows_s": 100.0, "is_local": True, "reading_cores": 0.5, "cores": 8}
    plan["stage_share"] = None
    return {**plan, "page_cache_share": 1.0, **changed}


def test_nothing_is_to_be_changed_where_reading_keeps_up() -> None:
    assert changes(recipe(), found(read_rows_s=100.0)) == []


def test_what_to_change_depends_on_what_reading_waits_for() -> None:
    slow_disk, *others = changes(recipe(), found())
    assert 'shuffle = "block"' in slow_disk and ["smaller codec" in one for one in others] == [True]
    stage, copy = changes(recipe(), found(is_local=False))[:2]
    assert "loader.stage" in stage and "sak copy" in copy
    decoding = changes(recipe(**{"loader.shuffle": "block"}), found(reading_cores=7.5))
    assert len(decoding) == 1 and "without entropy coding" in decoding[0]
    beyond = " ".join(changes(recipe(), found(page_cache_share=0.2)))
    assert "loader.direct = true" in beyond
