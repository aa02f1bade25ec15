"""Panel 2: every arm and variation on every task, over seeds, classes and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.answer import comparison_cells, comparison_columns
from pipeline.report.comparison import gain_of, no_gain, standings, versus
from pipeline.report.drawing import INK, QUIET, colour, css_colour, draw, glyph, heat, marker
from pipeline.report.elements import (
    SPREAD,
    Block,
    Cell,
    Column,
    Figure,
    Key,
    Panel,
    Picture,
    Table,
    Text,
    figure,
    name,
    without_empty_spread,
)
from pipeline.report.facts import ArmFacts, RunFacts, StudyFacts, TaskFacts
from pipeline.studies.statistics import summary
from pipeline.studies.study_table import CONSTANT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 24
"""Of a confusion matrix that is drawn; larger ones are listed by what is mixed up most."""
MOST_MIXED = 12


def arms_panel(found: StudyFacts) -> Panel:
    """Scores, differences, classes and images; of one arm, what it has."""
    title, question = "Arms and variations", "How does each do on each task, and is a difference more than the seeds'?"
    if not found.scored:
        return Panel("arms", title, question, [Text("No run is scored, so there is nothing to set side by side.")])
    blocks: list[Block] = [_score_table(found), _dots(found)]
    if found.arm(found.baseline) and len(found.scored) > 1:
        blocks.append(_differences(found))
    best = best_arm(found)
    for task in found.tasks if best else ():
        run = best.first() if best else None
        if not (run and run.on):
            continue
        details = run.on.details.get(task.name, {})
        if task.kind == "classes" and details.get("per_class"):
            blocks += [_per_class(found, task), _confusion(run, task, details)]
    blocks += [_per_image(found, task) for task in found.tasks if _image_scores(found.scored, task)]
    return Panel("arms", title, question, blocks)


def best_arm(found: StudyFacts, trained: bool = False) -> ArmFacts | None:
    """The arm with the highest gain, or the first that has scores.

    Args:
        trained: only of those with a student.
    """
    ranked = [one.arm for one in standings(found)]
    if trained:
        ranked = [arm for arm in ranked if (run := arm.first()) and run.lineage and run.lineage.student]
    return ranked[0] if ranked else None


def _heading(task: TaskFacts) -> str:
    return f"{task.name} {task.score} {'↑' if task.higher_is_better else '↓'}"


def _score_table(found: StudyFacts) -> Table:
    columns = [Column("arm", numeric=False)]
    for task in found.tasks:
        columns += [Column(_heading(task), sense="higher" if task.higher_is_better else "lower"), Column(SPREAD)]
    columns += [Column("gain %", sense="higher"), Column(f"{SPREAD} ")]
    rows = []
    if found.constant:
        scores = [cell for task in found.tasks for cell in _pair(found.constant.get(task.name), None, task.digits)]
        rows.append([name(CONSTANT, "quiet"), *scores, *_pair(gain_of(found, found.constant), None, 1)])
    gains = {one.arm.label: one.gain for one in standings(found)}
    for arm in found.scored:
        cells = [name(arm.label)]
        for task in found.tasks:
            of = summary(list(arm.score(task).values()))
            cells += _pair(of.mean, of.std, task.digits)
        rows.append([*cells, *_pair(gains[arm.label].mean, gains[arm.label].std, 1)])
    for label, by_task in found.derived.items():
        cells = [name(label, "quiet")]
        for task in found.tasks:
            cells += _pair(by_task.get(task.name, {}).get("mean"), by_task.get(task.name, {}).get("std"), task.digits)
        rows.append([*cells, *_pair(None, None, 1)])
    over = "Mean and standard deviation over seeds" if len(found.seeds) > 1 else "Scores"
    caption = f"{over}; ↑ more is better, ↓ less is. A click on a heading sorts."
    if why := no_gain(found):
        caption += f" No gain: {why}."
    return without_empty_spread(Table("scores", caption, columns, rows))


def _pair(value: float | None, std: float | None, digits: int) -> list[Cell]:
    return [figure(value, digits), figure(std, digits, tone="quiet")]


def _dots(found: StudyFacts) -> Figure:
    """A drawing a task: every seed a small mark, the mean a large one; right is better everywhere."""
    pictures = [
        Picture(
            f"{task.name} {task.score} of every arm; numbers in the table above",
            svg=draw(
                f"dots {task.name}",
                54 + 21 * len(found.scored),
                lambda axes, task=task: _dot_rows(axes, found, task),  # type: ignore[misc]
            ),
        )
        for task in found.tasks
    ]
    rows = [
        [name(f"{arm.label}, {task.name}"), *[figure(arm.score(task).get(seed), task.digits) for seed in found.seeds]]
        for task in found.tasks
        for arm in found.scored
    ]
    columns = [Column("arm and task", numeric=False), *[Column(f"seed {seed}") for seed in found.seeds]]
    keys = [Key(glyph(place), css_colour(place), arm.label) for place, arm in enumerate(found.arms) if arm.scored]
    return Figure(
        "dots",
        "All tasks side by side",
        "Right is better in every drawing. Small marks are seeds, large ones their mean; the dashed line is "
        f"{found.baseline or 'the first arm'}.",
        pictures,
        Table("dots-table", "Scores by seed", columns, rows),
        keys,
    )


def _dot_rows(axes: Axes, found: StudyFacts, task: TaskFacts) -> None:
    labels: list[str] = []
    for place, arm in enumerate(found.arms):
        values = [value for value in arm.score(task).values() if value is not None]
        if not arm.scored:
            continue
        row = len(labels)
        labels.append(arm.label)
        axes.plot(values, [row] * len(values), marker(place), markersize=3.5, color=colour(place), alpha=0.55)
        if values:
            axes.plot(mean(values), row, marker(place), markersize=8, color=colour(place))
            if arm.label == found.baseline:
                axes.axvline(mean(values), color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.margins(x=0.08)
    axes.set_title(task.name, color=INK)
    axes.set_xlabel(f"{task.score}, {task.unit} ({'more' if task.higher_is_better else 'less'} is better)")
    if not task.higher_is_better:
        axes.invert_xaxis()


def _differences(found: StudyFacts) -> Table:
    columns = [Column("arm", numeric=False), Column("task", numeric=False), *comparison_columns("difference")]
    rows = [
        [
            name(arm.label),
            name(_heading(task)),
            *comparison_cells(versus(found, arm, task, found.baseline), task.digits),
        ]
        for arm in found.scored
        if arm.label != found.baseline
        for task in found.tasks
    ]
    caption = (
        f"Against {found.baseline}, task by task: paired by seed, in the score's own unit, with a 95 % interval. Of so "
        "many comparisons, one in twenty is taken for established by chance."
    )
    return Table("differences", caption, columns, rows)


def _per_class(found: StudyFacts, task: TaskFacts) -> Table:
    by_arm = {arm.label: _class_means(arm, task) for arm in found.scored}
    classes = list(dict.fromkeys(key for means in by_arm.values() for key in means))
    rows = [[name(key), *[figure(means.get(key)) for means in by_arm.values()]] for key in classes]
    columns = [Column("class", numeric=False), *[Column(label, sense="higher") for label in by_arm]]
    return Table(
        f"classes-{task.name}", f"{task.name}: IoU of every class in percent, mean over seeds", columns, rows, True
    )


def _class_means(arm: ArmFacts, task: TaskFacts) -> dict[str, float]:
    told = [run.on.details.get(task.name, {}).get("per_class", {}) for run in arm.scored.values() if run.on]
    keys = dict.fromkeys(key for one in told for key in one)
    return {key: mean(one[key] for one in told if key in one) for key in keys}


def _confusion(run: RunFacts, task: TaskFacts, details: Mapping[str, Any]) -> Block:
    """Which classes are taken for which, by one run: a matrix of few classes, else what is mixed up most."""
    counts = np.array(details["confusion"], np.float64)
    keys = list(details["per_class"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mixed = [
        (float(shares[truth, taken]), keys[truth], keys[taken])
        for truth in range(len(keys))
        for taken in range(len(keys))
        if truth != taken and counts[truth, taken]
    ]
    table = Table(
        f"mixed-{task.name}",
        f"{task.name}: what {run.name} mixes up most, in percent of the true class's pixels",
        [Column("truth", numeric=False), Column("taken for", numeric=False), Column("pixels %", sense="lower")],
        [
            [name(truth), name(taken), figure(100 * share)]
            for share, truth, taken in sorted(mixed, key=lambda one: -one[0])[:MOST_MIXED]
        ],
    )
    present = [place for place in range(len(keys)) if counts[place].sum()]
    if not 1 < len(present) <= MOST_CLASSES:
        return table
    some = shares[np.ix_(present, present)]
    labels = [keys[place] for place in present]
    side = 90 + 27 * len(present)
    svg = draw(
        f"confusion {task.name}",
        side,
        lambda axes: heat(axes, some, labels, labels, 0, percent=True),
        max(side + 30, 260),
    )
    picture = Picture(
        f"Confusion of {task.name}: rows are the truth, shades are shares; the worst in the table", svg=svg
    )
    return Figure(
        f"confusion-{task.name}",
        f"Confusion: {task.name}",
        f"{run.name}: rows are the true class, columns what it was taken for, in percent of the row. Classes that "
        "never occur are left out.",
        [picture],
        table,
    )


def _image_scores(arms: Sequence[ArmFacts], task: TaskFacts) -> dict[str, dict[str, float]]:
    """Each arm's own score of every image, mean over the seeds that have one."""
    found: dict[str, dict[str, float]] = {}
    for arm in arms:
        told = [run.on.details.get(task.name, {}).get("per_image", {}) for run in arm.scored.values() if run.on]
        by_image: dict[str, list[float]] = {}
        for one in told:
            for image, value in one.items():
                if value is not None:
                    by_image.setdefault(image, []).append(value)
        if by_image:
            found[arm.label] = {image: mean(values) for image, values in by_image.items()}
    return found


def _per_image(found: StudyFacts, task: TaskFacts) -> Table:
    """How an arm's images are spread: one that fails on a few is told from one that is middling on all."""
    rows = []
    for label, by_image in _image_scores(found.scored, task).items():
        order = sorted(by_image, key=lambda image: by_image[image], reverse=not task.higher_is_better)
        spread = np.quantile([by_image[image] for image in by_image], [0, 0.25, 0.5, 0.75, 1])
        from_worst = spread if task.higher_is_better else spread[::-1]
        numbers = [figure(float(value), task.digits) for value in from_worst]
        rows.append([name(label), *numbers, name(order[0]), name(order[-1])])
    columns = [
        Column("arm", numeric=False),
        *[Column(text) for text in ("worst", "quarter", "median", "three quarters")],
    ]
    columns += [Column("best"), Column("worst image", numeric=False), Column("best image", numeric=False)]
    caption = (
        f"{task.name}: each image's own {task.score}, {task.unit}, mean over seeds, from the worst image to the best"
    )
    return Table(f"images-{task.name}", caption, columns, rows)
