"""Panel 6: where the time and the bytes went, what was paid once, and what that saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from pipeline.console import duration
from pipeline.report.costs import Reuse, arm_cost, reuse
from pipeline.report.drawing import colour, css_colour, draw
from pipeline.report.elements import (
    Block,
    Column,
    Figure,
    Key,
    Panel,
    Picture,
    Table,
    Text,
    Tone,
    count,
    figure,
    name,
)
from pipeline.report.facts import ArmFacts, RunFacts, StudyFacts
from pipeline.training.clock import PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS_PX = 450
"""Width of the drawing of steps."""


def cost_panel(found: StudyFacts) -> Panel:
    """Training by arm, the caches by teacher, and reuse."""
    blocks: list[Block] = [_training(found), _steps(found)]
    saved = reuse(found)
    if saved:
        blocks.append(_reuse_table(saved))
    if found.caches:
        blocks += [_caches(found), _teachers(found), *_waits(found)]
    else:
        blocks.append(Text("The caches are not at hand, so that what they took cannot be told.", "note"))
    blocks.append(
        Text(
            "Training time is that of one run on its device. Left out: linear probes, and where runs share what they "
            "read, waiting for its turn.",
            "note",
        )
    )
    return Panel(
        "cost", "What it cost", "What was paid once, what every run pays, and is the cache still true?", blocks
    )


def _training(found: StudyFacts) -> Table:
    columns = [
        Column("arm", numeric=False),
        Column("stage 1, s", sense="lower"),
        Column("stage 2, s", sense="lower"),
        Column("steps, 1"),
        Column("steps, 2"),
        Column("ms a step, 1"),
        Column("ms a step, 2"),
        Column("parameters"),
        Column("device", numeric=False),
    ]
    rows = []
    for arm in found.arms:
        first, both = _seconds(arm, "distill"), _seconds(arm, "finetune")
        second = None if both is None else both - (first or 0.0)
        steps = [next((run.steps for run in runs.values() if run.recipe), 0) for runs in (arm.stage1, arm.runs)]
        devices = {
            f"{run.results['environment']['kind']}: {run.results['environment']['device']}"
            for run in (*arm.runs.values(), *arm.stage1.values())
            if run.results.get("environment")
        }
        rows.append(
            [
                name(arm.label),
                figure(first),
                figure(second),
                count(steps[0] or None),
                count(steps[1] or None),
                figure(1000 * first / steps[0] if first and steps[0] else None, 0),
                figure(1000 * second / steps[1] if second and steps[1] else None, 0),
                count(arm_cost(found, arm).parameters),
                name("; ".join(sorted(devices)) or "–"),
            ]
        )
    return Table("training", "Training of one system, mean over seeds", columns, rows)


def _seconds(arm: ArmFacts, stage: str) -> float | None:
    """Mean seconds of a stage's finished runs; those of stage 2 count their stage 1."""
    runs = arm.stage1 if stage == "distill" else arm.runs
    known = [float(run.results["seconds"]) for run in runs.values() if "seconds" in run.results]
    return mean(known) if known else None


def _steps(found: StudyFacts) -> Block:
    """Where a step's time goes, of every arm and stage: a bar each, and its numbers."""
    rows = {
        f"{arm.label}, stage {number}": parts
        for arm in found.arms
        for number, runs in enumerate((arm.stage1, arm.runs), 1)
        if (parts := _step_parts(list(runs.values())))
    }
    if not rows:
        return Text(
            "Where a step's time goes is not told: no run is finished, or they are of an earlier version.", "note"
        )
    columns = [Column("arm and stage", numeric=False)]
    columns += [Column(f"{part}, ms", sense="lower") for part in PARTS] + [Column(f"{PARTS[0]} %", sense="lower")]
    table_rows = [
        [
            name(label),
            *[figure(parts[part]) for part in PARTS],
            figure(100 * parts[PARTS[0]] / sum(parts.values()) if sum(parts.values()) else None),
        ]
        for label, parts in rows.items()
    ]
    svg = draw("steps", 50 + 21 * len(rows), lambda axes: _bars(axes, rows), STEPS_PX)
    return Figure(
        "steps",
        "Where a step's time goes",
        "Milliseconds of a step, mean over its run and over seeds. Data: waiting for a batch; of runs that share what "
        "they read, it counts as nobody's. Forward: with the loss. Saving: checkpoints and validation within training, "
        "spread over all steps.",
        [Picture("Milliseconds a step by part, a bar an arm and stage; numbers in the table", svg=svg)],
        Table("steps-table", "A step, by part", columns, table_rows),
        [Key("■", css_colour(place), part) for place, part in enumerate(PARTS)],
    )


