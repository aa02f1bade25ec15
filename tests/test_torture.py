"""A short form of `make torture`: every phase killed, bits of every kind of file flipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.flips import PREDICTED, run_flips
from tests.torture.kills import PHASES, run_kills
from tests.torture.maintenance import run_maintenance_kills


@pytest.mark.slow
def test_kills_cost_nothing_that_was_committed(tmp_path: Path) -> None:
    result = run_kills(tmp_path, a_phase=1, at_random=1)
    assert result["kills"] == len(PHASES) + 1
    assert set(result["by_phase"]) == {*PHASES, "random moment"}
    assert result["committed_files_kept"] > 0 and result["stores_finished_byte_identical"] > 0


def test_flips_are_found_named_and_repaired(tmp_path: Path) -> None:
    result = run_flips(tmp_path, 40, seed=1)
    assert result["found_named_and_repaired"] == 40
    assert {"index", "padding", "manifest", "rows of one sample"} <= set(result["by_place"])


@pytest.mark.slow
def test_flips_where_levels_are_coded_together(tmp_path: Path) -> None:
    result = run_flips(tmp_path, 30, seed=2, codec=PREDICTED)
    assert result["found_named_and_repaired"] == 30
    assert {"index", "manifest", "rows of one sample"} <= set(result["by_place"])


@pytest.mark.slow
def test_kills_inside_drop_and_repair_cost_nothing(tmp_path: Path) -> None:
    result = run_maintenance_kills(tmp_path, times=1, at_random=0, most=2)
    assert result["by_command"]["drop"] == 6 and result["by_command"]["repair"] >= 6
    assert result["stores_finished_byte_identical"] == result["kills"]
