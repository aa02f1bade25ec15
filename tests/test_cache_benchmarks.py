"""The benchmark command keeps its contract: one JSON object, every side the same bytes. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_read_ends_with_one_json_object() -> None:
    command = [sys.executable, "-m", "benchmarks", "read", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"name", "goal", "value", "holds", "rows"} <= result.keys() and result["name"] == "read"
    measured = [row for row in result["rows"] if row["note"] != "not installed"]
    assert {"preadv limit", "this cache", "zarr-python", "numpy.memmap"} <= {row["side"] for row in measured}
    assert len({row["checksum"] for row in measured}) == 1 and measured[0]["bytes"] == 256 * 14 * 14 * 1536 * 2
    assert all(len(row["seconds"]) == 3 for row in measured)
    assert "this cache" in done.stderr and "goal: " in done.stderr
