"""`make demo` in small: every stage and picture, and a second run that skips everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.demo import beaten_by_constant
from tests.conftest import answer, sak


@pytest.mark.slow
def test_the_demo_in_small_and_again(tmp_path: Path) -> None:
    result = answer("demo", "--small", "--out", tmp_path)
    assert result["table"]["rows"][0]["arm"] == "constant"
    assert len(result["table"]["columns"]) == 6
    notes = {row["arm"]: row["note"] for row in result["table"]["rows"]}
    assert "goes on from rooms-sak" in notes["sak"] and not notes["multi-task"]
    for path in result["pictures"]:
        assert min(Image.open(path).size) > 100
    again = sak("demo", "--small", "--json", "--out", tmp_path)
    assert json.loads(again.stdout)["table"] == result["table"]
    assert "steps/s" not in again.stderr and "rows already" in again.stderr


def test_an_arm_that_does_not_beat_the_constant_is_named() -> None:
    def row(arm: str, miou: float, rmse: float) -> dict[str, object]:
        return {"arm": arm, "scores": {"semseg": {"mean": miou}, "depth": {"mean": rmse}}}

    columns = [{"task": "semseg", "higher_is_better": True}, {"task": "depth", "higher_is_better": False}]
    table = {"columns": columns, "rows": [row("constant", 10, 1.0), row("sak", 11.1, 0.89), row("weak", 12, 0.96)]}
    assert beaten_by_constant(table) == ["weak depth 0.96 (constant 1)"]
    table["rows"][1]["scores"]["depth"]["mean"] = None
    assert beaten_by_constant(table)[0] == "sak depth - (constant 1)"