def _step_parts(runs: Sequence[RunFacts]) -> dict[str, float]:
    """Milliseconds of a step by part, mean over the runs that tell; empty where none does."""
    told = [(run.seconds_by_part, run.steps) for run in runs if run.seconds_by_part and run.steps]
    return {part: mean(1000 * seconds[part] / steps for seconds, steps in told) for part in PARTS} if told else {}


def _bars(axes: Axes, rows: Mapping[str, Mapping[str, float]]) -> None:
    for row, parts in enumerate(rows.values()):
        begin = 0.0
        for place, part in enumerate(PARTS):
            axes.barh(row, parts[part], left=begin, height=0.62, color=colour(place))
            begin += parts[part]
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("ms a step")
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _reuse_table(saved: Reuse) -> Table:
    rows = [
        [name("teachers' one pass, paid once"), figure(saved.paid_seconds), name(duration(saved.paid_seconds))],
        [
            name(f"teachers, had they run in {saved.runs} runs"),
            figure(saved.live_seconds),
            name(duration(saved.live_seconds)),
        ],
        [name("saved by reuse"), figure(saved.saved_seconds), name(_signed_duration(saved.saved_seconds))],
        [name("runs until it has paid for itself"), count(saved.break_even), name(f"of {saved.runs} here")],
    ]
    columns = [Column("what", numeric=False), Column("seconds, or runs"), Column("in words", numeric=False)]
    return Table("reuse", "The teachers' time: once, against in every run", columns, rows)


def _signed_duration(seconds: float) -> str:
    return duration(seconds) if seconds >= 0 else f"−{duration(-seconds)}"


def _caches(found: StudyFacts) -> Table:
    columns = [Column("cache", numeric=False), Column("images"), Column("views"), Column("size", numeric=False)]
    columns += [Column("pixels and labels, MB"), Column("features, MB"), Column("preparing, s")]
    rows = [
        [
            name(cache.name),
            count(cache.samples),
            count(cache.views),
            name(f"{cache.size[0]}×{cache.size[1]} px"),
            figure(cache.source_bytes / 1e6),
            figure(sum(part.bytes for part in cache.teachers.values()) / 1e6),
            figure(cache.prepare_seconds),
        ]
        for cache in found.caches.values()
    ]
    return Table("caches", "The caches", columns, rows)


def _teachers(found: StudyFacts) -> Table:
    columns = [
        Column("teacher, cache", numeric=False),
        Column("rows"),
        Column("seconds, once"),
        Column("ms a row"),
        Column("MB"),
        Column("kB a row"),
        Column("codec", numeric=False),
        Column("fidelity promised", sense="higher"),
        Column("measured", sense="higher"),
        Column("device", numeric=False),
    ]
    rows = []
    for cache in found.caches.values():
        for part in cache.teachers.values():
            cost = part.seconds_a_row
            rows.append(
                [
                    name(f"{part.teacher}, {cache.dataset} {cache.split}"),
                    count(part.rows),
                    figure(part.seconds),
                    figure(None if cost is None else 1000 * cost),
                    figure(part.bytes / 1e6),
                    figure(part.bytes / part.rows / 1e3 if part.rows else None),
                    name(", ".join(part.codecs)),
                    figure(part.promised, 5),
                    figure(part.measured, 5, tone=_tone(part.promised, part.measured)),
                    name(part.device),
                ]
            )
    caption = (
        "Teachers: time paid once, bytes and codec. Fidelity is the token cosine of decoded features to the teacher's "
        "own, plain or with the mean removed, whichever is lower; measured on the first row of every shard."
    )
    return Table("teachers", caption, columns, rows)


def _tone(promised: float | None, measured: float | None) -> Tone:
    return "worse" if promised is not None and measured is not None and measured < promised else ""


def _waits(found: StudyFacts) -> Sequence[Block]:
    told = [part for cache in found.caches.values() for part in cache.teachers.values() if part.shares]
    if not told:
        return []
    columns = [Column("teacher, cache", numeric=False), Column("computing %"), Column("waiting for pixels %")]
    columns += [Column("for encoding %"), Column("for the disk %")]
    rows = [
        [
            name(f"{part.teacher}, {found.caches[part.store].split}"),
            *[figure(100 * part.shares[share]) for share in ("busy", "pixels", "encoding", "disk")],
        ]
        for part in told
    ]
    return [Table("waits", "Where the teachers' time went", columns, rows)]
