"""What a study says of its length and its disk before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.recipes.config import Study
from pipeline.runs import Places
from pipeline.studies.estimate import estimate, estimate_text
from pipeline.studies.jobs import plan
from pipeline.training.distill import distill


def test_own_runs_and_short_samples_tell(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = Places(features, tmp_path)
    test = {"dataset": "rooms", "split": "test", "size": "96x96"}
    short = {"steps": 60, "batch_size": 8, "tasks": ["depth"], "student.stem.depth": 4, "student.stem.weights": ""}
    table = {"name": "x", "recipe": "demo", "arms": ["sak"], "seeds": [0, 1], "test": test, "set": short}
    study = Study.model_validate(table)
    jobs = plan(study, places)
    unknown = estimate(jobs, places, 1, measures=False)
    assert (unknown["runs"], unknown["steps"], unknown["seconds"]) == (4, 240, None)
    assert "not known" in estimate_text(unknown)
    found = estimate(jobs, places, 1)
    assert found["seconds"] > 0 and estimate(jobs, places, 2)["steps"] == 240
    assert not list(tmp_path.iterdir()), "a sample leaves nothing behind"
    assert "warmup_steps" not in capsys.readouterr().err, "its few steps are nobody's schedule"
    alone = Study.model_validate({**table, "arms": ["single-task"], "set": {**short, "tasks": ["depth", "semseg"]}})
    singles = estimate(plan(alone, places), places, 1)
    assert (singles["runs"], singles["steps"]) == (4, 240) and singles["seconds"] > 0, "a student a task and seed"
    first = jobs[0]
    assert first.distill and first.stage1
    cut = first.distill.model_copy(update={"steps": 10})
    distill(cut, first.stage1, places)
    left = estimate(jobs, places, 1, measures=False)
    assert (left["runs"], left["steps"]) == (3, 180)
    state = json.loads((first.stage1 / "last" / "state.json").read_text())
    assert state["step"] == 10
