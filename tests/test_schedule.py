"""A study's runs are made after those that they begin with, and no worker waits while something else is ready."""

from __future__ import annotations

from pathlib import Path

from pipeline.recipes.config import load_recipe
from pipeline.runs import Places
from pipeline.studies.schedule import Call, Schedule, grouped

STAGE1, STAGE2 = (load_recipe("demo", stage) for stage in ("distill", "finetune"))
PLACES = Places(Path("features"), Path("runs"))


def call(name: str, stage1: str = "", parts: tuple[str, ...] = (), seed: int = 0) -> Call:
    recipe = (STAGE1 if name.endswith("distill") else STAGE2).model_copy(update={"seed": seed})
    begins_with = Path(stage1) if stage1 else None
    return Call(name, Path(name), recipe, PLACES, begins_with, tuple(map(Path, parts)))


def names(group: list[Call] | None) -> list[str] | None:
    return group and [one.label for one in group]


def test_what_begins_with_a_stage_1_goes_as_soon_as_that_is_there() -> None:
    schedule = Schedule([[call("a-distill")], [call("a", "a-distill")], [call("b")], [call("c")]])
    assert (len(schedule), schedule.num_calls) == (4, 4)
    assert [names(schedule.next()) for _ in range(2)] == [["a-distill"], ["b"]], "a is not ready, b needs nothing"
    schedule.ended({Path("a-distill"): ""})
    assert names(schedule.next()) == ["a"], "before c, which is behind it"
    assert names(schedule.next()) == ["c"] and schedule.next() is None
    assert len(schedule) == 0 and not schedule.failed


def test_what_begins_with_a_failed_run_fails_in_words_and_the_rest_goes_on() -> None:
    shared = [call("a", "a-distill"), call("b", "b-distill")]
    schedule = Schedule([[call("a-distill")], [call("b-distill")], shared, [call("token", "a-distill")]])
    schedule.next(), schedule.next()
    schedule.ended({Path("a-distill"): "no space left"})
    assert schedule.next() is None, "token fails, b waits for its stage 1"
    schedule.ended({Path("b-distill"): ""})
    assert names(schedule.next()) == ["b"] and schedule.next() is None
    assert schedule.failed == {
        Path("a-distill"): "no space left",
        Path("a"): "its stage 1, a-distill, failed",
        Path("token"): "its stage 1, a-distill, failed",
    }


def test_runs_of_one_task_fail_as_the_one_that_they_are_put_together_to() -> None:
    parts = ("whole/depth", "whole/semseg")
    schedule = Schedule(
        [[call(name)] for name in parts] + [[call("whole", parts=parts)], [call("more", parts=parts[1:])]]
    )
    assert [names(schedule.next()) for _ in range(3)] == [[parts[0]], [parts[1]], None]
    schedule.ended({Path(parts[0]): "NaN", Path(parts[1]): ""})
    assert names(schedule.next()) == ["more"]
    assert schedule.failed == {Path("whole"): "depth: NaN"}


def test_runs_share_a_read_of_the_same_rows_only() -> None:
    calls = [call("a"), call("b", seed=1), call("c"), call("d"), call("e-distill"), call("f", parts=("a", "c"))]
    assert [names(group) for group in grouped(calls, 2)] == [["a", "c"], ["b"], ["d"], ["e-distill"], ["f"]]
    assert all(len(group) == 1 for group in grouped(calls, 1))
