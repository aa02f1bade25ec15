"""The probe of the miniature teachers: what it scores, who leads, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.miniature.probe import Column, ProbeConfig, exact_boundary_f, probe, render_table, verdicts
from tests.test_miniature import NAMES, shipped_card


def test_exact_boundary_f() -> None:
    truth = torch.zeros(1, 4, 4, dtype=torch.uint8)
    truth[0, 1] = 1
    assert exact_boundary_f(truth.float(), truth) == pytest.approx(100)
    assert exact_boundary_f(truth.float().roll(1, 1), truth) == pytest.approx(200 * 4 / 20)
    half = truth.float().clone()
    half[0, 1, :2] = 0
    half[0, 3, 0] = 0.5
    assert exact_boundary_f(half, truth) == pytest.approx(200 * 2 / (2 + 4))
    ignored = truth.clone()
    ignored[0, 1, :2] = 255
    assert exact_boundary_f(half, ignored) == pytest.approx(100)


def test_verdicts_compare_teachers_only() -> None:
    scores = {
        "mini-dino": {"semseg": [30.0, 31.0, 32.0], "depth": [0.5, 0.5, 0.5]},
        "mini-clip": {"semseg": [20.0, 21.0, 22.0], "depth": [0.4, 0.42, 0.38]},
        "mini-sam": {"semseg": [27.0, 28.0, 29.0], "depth": [0.6, 0.6, 0.6]},
        "untrained": {"semseg": [90.0] * 3, "depth": [0.0] * 3},
    }
    first, second = verdicts(scores, [Column("semseg", "mIoU", True), Column("depth", "RMSE", False)])
    assert (first.best, first.runner_up, first.lead) == ("mini-dino", "mini-sam", pytest.approx(3.0))
    assert (second.best, second.runner_up) == ("mini-clip", "mini-dino")
    assert second.lead == pytest.approx(0.1 / (0.02 / 2**0.5))


def test_only_a_clear_lead_is_bold() -> None:
    def score(mean: float) -> dict[str, float]:
        return {"mean": mean, "std": 1.0}

    rows = ("untrained", *NAMES, "all three side by side")
    result = {
        "columns": [{"name": "semseg", "score": "mIoU", "higher_is_better": True}],
        "scores": {row: {"semseg": score(float(i))} for i, row in enumerate(rows)},
        "verdicts": [{"column": "semseg", "best": "mini-sam", "runner_up": "mini-clip", "lead": 2.5}],
    }
    assert "| mini-sam | **3.0 ± 1.0** |" in render_table(result)
    result["verdicts"][0]["lead"] = 1.5
    assert "| mini-sam | 3.0 ± 1.0 |" in render_table(result) and "no clear lead" in render_table(result)


@pytest.mark.slow
def test_a_small_probe_runs(tmp_path: Path) -> None:
    config = ProbeConfig(num_train=16, num_test=8, num_seeds=2, num_epochs=1)
    result = probe(tmp_path, config=config, report=lambda line: None)
    assert json.loads((tmp_path / "probe.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["scores"]) == {"untrained", *NAMES, "all three side by side"}
    for by_column in result["scores"].values():
        assert all(np.isfinite(score["mean"]) and len(score["seeds"]) == 2 for score in by_column.values())
    assert result["weights"]["mini-sam"] == shipped_card("mini-sam")["state"]
