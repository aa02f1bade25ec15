"""What seeds can establish, held to numbers worked by hand and to scipy's own tests."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from pipeline.studies.statistics import Comparison, Summary, compare, summary, t_quantile, whole_mean


def test_mean_and_standard_deviation_are_of_what_is_known() -> None:
    assert summary([1.0, 2.0, 6.0]) == Summary(3.0, pytest.approx(math.sqrt(7)), 3)
    assert summary([1.0, None, math.nan, 3.0]) == Summary(2.0, pytest.approx(math.sqrt(2)), 2)
    assert summary([4.0]) == Summary(4.0, None, 1)
    assert summary([]) == summary([None]) == Summary(None, None, 0)
    assert whole_mean([1.0, 2.0]) == 1.5 and whole_mean([]) is None
    assert all(whole_mean([1.0, unknown]) is None for unknown in (None, math.nan, math.inf))


def test_the_interval_is_students_on_paired_differences() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027 from a printed table."""
    ours, theirs = {0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0}
    found = compare(ours, theirs, higher_is_better=True)
    half = 4.30265 / math.sqrt(3)
    assert (found.difference, found.count) == (2.0, 3)
    assert (found.low, found.high) == (pytest.approx(2 - half, abs=1e-5), pytest.approx(2 + half, abs=1e-5))
    assert found.verdict == "not established"
    wide = stats.ttest_rel(list(ours.values()), list(theirs.values())).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(wide.low), pytest.approx(wide.high))
    assert t_quantile(0.95, 1) == pytest.approx(12.7062, abs=1e-4)


def test_pairing_finds_what_the_seeds_scatter_would_hide() -> None:
    """The seeds scatter by 10, the two systems differ by 1 on each."""
    theirs = {0: 10.0, 1: 20.0, 2: 30.0}
    ours = {0: 11.1, 1: 20.9, 2: 31.0}
    assert stats.ttest_ind(list(ours.values()), list(theirs.values())).pvalue > 0.5
    assert compare(ours, theirs, higher_is_better=True).verdict == "better"
    assert compare(theirs, ours, higher_is_better=True).verdict == "worse"
    assert compare(ours, theirs, higher_is_better=False).verdict == "worse"
    assert compare(theirs, ours, higher_is_better=False).verdict == "better"


def test_seeds_are_paired_by_number_and_gaps_are_left_out() -> None:
    found = compare({2: 5.0, 0: 1.0, 1: None, 7: 9.0}, {0: 0.0, 1: 3.0, 2: 3.0, 5: 1.0}, higher_is_better=True)
    assert (found.difference, found.count) == (1.5, 2)
    assert compare({0: math.nan}, {0: 1.0}, True) == Comparison(None, None, None, 0, "not established")


def test_one_seed_establishes_nothing_however_large_the_difference() -> None:
    assert compare({0: 90.0}, {0: 1.0}, True) == Comparison(89.0, None, None, 1, "not established")


def test_equal_scores_are_not_told_apart_and_equal_differences_are() -> None:
    same = {0: 1.0, 1: 2.0}
    assert compare(same, same, True) == Comparison(0.0, 0.0, 0.0, 2, "not established")
    assert compare({0: 2.0, 1: 3.0}, same, True) == Comparison(1.0, 1.0, 1.0, 2, "better")
