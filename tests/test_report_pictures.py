"""The report of a trained run: pictures of features and predictions, with the numbers that the model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cache.store import Store, find_stores
from pipeline.pictures import colour_depth, truth_and_prediction
from pipeline.recipes.arms import build_model, run_model
from pipeline.recipes.config import load_recipe
from pipeline.recipes.stores import store_tasks
from pipeline.report.examples import Opened
from pipeline.report.facts import RunFacts
from pipeline.report.predictions import error_map
from pipeline.report.routers import maps_figure, token_weights
from pipeline.runs import Places
from pipeline.training.clock import PARTS
from pipeline.training.evaluate import load_model
from pipeline.training.few_rows import few_rows
from sak_core.labels import IGNORE
from sak_core.student.stem import normalize
from sak_core.tasks import Task
from tests.conftest import sak

Tables = dict[str, Any]


@pytest.fixture(scope="module")
def made(features: Path, trained: Path, module_folder: Path) -> tuple[Tables, str]:
    """The tables and the page of a run that is scored on the test split."""
    sak("evaluate", trained, "--out", features, "--runs", trained.parent)
    out = module_folder / "page.html"
    told = sak("report", trained, "--out", out, "--features", features, "--runs", trained.parent, "--live", "--json")
    return json.loads(told.stdout)["tables"], out.read_text()


def test_features_are_pictured_beside_their_teachers_and_their_cosine_is_the_models(
    made: tuple[Tables, str], features: Path, trained: Path
) -> None:
    tables, page = made
    store: Store = find_stores(features, "rooms", "test")[0]
    ids = [row[0] for row in tables["pca-mini-sam-table"]["rows"]]
    batch = few_rows(store, [store.ids().index(id) for id in ids], ["mini-sam"])
    model, _ = load_model(trained, Places(features))
    with torch.inference_mode():
        ours = model(normalize(batch.pixels), tasks=False).aligned["mini-sam"][-1]
    near = F.cosine_similarity(ours, batch.features["mini-sam"][-1], dim=1).flatten(1).mean(1).tolist()
    assert [row[2] for row in tables["pca-mini-sam-table"]["rows"]] == pytest.approx(near, abs=1e-5)
    assert all(row[1] > 0.999 for row in tables["pca-mini-sam-table"]["rows"]), "the teacher itself, against its cache"
    at = tables["cosines-table"]["columns"].index("held-out rows, at the end")
    held = {row[0]: row[at] for row in tables["cosines-table"]["rows"]}
    assert -1 < held["mini-sam, level 4"] < 1
    assert page.count("data:image/webp;base64,") > 20


def test_best_median_and_worst_image_of_every_task(made: tuple[Tables, str], trained: Path) -> None:
    tables, page = made
    details = json.loads(next(trained.glob("details-rooms-test-*.json")).read_text())
    for task, worse in (("semseg", min), ("depth", max)):
        rows = {row[0]: row for row in tables[f"prediction-{task}-table"]["rows"]}
        scores = {id: score for id, score in details[task]["per_image"].items() if score is not None}
        assert rows["worst"][2] == worse(scores.values()) and scores[rows["best"][1]] == rows["best"][2]
        assert f'id="prediction-{task}"' in page
    assert "Error: red is wrong" in page and "near is bright" in page


def test_what_the_cache_cost_stands_beside_what_it_promised(made: tuple[Tables, str]) -> None:
    rows = {row[0]: row for row in made[0]["teachers"]["rows"]}
    train = rows["mini-dino, rooms unlabelled"]
    assert train[1] == 96 and train[2] > 0 and train[3] == pytest.approx(1000 * train[2] / 96)
    assert train[6] == "fp16" and train[8] > train[7] > 0.99
    assert made[0]["reuse"]["rows"][0][1] > 0


def test_a_step_is_divided_as_the_runs_measured_it(made: tuple[Tables, str], trained: Path) -> None:
    rows = {row[0]: row[1:] for row in made[0]["steps-table"]["rows"]}
    for name, run in (("sak, stage 1", trained.with_name("one")), ("sak, stage 2", trained)):
        parts = json.loads((run / "results.json").read_text())["seconds_by_part"]
        assert rows[name][:-1] == pytest.approx([1000 * parts[part] / 4 for part in PARTS])
        assert all(parts[part] > 0 for part in ("forward", "backward", "optimizer", "saving"))


def test_maps_of_token_routers_are_the_routers_own_weights(features: Path) -> None:
    store: Store = find_stores(features, "rooms", "test")[0]
    recipe = load_recipe("demo", "finetune", {"student.router": "token"})
    tasks = store_tasks(store, ["semseg", "depth"])
    model = build_model(recipe, store, tasks).eval()
    for parameter in model.get_submodule("routers").parameters():
        torch.nn.init.normal_(parameter)  # else all experts weigh nearly the same
    run = RunFacts(Path("run"), "sak", "sak", 0, "finetune", "finished")
    opened = Opened(run, recipe, model, tasks, store)
    maps = token_weights(opened, store, [0, 5])
    with torch.inference_mode():
        told = run_model(recipe, model, few_rows(store, [0, 5])).router_weights
    for task in ("semseg", "depth"):
        assert maps[task].shape == (2, 4, 12, 12) and float(maps[task].std()) > 0.01
        torch.testing.assert_close(maps[task].sum(1), torch.ones(2, 12, 12))
        torch.testing.assert_close(maps[task].mean((2, 3)), told[task][-1])
    drawn = maps_figure("depth", "sak", opened, store, [0, 5], maps["depth"])
    assert drawn.headings == ["image", "stem", *recipe.teachers] and len(drawn.pictures) == 2 * 5
    shares = [[cell.value for cell in row[1:]] for row in drawn.table.rows]
    assert shares == [pytest.approx(row, abs=1e-6) for row in told["depth"][-1].tolist()]


def test_errors_are_in_the_units_that_the_caption_names() -> None:
    truth = np.array([[[0.0, 0, 1], [IGNORE] * 3]])
    error, valid = error_map("normals", truth, np.array([[[0.0, 1, 0], [1.0, 0, 0]]]))
    assert error[0, 0] == pytest.approx(90) and valid.tolist() == [[True, False]]
    error, valid = error_map("depth", np.array([[2.0, IGNORE]]), np.array([[2.5, 1.0]]))
    assert error.tolist() == [[0.5, 0.0]] and valid.tolist() == [[True, False]]
    error, _ = error_map("classes", np.array([[1, 2, IGNORE]]), np.array([[1, 3, 0]], np.uint8))
    assert error.tolist() == [[0.0, 1.0, 0.0]]


def test_a_depth_has_one_colour_in_truth_and_prediction() -> None:
    depth = Task("depth", "depth")
    truth = np.float32([[1, 2, 5, IGNORE]])
    drawn, predicted = truth_and_prediction(depth, truth, np.float32([[2, 2, 9, 3]]))
    np.testing.assert_array_equal(drawn, colour_depth(truth))
    assert drawn[0, 3].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(predicted[0, :2], drawn[0, [1, 1]])
    np.testing.assert_array_equal(predicted[0, 2], drawn[0, 2])  # beyond the truth's farthest: its colour
    unknown = np.full((1, 4), IGNORE, np.float32)
    np.testing.assert_array_equal(truth_and_prediction(depth, unknown, truth)[1], drawn)
