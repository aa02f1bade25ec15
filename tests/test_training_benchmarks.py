"""The benchmarks of training keep their contract: one JSON object, every side the same bytes. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sides", "figures"),
    [
        ("step", ["resident batch", "cache"], {"cache_over_resident", "data_share", "forward_share", "backward_share"}),
        ("live", ["student alone", "cache", "live"], {"of_limit", "times_live"}),
    ],
)
def test_it_ends_with_one_json_object(name: str, sides: list[str], figures: set[str]) -> None:
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["name"] == name and isinstance(result["holds"], bool) and result["goal"]
    assert figures <= result["value"].keys() and all(value > 0 for value in result["value"].values())
    assert [row["side"] for row in result["rows"]] == sides
    assert len({row["checksum"] for row in result["rows"]}) == 1 and result["rows"][0]["bytes"] > 0
    assert all(len(row["seconds"]) == 3 for row in result["rows"])
