"""A score over no pixel is null: never 0, which would be perfect for an error, and never best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.studies.study_table import as_csv, markdown
from pipeline.training.validation import Validation
from tests.conftest import logged, sak
from tests.test_metres import RECIPE, folder


@pytest.mark.parametrize("higher", [True, False])
def test_what_is_no_number_is_never_best(higher: bool) -> None:
    nan = float("nan")
    better = Validation(lambda model: {}, "x", higher).is_better
    assert better(1.0, None) and better(1.0, nan)
    assert not better(1.0, 1.0)
    assert better(2.0, 1.0) == higher and better(0.5, 1.0) != higher
    for value in (None, nan, float("inf"), -float("inf")):
        assert not better(value, None) and not better(value, 1.0)


def test_a_task_without_labels_has_no_scores_and_chooses_nothing(tmp_path: Path) -> None:
    """Depth 0 m is no label here: every error of it was 0, and the first checkpoint the best for ever."""
    root = folder(tmp_path / "r", {"train": 3.0, "val": 0.0})
    (tmp_path / "my.toml").write_text(RECIPE)
    (tmp_path / "study.toml").write_text(
        f'recipe = "{tmp_path}/my.toml"\narms = ["multi-task"]\nbaseline = "multi-task"\nseeds = [0]\n'
        'test = { dataset = "room", split = "val" }\n'
    )
    places = ["--out", tmp_path / "features", "--runs", tmp_path / "runs"]
    for split in ("train", "val"):
        sak("cache", "--dataset", "labelled", "--root", root, "--split", split, *places[:2])
    done = sak("ablate", tmp_path / "study.toml", "--json", *places)
    assert "depth/RMSE was a number in no validation: the last checkpoint is taken" in done.stderr
    assert "depth: no pixel of these 1 samples has a label" in done.stderr
    table = json.loads(done.stdout)
    assert [row["arm"] for row in table["rows"]] == ["constant", "multi-task"]
    for row in table["rows"]:
        assert row["scores"]["depth"] == row["gain_percent"] == {"mean": None, "std": None}
        assert row["scores"]["normals"]["mean"] > 0 or row["arm"] == "constant"
    assert markdown(table).count(" - |") >= 4 and "nan" not in markdown(table) + as_csv(table)
    (run,) = (path.parent for path in (tmp_path / "runs").rglob("results.json"))
    assert json.loads((run / "results.json").read_text())["step"] == 4
    validated = [line for line in logged(run) if "validation/loss" in line]
    assert [line["validation/depth/RMSE"] for line in validated] == [None, None]
    assert all(line["validation/loss"] > 0 and line["validation/normals/mErr"] > 0 for line in validated)
    shown = sak("evaluate", run, "--split", "val", *places).stdout
    assert "depth: RMSE -, absRel -" in shown and "normals: mErr " in shown
