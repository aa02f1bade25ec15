"""The benchmark command keeps its contract: one JSON object, every side the same bytes. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def quick(name: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"name", "goal", "value", "holds", "rows"} <= result.keys() and result["name"] == name
    return result, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rounds"), [("write", 5), ("extract", 1)])
def test_both_sides_deliver_the_same(name: str, rounds: int) -> None:
    rows = quick(name)[0]["rows"]
    assert len(rows) == 2 and len({row["checksum"] for row in rows}) == 1 and rows[0]["bytes"] > 0
    assert all(len(row["seconds"]) == rounds for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["block", "copy", "open", "read-cold", "read-small", "staging"])
def test_all_sides_deliver_the_same(name: str) -> None:
    result = quick(name)[0]
    assert result["rows"] and all(row["bytes"] and len(row["seconds"]) >= 2 for row in result["rows"])
    sums: dict[str, set[str]] = {}
    for row in result["rows"]:  # read-small: rows of one size together
        sums.setdefault(row["side"].partition(",")[0] if name == "read-small" else "", set()).add(row["checksum"])
    assert all(len(found) == 1 for found in sums.values())


@pytest.mark.slow
def test_read_ends_with_one_json_object() -> None:
    result, shown = quick("read")
    measured = [row for row in result["rows"] if row["note"] != "not installed"]
    assert {"preadv limit", "this cache", "zarr-python", "numpy.memmap"} <= {row["side"] for row in measured}
    assert len({row["checksum"] for row in measured}) == 1 and measured[0]["bytes"] == 256 * 14 * 14 * 1536 * 2
    assert all(len(row["seconds"]) == 3 for row in measured)
    assert "this cache" in shown and "goal: " in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sides", "figures"),
    [
        ("step", ["resident batch", "cache"], {"cache_over_resident", "data_share", "forward_share", "backward_share"}),
        ("live", ["student alone", "cache", "live"], {"of_limit", "times_live"}),
    ],
)
def test_benchmarks_of_training_give_their_figures(name: str, sides: list[str], figures: set[str]) -> None:
    result = quick(name)[0]
    assert isinstance(result["holds"], bool) and result["goal"]
    assert figures <= result["value"].keys() and all(value > 0 for value in result["value"].values())
    assert [row["side"] for row in result["rows"]] == sides
    assert len({row["checksum"] for row in result["rows"]}) == 1 and result["rows"][0]["bytes"] > 0
    assert all(len(row["seconds"]) == 3 for row in result["rows"])


@pytest.mark.slow
def test_matchers_of_boundaries_agree() -> None:
    result, shown = quick("boundary")
    rows = {row["side"]: row for row in result["rows"]}
    assert {"coffee", "coffee, NMS", "sak", "higra", "pyEdgeEval"} <= rows.keys()
    assert result["value"]["count_difference_higra"] == 0
    assert len({rows[name]["checksum"] for name in ("sak", "higra", "pyEdgeEval")}) == 1
    assert "goal: " in shown
