"""The boundary benchmark keeps its contract. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_boundary_ends_with_one_json_object() -> None:
    command = [sys.executable, "-m", "benchmarks", "boundary", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"name", "goal", "value", "holds", "rows"} <= result.keys() and result["name"] == "boundary"
    rows = {row["side"]: row for row in result["rows"]}
    assert {"coffee", "coffee, NMS", "sak", "higra", "pyEdgeEval"} <= rows.keys()
    assert result["value"]["count_difference_higra"] == 0
    matchers = [rows[name] for name in ("sak", "higra", "pyEdgeEval")]
    assert len({row["checksum"] for row in matchers}) == 1
    assert "goal: " in done.stderr
