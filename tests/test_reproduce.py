"""A study's record: paired differences and ratios by hand, a page that says what is established; the line in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.recipes.config import load_study
from pipeline.recipes.stores import caches_below
from pipeline.studies.coding_loss import foretold
from pipeline.studies.findings import all_held_out, cheapest, differences, left_out, pairs_of, ratios
from pipeline.studies.record_page import page
from pipeline.studies.reproduce import STUDIES, small_study
from pipeline.studies.statistics import compare
from tests.conftest import sak

COLUMNS = [
    {"task": "semseg", "score": "mIoU", "higher_is_better": True},
    {"task": "depth", "score": "RMSE", "higher_is_better": False},
]
SCORES: dict[str, list[tuple[float, float | None]]] = {
    "sak": [(30.0, 0.7), (32.0, 0.7), (34.0, 0.8)],
    "multi-task": [(20.0, 0.7), (22.0, 0.8), (24.5, 0.7)],
    "teacher:a": [(40.0, 0.8), (40.0, 0.8), (40.0, 0.8)],
    "teacher:b": [(10.0, 0.4), (10.0, 0.4), (10.0, None)],
}


def run(arm: str, seed: int, semseg: float, depth: float | None, **more: Any) -> dict[str, Any]:
    scores = {"semseg": {"mIoU": semseg}, "depth": {"RMSE": depth}}
    return {"arm": arm, "seed": seed, "scores": scores, "teachers": ["a", "b"], **more}


RUNS = [run(arm, seed, *scores) for arm, by_seed in SCORES.items() for seed, scores in enumerate(by_seed)]


def test_pairs_spell_out_every_other_arm() -> None:
    arms = ["sak", "a", "b"]
    assert pairs_of([("sak", "*")], arms) == [("sak", "a"), ("sak", "b")]
    assert pairs_of([("*", "b")], arms) == [("sak", "b"), ("a", "b")]
    assert pairs_of([("a", "b"), ("a", "gone"), ("a", "b")], arms) == [("a", "b")]


def test_differences_are_paired_by_seed() -> None:
    (found,) = differences([("sak", "multi-task")], RUNS, COLUMNS)
    semseg, depth, gain = found["tasks"]["semseg"], found["tasks"]["depth"], found["gain"]
    # 10, 10, 9.5: mean 9.8333, standard error 1/6, Student's t of 2 at 95 % is 4.3027
    assert semseg["difference"] == pytest.approx(9.83333, abs=1e-4)
    assert (semseg["low"], semseg["high"]) == (pytest.approx(9.1162, abs=1e-3), pytest.approx(10.5504, abs=1e-3))
    assert semseg["verdict"] == "better" and depth["verdict"] == "not established"
    # (10/20 + 0)/2, (10/22 + 0.1/0.8)/2, (9.5/24.5 - 0.1/0.7)/2 in percent
    assert gain["difference"] == pytest.approx((25.0 + 28.9773 + 12.2449) / 3, abs=1e-3)


def test_a_seed_without_a_score_has_no_gain() -> None:
    (found,) = differences([("sak", "teacher:b")], RUNS, COLUMNS)
    assert found["gain"]["count"] == found["tasks"]["depth"]["count"] == 2 and found["tasks"]["semseg"]["count"] == 3


def test_ratios_are_against_the_best_teacher_that_has_every_seed() -> None:
    found = ratios("sak", RUNS, COLUMNS)
    assert (found["semseg"]["teacher"], found["semseg"]["ratio"]) == ("a", pytest.approx(0.8))
    # teacher b lacks a seed: a mean over fewer seeds is no mean to be compared with
    assert (found["depth"]["teacher"], found["depth"]["ratio"]) == ("a", pytest.approx(2.2 / 2.4))


def test_held_out_cosines_are_of_the_last_step_and_of_students_of_their_own() -> None:
    def stage1(name: str, first: float, last: float) -> dict[str, Any]:
        curves = {"a_level1": [(10, 0.1), (20, first)], "a_level2": [(10, 0.1), (20, last)]}
        return {"stage1": {"run": name, "held_out": curves}}

    runs = [
        run("sak", 0, 30, 1, **stage1("s0", 0.8, 0.9)),
        run("sak", 1, 30, 1, **stage1("s1", 0.8, 1.0)),
        run("sak, token routers", 0, 30, 1, **stage1("s0", 0.8, 0.9)),
        run("sak, token routers", 1, 30, 1, **stage1("s1", 0.8, 1.0)),
        run("many-to-one", 0, 30, 1, **stage1("m0", 0.7, 0.7)),
        run("many-to-one", 1, 30, 1, **stage1("m1", 0.7, 0.8)),
    ]
    found = all_held_out(runs)
    assert set(found) == {"sak", "many-to-one"}
    assert found["sak"]["a"] == {0: pytest.approx(0.85), 1: pytest.approx(0.9)}
    same, other = differences([("sak", "sak, token routers"), ("sak", "many-to-one")], runs, COLUMNS)
    assert "cosines" not in same and other["cosines"]["a"]["difference"] == pytest.approx(0.15)
    levels = {name: (one["difference"], one["verdict"]) for name, one in other["level_cosines"].items()}
    assert levels == {"a_level1": (pytest.approx(0.1), "better"), "a_level2": (pytest.approx(0.2), "better")}


def test_a_teachers_weight_stands_beside_what_leaving_it_out_costs() -> None:
    routers = {"semseg": {"stem": 0.2, "a": 0.5, "b": 0.3}, "depth": {"stem": 0.2, "a": 0.1, "b": 0.7}}
    runs = [run("sak", seed, 30 + seed, 0.5, routers=routers) for seed in range(2)]
    runs += [run("without a", seed, 20 + seed, 0.5) | {"teachers": ["b"]} for seed in range(2)]
    runs += [run("routers off", seed, 20, 0.5) for seed in range(2)]
    (row,) = left_out("sak", runs, differences([("sak", "without a"), ("sak", "routers off")], runs, COLUMNS))
    assert row["teacher"] == "a" and row["tasks"]["semseg"]["weight"] == 0.5
    assert row["tasks"]["semseg"]["cost"]["difference"] == 10 and row["tasks"]["depth"]["cost"]["difference"] == 0


def cells(*scores: tuple[str, int | None, tuple[float, float, float]]) -> list[dict[str, Any]]:
    return [
        run(arm, seed, value, 1.0, cache_bytes=size)
        for arm, size, values in scores
        for seed, value in enumerate(values)
    ]


def test_the_smallest_cache_that_keeps_the_scores_is_named() -> None:
    runs = cells(
        ("live", None, (50.0, 52.0, 54.0)),
        ("dear", 900, (50.0, 52.0, 54.0)),
        ("fair", 300, (49.9, 51.8, 53.9)),  # loses 0.2, 0.38, 0.19 % of a task, half of that of both
        ("cheap", 100, (49.9, 45.0, 53.9)),
    )
    arms = ["live", "dear", "fair", "cheap"]
    found = cheapest(runs, differences(pairs_of([("*", "live")], arms), runs, COLUMNS))
    assert found and found["arm"] == "fair" and found["reference"] == "live"
    assert [cell["arm"] for cell in found["cells"]] == ["cheap", "fair", "dear"]
    none = [one for one in runs if one["arm"] != "dear" and one["arm"] != "fair"]
    assert cheapest(none, differences([("cheap", "live")], none, COLUMNS)) is None, "one cache is no comparison"
    noisy = cells(("live", None, (50.0, 52.0, 54.0)), ("x", 9, (40.0, 60.0, 50.0)), ("y", 8, (60.0, 40.0, 55.0)))
    found = cheapest(noisy, differences([("x", "live"), ("y", "live")], noisy, COLUMNS))
    assert found and found["arm"] is None


MADE = {"commit": "a1b2", "device": "CPU of some kind", "threads": 1, "python": "3.12", "torch": "2.9"}


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
    recorded: dict[str, Any] = {
        "study": {"name": "claim", "tables": {}},
        "subject": "sak",
        "table": table,
        "differences": differences([("sak", "multi-task")], RUNS, COLUMNS),
        "ratios": ratios("sak", RUNS, COLUMNS),
        "held_out": {"sak": {"a": {0: 0.8, 1: 0.9}}},
        "left_out": [],
        "caches": {
            "reference": "live",
            "cells": [
                {"arm": "fair", "bytes": 3000, "gain": compare({0: -0.1, 1: -0.2}, {0: 0.0, 1: 0.0}, True).__dict__}
            ],
            "arm": "fair",
        },
        "foretold": None,
        "runs": [
            run("sak", 0, 1, 1, environment=MADE, stage1={"run": "one", "environment": MADE}),
            run("sak, token routers", 0, 1, 1, environment=MADE, stage1={"run": "one", "environment": MADE}),
            run("teacher:a", 0, 1, 1, environment=MADE | {"commit": None}),
        ],
    }
    text = page(recorded)
    assert "**+9.8 [+9.1, +10.6]**" in text and "+0.000 [-0.248, +0.248]" in text
    assert "| semseg" in text and "0.80" in text and "0.8500 ± 0.0707" in text
    assert "| a1b2      | CPU of some kind |       1 |   3.12 |   2.9 |    3 |" in text, "two, and one stage 1 of both"
    assert "| not noted | CPU of some kind |       1 |   3.12 |   2.9 |    1 |" in text
    assert "excludes a loss of more than 1 %: fair." in text and "3.0 kB" in text
    lower = {0: 0.75, 1: 0.7493}
    levels = {"a_level1": {0: 0.8, 1: 0.8}, "a_level2": {0: 0.7, 1: 0.9507}}
    cosines = {name: compare(ours, lower, True).__dict__ for name, ours in levels.items()}
    recorded["differences"][0] |= {"cosines": {"a": cosines["a_level1"]}, "level_cosines": cosines}
    told = page(recorded)
    assert "a 1 |" in told and "a 1 |" not in text
    assert "| **+50.4** | +75.7 |" in told, "established, and not; without intervals"
    recorded["caches"]["arm"] = None
    assert "No cache's interval excludes a loss of more than 1 %: not established." in page(recorded)
    student = compare({0: -1.0, 1: -1.5}, {0: 0.0, 1: 0.0}, True).__dict__
    cell = {"arm": "klt", "against": "fp16", "cosine": 0.98}
    losses = {task: {"probe": 0.25, "student": student} for task in ("semseg", "depth")}
    ranks = {task: {"cosine": 0.5, "probe": None} for task in ("semseg", "depth")}
    recorded["foretold"] = {"cells": [cell | {"tasks": losses}], "ranks": ranks}
    told = page(recorded).partition("foretell")[2]
    assert "0.0200 | " in told and "+0.25 | " in told and "+1.2 [-1.9, +4.4]" in told and "0.50 |" in told
    table["rows"].append(table["rows"][0] | {"arm": "small invpt"})
    recorded["study"]["tables"] = {"At equal steps": ["sak"], "At equal parameters": ["small invpt", "sak"]}
    before, steps, parameters = page(recorded).partition("## Differences")[0].split("## At equal ")
    assert "| sak" not in before and "small invpt" not in steps and "| sak" in steps
    assert parameters.index("small invpt") < parameters.index("| sak")


def coded(arm: str, cosine: float, semseg: float, depth: float, *scores: tuple[float, float]) -> list[dict[str, Any]]:
    figures = {"cosine": cosine, "probes": {"semseg": semseg, "depth": depth}}
    return [run(arm, seed, *score, coding=figures) for seed, score in enumerate(scores)]


def test_probes_and_cosines_are_ranked_by_what_students_lose() -> None:
    runs = [
        *coded("fp16", 1.0, 0.1, 0.0, (50.0, 0.50), (52.0, 0.50)),
        *coded("fine", 0.99, 0.3, 0.02, (49.0, 0.51), (51.0, 0.51)),
        *coded("fair", 0.97, 1.1, 0.01, (48.0, 0.54), (50.0, 0.52)),
        *coded("poor", 0.90, 0.9, 0.04, (43.0, 0.52), (49.0, 0.52)),
        run("live", 0, 50.0, 0.5),
        run("live", 1, 50.0, 0.5),
    ]
    pairs = [("fine", "fp16"), ("fair", "fp16"), ("poor", "fp16"), ("fp16", "live")]
    found = foretold(runs, differences(pairs, runs, COLUMNS), COLUMNS)
    assert found and [cell["arm"] for cell in found["cells"]] == ["fine", "fair", "poor"], "live has no codec"
    fair = found["cells"][1]
    assert fair["tasks"]["semseg"]["probe"] == pytest.approx(1.0) and fair["cosine"] == 0.97
    assert fair["tasks"]["semseg"]["student"]["difference"] == pytest.approx(-2.0)
    # students lose 1, 2, 5 points and 0.01, 0.03, 0.02 m; probes 0.2, 1.0, 0.8 and 0.02, 0.01, 0.04
    assert found["ranks"]["semseg"] == {"cosine": pytest.approx(1.0), "probe": pytest.approx(0.5)}
    assert found["ranks"]["depth"] == {"cosine": pytest.approx(0.5), "probe": pytest.approx(-0.5)}
    assert foretold(runs, differences(pairs[:2], runs, COLUMNS), COLUMNS) is None
    # a run that failed, and a task that one cache has no probe of, leave gaps
    gone = [one if one["arm"] != "poor" else one | {"scores": {}} for one in runs]
    found = foretold(gone, differences(pairs, gone, COLUMNS), COLUMNS)
    assert found and found["ranks"]["semseg"]["cosine"] == pytest.approx(1.0) and len(found["cells"]) == 3
    del runs[2]["coding"]["probes"]["depth"]
    found = foretold(runs, differences(pairs, runs, COLUMNS), COLUMNS)
    assert found and list(found["ranks"]) == ["semseg"]


def test_probes_of_a_split_without_a_cache_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    test = 'test = { dataset = "rooms", split = "test" }'
    cache = '[[caches]]\ndataset = "rooms"\nsplit = "unlabelled"\nprobes = "trian"\n'
    path.write_text(
        f'recipe = "rooms"\narms = ["sak"]\n{test}\n{cache}[[caches]]\ndataset = "rooms"\nsplit = "train"\n'
    )
    with pytest.raises(UserError, match=r"probes: .*trian.*train"):
        load_study(str(path))


def test_a_table_of_an_arm_that_a_study_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    test = 'test = { dataset = "rooms", split = "test" }'
    path.write_text(f'recipe = "rooms"\narms = ["sak"]\n{test}\n[tables]\nequal = ["sak", "sac"]\n')
    with pytest.raises(UserError, match=r"tables: .equal.: .*sac"):
        load_study(str(path))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_names_the_caches_that_its_runs_read(name: str) -> None:
    from pipeline.recipes.arms import parts_read
    from pipeline.recipes.frozen import cached_name, is_own
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
            assert set(parts_read(recipe)) <= {cached_name(name) if is_own(name) else name for name in cache.teachers}
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
