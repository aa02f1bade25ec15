"""The report of a study whose numbers are known: each panel says them, and says what is not there."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from scipy import stats

from pipeline.errors import UserError
from pipeline.report.collect import kind_of
from pipeline.report.drawing import draw
from pipeline.report.report import report
from pipeline.runs import Places
from sak_core.tasks import KINDS, Task
from tests.conftest import answer, refusal, sak
from tests.written_study import IMAGES, MIOU, RMSE, SECONDS_BY_PART, put, write_run, write_study

Made = tuple[dict[str, Any], str]
"""What `report` returns, and the page."""


def made(runs: Path, *names: str) -> Made:
    out = runs.parent / "report.html"
    found = report(list(names or ["known"]), out, Places(runs.parent / "features", runs))
    return found, out.read_text()


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Made:
    runs = tmp_path_factory.mktemp("known") / "runs"
    write_study(runs)
    return made(runs)


def table(found: Made, name: str) -> list[dict[str, Any]]:
    """A table's rows by their columns' names."""
    told = found[0]["tables"][name]
    return [dict(zip(told["columns"], row, strict=True)) for row in told["rows"]]


def gains(arm: str) -> list[float]:
    """An arm's gain on the baseline's means by seed, by hand."""
    miou, rmse = mean(MIOU["multi-task"]), mean(RMSE["multi-task"])
    return [100 * ((m - miou) / miou - (r - rmse) / rmse) / 2 for m, r in zip(MIOU[arm], RMSE[arm], strict=True)]


def test_the_answer_names_the_winner_its_lead_and_what_is_not_established(known: Made) -> None:
    rows = table(known, "standings")
    assert [row["arm"] for row in rows] == ["sak", "without mini-sam", "many-to-one", "multi-task"]
    for row in rows:
        assert row["gain %"] == pytest.approx(mean(gains(row["arm"])))
        assert row["± std"] == pytest.approx(stdev(gains(row["arm"])))
    best = stats.ttest_rel(gains("sak"), gains("multi-task")).confidence_interval(0.95)
    assert (rows[0]["from"], rows[0]["to"]) == (pytest.approx(best.low), pytest.approx(best.high))
    assert rows[0]["verdict"] == "better" and rows[3]["verdict"] is None
    lead = {row["arm"]: row for row in table(known, "lead")}
    assert lead["without mini-sam"]["verdict"] == "worse" and lead["many-to-one"]["verdict"] == "not established"
    assert "sak has the highest mean gain over multi-task" in known[1]
    assert f"+{mean(gains('sak')):.1f}\N{NO-BREAK SPACE}%" in known[1]
    ahead = mean(gains("sak")) - mean(gains("without mini-sam"))
    assert f"Its lead on the next, without mini-sam, is +{ahead:.1f} points" in known[1]


def test_cost_of_training_is_beside_the_gain(known: Made) -> None:
    rows = {row["arm"]: row for row in table(known, "pareto-table")}
    assert rows["sak"]["training, minutes"] == pytest.approx(51 / 60)
    assert rows["sak"]["parameters, million"] == 1.2
    cost = {row["arm"]: row for row in table(known, "training")}
    assert (cost["sak"]["stage 1, s"], cost["sak"]["stage 2, s"]) == (30.0, 21.0)
    assert cost["sak"]["ms a step, 1"] == 500 and cost["multi-task"]["stage 1, s"] is None
    assert cost["sak"]["device"] == "CPU: TestChip"


def test_scores_differences_classes_and_images(known: Made) -> None:
    scores = {row["arm"]: row for row in table(known, "scores")}
    assert scores["sak"]["semseg mIoU ↑"] == pytest.approx(mean(MIOU["sak"]))
    assert scores["sak"]["depth RMSE ↓"] == pytest.approx(mean(RMSE["sak"]))
    assert scores["constant"]["semseg mIoU ↑"] == 2.0
    told = {(row["arm"], row["task"]): row for row in table(known, "differences")}
    depth = told["sak", "depth RMSE ↓"]
    interval = stats.ttest_rel(RMSE["sak"], RMSE["multi-task"]).confidence_interval(0.95)
    assert (depth["from"], depth["to"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert depth["verdict"] == "better", "less is better for an error"
    assert told["many-to-one", "depth RMSE ↓"]["verdict"] == "not established"
    classes = {row["class"]: row for row in table(known, "classes-semseg")}
    assert classes["floor"]["sak"] == pytest.approx(mean(MIOU["sak"]) + 5)
    assert table(known, "mixed-semseg") == [
        {"truth": "floor", "taken for": "wall", "pixels %": 25.0},
        {"truth": "wall", "taken for": "floor", "pixels %": 25.0},
    ]
    images = {row["arm"]: row for row in table(known, "images-depth")}["sak"]
    rmse = mean(RMSE["sak"])
    assert (images["worst"], images["median"], images["best"]) == tuple(pytest.approx(f * rmse) for f in (1.5, 1, 0.5))
    assert (images["worst image"], images["best image"]) == ("room-1", "room-0")
    images = {row["arm"]: row for row in table(known, "images-semseg")}["sak"]
    assert (images["worst image"], images["best image"]) == ("room-0", "room-1") and len(IMAGES) == 3


def test_routers_with_their_spread_and_the_price_of_leaving_a_teacher_out(known: Made) -> None:
    rows = {row["task and level"]: row for row in table(known, "router-sak")}
    assert rows["semseg, level 1"]["stem"] == pytest.approx(0.6)
    assert rows["semseg, level 1"]["± std"] == pytest.approx(0.1)
    assert rows["depth, level 1"]["± std"] == pytest.approx(0.0)
    assert rows["semseg, level 1"]["mini-dino"] == pytest.approx(0.2)
    out = {(row["left out"], row["task"]): row for row in table(known, "left-out")}
    semseg = out["mini-sam", "semseg mIoU"]
    lost = [b - a for a, b in zip(MIOU["sak"], MIOU["without mini-sam"], strict=True)]
    assert semseg["difference"] == pytest.approx(mean(lost)) and semseg["verdict"] == "worse"
    assert semseg["its weight"] == pytest.approx(0.2)


def test_cosines_over_steps_of_training_and_of_held_out_rows(known: Made) -> None:
    """Validated at steps 20, 40 and 60; the mean over seeds takes away what they differ by."""
    rows = {row["teacher and level"]: row for row in table(known, "cosines-table")}
    assert rows["mini-sam, level 2"]["first logged"] == pytest.approx(0.71)
    assert rows["mini-sam, level 2"]["last logged"] == pytest.approx(0.76)
    assert rows["mini-sam, level 2"]["validation, first"] == pytest.approx(0.62)
    assert rows["mini-sam, level 2"]["validation, last"] == pytest.approx(0.66)
    assert rows["mini-sam, level 2"]["held-out rows, at the end"] is None
    assert "Dashed: rows that were validated on" in known[1]


def test_where_a_steps_time_goes(known: Made) -> None:
    rows = {row["arm and stage"]: row for row in table(known, "steps-table")}
    first = rows["sak, stage 1"]
    assert [first[f"{part}, ms"] for part in SECONDS_BY_PART] == pytest.approx([15, 150, 250, 50, 10, 25])
    assert first["data %"] == pytest.approx(3.0)
    assert rows["sak, stage 2"]["backward, ms"] == pytest.approx(15_000 / 40)
    assert "multi-task, stage 1" not in rows and "multi-task, stage 2" in rows
    assert '<figure id="steps">' in known[1]


def test_how_it_was_made(known: Made) -> None:
    runs = {row["run"]: row for row in table(known, "runs")}
    assert runs["sak-seed1-finetune"]["commit"] == "c" * 12 and runs["sak-seed1-finetune"]["state"] == "finished"
    assert "sak finetune tiny --set seed=2" in known[1]
    changed = {(row["arm"], row["key"]): row for row in table(known, "recipe-finetune")}
    assert changed["without mini-sam", "teachers"]["here"] == '["mini-dino"]'
    digests = {(row["part"], row["digest"]): row for row in table(known, "digests")}
    assert digests["teachers/mini-sam", "e" * 64]["runs that read it"] == 12
    assert {row["teacher"] for row in table(known, "licences")} == {"mini-dino", "mini-sam"}
    assert "commercial, too" in known[1]


def test_a_stage_1_that_two_arms_begin_from_is_the_firsts(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "runs")
    plan = json.loads((folder / "study.json").read_text())
    first = next(job for job in plan["jobs"] if job["label"] == "sak")
    plan["jobs"].append(first | {"label": "sak, token routers", "run": "token-seed0-finetune"})
    put(folder / "study.json", plan)
    write_run(folder / "token-seed0-finetune", "sak", 0, "finetune", stage1=first["stage1"])
    arms = {row["run"]: row["arm"] for row in table(made(tmp_path / "runs"), "runs")}
    assert arms[first["stage1"]] == "sak" and arms["token-seed0-finetune"] == "sak, token routers"


def test_the_numbers_stand_in_the_page_as_json(known: Made) -> None:
    for name, told in known[0]["tables"].items():
        begun = known[1].partition(f'<script type="application/json" id="json-{name}">')[2]
        assert json.loads(begun.partition("</script>")[0]) == json.loads(json.dumps(told))


def test_nothing_but_the_page_itself_is_asked_for(known: Made) -> None:
    assert "http://" not in known[1].replace("http://www.w3.org/2000/svg", "") and "https://" not in known[1]
    assert "default-src 'none'" in known[1]


def test_caches_and_budgets_that_differ_are_said(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "runs")
    path = folder / "sak-seed1-finetune" / "results.json"
    results = json.loads(path.read_text())
    results["made_from"]["caches"]["rooms-train-96x96-aaaa.zarr"]["source"] = "6" * 64
    path.write_text(json.dumps(results))
    recipe = folder / "many-to-one-seed0-finetune" / "recipe.json"
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "steps": 80}))
    remarks = " ".join(made(tmp_path / "runs")[0]["remarks"])
    assert "NOT COMPARABLE as they stand: source of rooms-train-96x96-aaaa.zarr was read with other bytes" in remarks
    assert "different budgets in stage 2: 320 rows (multi-task, sak, without mini-sam); 320 or 640 rows" in remarks
    assert "are missing: rooms-train-96x96-aaaa.zarr" in remarks


def _running(folder: Path) -> None:
    for path in (*folder.glob("*seed1*"), *folder.glob("*seed2*")):
        shutil.rmtree(path)
    (folder / "sak-seed0-finetune" / "results.json").unlink()
    for path in folder.glob("sak-seed0-finetune/*96x96.json"):
        path.unlink()
    (folder / "table.json").unlink()


def _broken(folder: Path) -> None:
    (folder / "sak-seed0-finetune" / "results.json").write_text("{ cut short")
    (folder / "sak-seed1-finetune" / "scores-rooms-test-96x96.json").write_text("")
    shutil.rmtree(folder / "many-to-one-seed1-finetune")
    (folder / "sak-seed2-finetune" / "metrics.jsonl").write_text('{"step": 10, "loss": 1}\n{"step": 20, "lo')


def _failed(folder: Path) -> None:
    failed = [{"run": "many-to-one-seed1-finetune", "why": "step 3: depth is inf"}]
    put(folder / "table.json", {**json.loads((folder / "table.json").read_text()), "failed": failed})
    for path in (folder / "many-to-one-seed1-finetune").glob("*.json"):
        path.unlink()


def _of_an_earlier_version(folder: Path) -> None:
    for path in folder.glob("*/results.json"):
        results = json.loads(path.read_text())
        del results["seconds_by_part"]
        put(path, results)
    for path in folder.glob("*/metrics.jsonl"):
        path.write_text('{"step": 10, "loss": 1.0}\n')


def _no_labels(folder: Path) -> None:
    for path in folder.glob("*/scores-*.json"):
        kept = json.loads(path.read_text())
        for scores in kept["scores"].values():
            scores.update(dict.fromkeys(scores))
        put(path, kept)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_running, ["One seed", "runs have not begun", "sak-seed0-finetune (step 40 of 40)"]),
        (
            _broken,
            ["results.json cannot be read", "scores-rooms-test-96x96.json cannot be read", "One run has not begun"],
        ),
        (
            _failed,
            [
                "many-to-one-seed1-finetune failed: step 3: depth is inf.",
                "Without scores for seed 1, their means over the others: many-to-one.",
            ],
        ),
        (
            _of_an_earlier_version,
            [
                "Where a step&#39;s time goes is not told",
                "No run has logged router weights",
                "has logged no cosines yet",
            ],
        ),
        (_no_labels, ["multi-task has no score on semseg, depth"]),
    ],
)
def test_what_is_not_whole_gives_a_page_that_says_so(
    spoil: Callable[[Path], None], says: list[str], tmp_path: Path
) -> None:
    spoil(write_study(tmp_path / "runs"))
    found, page = made(tmp_path / "runs")
    for sentence in says:
        assert sentence in page, found["remarks"]
    for panel in ("answer", "arms", "routers", "paths", "predictions", "cost", "origin"):
        assert f'<section id="{panel}"' in page


def test_one_seed_and_one_task(tmp_path: Path) -> None:
    write_study(tmp_path / "runs", seeds=(0,), tasks=("depth",))
    found = made(tmp_path / "runs")
    best = table(found, "standings")[0]
    assert best["arm"] == "sak" and best["gain %"] == pytest.approx(20.0)
    assert (best["from"], best["to"], best["verdict"]) == (None, None, "not established")
    for told in (best, table(found, "scores")[0], table(found, "router-sak")[0]):
        assert not any(column.startswith("± std") for column in told), "nothing varies over one seed"
    assert "one seed: not established" in found[1] and "One seed: another one moves scores" in found[1]


def test_runs_alone(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "first", "sak", 0, "distill")
    alone = made(runs, "first")[1]
    assert "this is a stage 1 alone" in alone and "Nearness to each teacher" in alone and "Run first" in alone
    write_run(runs / "second", "multi-task", 0, "finetune")
    assert "No run has logged router weights" in made(runs, "second")[1]
    assert "No arm of this report distils" in made(runs, "second")[1]
    write_run(runs / "third", "multi-task", 1, "finetune")
    write_run(runs / "fourth", "sak", 0, "finetune", stage1="first")
    rows = table(made(runs, "second", "third", "fourth"), "standings")
    assert {row["arm"]: row["seeds"] for row in rows} == {"sak": 1, "multi-task": 2}, "seeds of one recipe are one arm"


def test_a_study_that_kept_no_plan_is_read_by_its_folders_names(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "runs")
    before = table(made(tmp_path / "runs"), "standings")
    (folder / "study.json").unlink()
    arms = [{"arm": arm, "scores": {}} for arm in MIOU]
    put(folder / "table.json", {"baseline": "multi-task", "rows": arms})
    assert table(made(tmp_path / "runs"), "standings") == before


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["knwon"], "did you mean known"),
        (["known", "known/sak-seed0-finetune"], "a report is of one study, or of runs"),
        (["empty"], "holds no run and no study"),
    ],
)
def test_what_is_no_study_and_no_run_is_refused(names: list[str], says: str, tmp_path: Path) -> None:
    write_study(tmp_path / "runs", seeds=(0,))
    (tmp_path / "runs" / "empty").mkdir()
    with pytest.raises(UserError, match=says):
        made(tmp_path / "runs", *names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_known_by_the_scores_that_its_own_metric_gives(kind: str) -> None:
    """Saliency has an mIoU beside its maxF, and is no task of classes."""
    classes = ("wall", "floor") if kind == "classes" else ()
    assert kind_of(Task("task", kind=kind, classes=classes).metric().compute()) == kind


def test_runs_are_watched_while_they_train(tmp_path: Path) -> None:
    """One run of 40 steps at step 40 in the log, half a step a second since it began, beside one that is finished."""
    folder = write_study(tmp_path / "runs", seeds=(0,))
    _running(folder)
    run = folder / "sak-seed0-finetune"
    put(run / "recipe.json", {**json.loads((run / "recipe.json").read_text()), "steps": 60})
    os.utime(run / "recipe.json", (1000, 1000))
    os.utime(run / "metrics.jsonl", (1080, 1080))
    (run / "lock").write_text(f"process {os.getpid()} on {socket.gethostname()} since now, sak ablate")
    rows = {row["run"]: row for row in answer("watch", "known", "--runs", tmp_path / "runs")}
    going = rows["sak-seed0-finetune"]
    assert (going["state"], going["step"], going["steps"]) == ("running", 40, 60)
    assert (going["rate"], going["left_seconds"], going["loss"]) == (0.5, 40.0, 0.25)
    assert rows["multi-task-seed0-finetune"]["scores"] == {"semseg": 10.0, "depth": 1.0}
    shown = sak("watch", "known", "--runs", tmp_path / "runs").stdout
    assert "40/60" in shown and "40 s" in shown and "semseg 10" in shown
    (run / "lock").write_text(
        "process 999999999 on elsewhere since now, sak ablate".replace("elsewhere", socket.gethostname())
    )
    again = answer("watch", "known", "--runs", tmp_path / "runs")
    assert {row["run"]: row["state"] for row in again}["sak-seed0-finetune"] == "stopped"


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    write_study(tmp_path / "runs", seeds=(0,))
    where = ["--runs", tmp_path / "runs", "--features", tmp_path / "features", "--out", tmp_path / "page.html"]
    told = answer("report", "known", *where)
    assert told["bytes"] == (tmp_path / "page.html").stat().st_size and "standings" in told["tables"]
    assert "unknown study or run 'nothing'; did you mean known? (" in refusal("report", "nothing", *where)


def test_text_of_runs_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "runs", seeds=(0,))
    for name in ("details", "scores"):
        path = folder / "sak-seed0-finetune" / f"{name}-rooms-test-96x96.json"
        path.write_text(path.read_text().replace("room-1", "</script><script>alert(1)</script>"))
    assert "<script>alert" not in made(tmp_path / "runs")[1]


def test_scores_of_weights_of_many_seeds_stay_small(tmp_path: Path) -> None:
    """A study of 30 runs, each with a thousand images, is a page of far less than 10 MB."""
    folder = write_study(tmp_path / "runs", seeds=tuple(range(8)))
    for path in folder.glob("*/details-*.json"):
        details = json.loads(path.read_text())
        for told in details.values():
            told["per_image"] = {f"room-{i}": 1.0 + i for i in range(1000)}
        put(path, details)
    assert made(tmp_path / "runs")[0]["bytes"] < 1_500_000


def test_a_drawing_writes_the_numbers_that_it_draws() -> None:
    """Coordinates are cut to two decimals, and text between tags is no coordinate."""

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0.125, 0.1375])
        axes.set_yticks([0.125, 0.1375])

    drawn = draw("ticks", 200, paint)
    assert ">0.1250<" in drawn and ">0.1375<" in drawn
    assert re.search(r'd="[^"]*\d\.\d{2}\b', drawn) and not re.search(r'd="[^"]*\d\.\d{3}', drawn)
