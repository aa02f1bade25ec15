"""A study's record: paired differences and ratios by hand, a page that says what is established; the line in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipes.config import load_study
from pipeline.recipes.stores import caches_below
from pipeline.studies.record import differences, page, ratios
from pipeline.studies.reproduce import STUDIES, small_study
from tests.conftest import sak

COLUMNS = [
    {"task": "semseg", "score": "mIoU", "higher_is_better": True},
    {"task": "depth", "score": "RMSE", "higher_is_better": False},
]
BY_ARM: dict[str, dict[str, dict[int, float | None]]] = {
    "sak": {"semseg": {0: 30.0, 1: 32.0, 2: 34.0}, "depth": {0: 0.7, 1: 0.7, 2: 0.8}},
    "multi-task": {"semseg": {0: 20.0, 1: 22.0, 2: 24.5}, "depth": {0: 0.7, 1: 0.8, 2: 0.7}},
    "teacher:a": {"semseg": {0: 40.0, 1: 40.0, 2: 40.0}, "depth": {0: 0.8, 1: 0.8, 2: 0.8}},
    "teacher:b": {"semseg": {0: 10.0, 1: 10.0, 2: 10.0}, "depth": {0: 0.4, 1: 0.4, 2: None}},
}


def test_differences_are_paired_by_seed() -> None:
    found = differences("sak", BY_ARM, COLUMNS)
    semseg, depth = found["multi-task"]["semseg"], found["multi-task"]["depth"]
    # 10, 10, 9.5: mean 9.8333, standard error 1/6, Student's t of 2 at 95 % is 4.3027
    assert semseg["difference"] == pytest.approx(9.83333, abs=1e-4)
    assert (semseg["low"], semseg["high"]) == (pytest.approx(9.1162, abs=1e-3), pytest.approx(10.5504, abs=1e-3))
    assert semseg["verdict"] == "better" and depth["verdict"] == "not established"
    assert differences("unknown", BY_ARM, COLUMNS) == {}


def test_ratios_are_against_the_best_teacher_that_has_every_seed() -> None:
    found = ratios("sak", BY_ARM, COLUMNS)
    assert (found["semseg"]["teacher"], found["semseg"]["ratio"]) == ("a", pytest.approx(0.8))
    # teacher b lacks a seed: a mean over fewer seeds is no mean to be compared with
    assert (found["depth"]["teacher"], found["depth"]["ratio"]) == ("a", pytest.approx(2.2 / 2.4))


def test_the_page_says_what_is_established() -> None:
    def score(value: float) -> dict[str, float | None]:
        return {"mean": value, "std": 1.0}

    table: dict[str, Any] = {
        "columns": COLUMNS,
        "rows": [
            {
                "arm": "sak",
                "scores": {"semseg": score(32), "depth": score(0.73)},
                "gain_percent": score(1),
                "parameters": 1_000_000,
                "seconds": 3.0,
                "random_weights": [],
                "note": "",
            }
        ],
        "seeds": [0, 1, 2],
        "baseline": "multi-task",
        "no_gain": "",
    }
    text = page(
        {
            "study": {"name": "claim", "subject": "sak"},
            "table": table,
            "differences": differences("sak", BY_ARM, COLUMNS),
            "ratios": ratios("sak", BY_ARM, COLUMNS),
        }
    )
    assert "**+9.8 [+9.1, +10.6]**" in text and "+0.000 [-0.248, +0.248]" in text
    assert "| semseg" in text and "0.80" in text


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_names_the_caches_that_its_runs_read(name: str) -> None:
    from pipeline.recipes.arms import parts_read
    from pipeline.runs import Places
    from pipeline.studies.jobs import plan

    study = load_study(name)
    made = {(c.folder, c.dataset, c.split, c.size or "96x96"): c for c in study.caches}
    assert len(made) == len(study.caches)
    for job in plan(study, Places(Path("features"), Path("runs"))):
        for recipe in filter(None, (job.distill, job.finetune)):
            data = recipe.data
            cache = made[data.folder, data.dataset, data.split, data.size or "96x96"]
            assert cache.views >= data.views
            assert set(parts_read(recipe)) <= set(cache.teachers)
    tested = made[study.test.folder, study.test.dataset, study.test.split, study.test.size or "96x96"]
    assert tested.limit


def test_a_small_study_keeps_arms_and_shrinks_the_rest() -> None:
    study, small = load_study("claim"), small_study(load_study("claim"))
    assert small.arms == study.arms and small.seeds == (0,)
    assert all(cache.limit == 16 for cache in small.caches)


def test_caches_lie_below_folders_and_addresses() -> None:
    assert caches_below(Path("features"), "") == Path("features")
    assert caches_below(Path("features"), "klt") == Path("features/klt")
    assert caches_below("s3://bucket/features/", "klt") == "s3://bucket/features/klt"


@pytest.mark.slow
def test_a_study_is_reproduced_in_small_and_again(tmp_path: Path) -> None:
    command = ("reproduce", "claim", "--small", "--json", "--folder", tmp_path / "work", "--docs", tmp_path / "docs")
    (found,) = json.loads(sak(*command).stdout)
    assert found == json.loads((tmp_path / "docs" / "claim.json").read_text())
    arms = [row["arm"] for row in found["table"]["rows"]]
    assert arms[0] == "constant" and {"oracle", "sak", "sak, token routers"} <= set(arms)
    sak_run = next(run for run in found["runs"] if run["arm"] == "sak")
    assert set(sak_run["scores"]) == {"semseg", "parts", "saliency", "depth", "normals", "boundary"}
    assert sak_run["made_from"]["caches"] and len(sak_run["stage1"]["training"]) == 12
    assert "one seed" in (tmp_path / "docs" / "claim.md").read_text()
    assert "<html" in (tmp_path / "docs" / "claim.html").read_text()
    again = sak(*command)
    assert json.loads(again.stdout) == [found] and "steps/s" not in again.stderr
