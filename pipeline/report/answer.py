"""Panel 1: what was compared, what won, by how much, whether that is established, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.console import duration
from pipeline.report.comparison import Standing, no_gain, standings
from pipeline.report.costs import ArmCost, Reuse, arm_cost, reuse
from pipeline.report.drawing import QUIET, colour, css_colour, draw, glyph, marker
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
    Tone,
    count,
    figure,
    name,
    without_empty_spread,
)
from pipeline.report.facts import StudyFacts
from pipeline.studies.statistics import Comparison, Verdict, compare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERCENT = "\N{NO-BREAK SPACE}%"
"""As it follows a number, on one line with it."""

TONES: dict[Verdict, Tone] = {"better": "better", "worse": "worse", "not established": "open"}


def answer_panel(found: StudyFacts) -> Panel:
    """The first panel; of whatever is there."""
    blocks: list[Block] = [Text(_compared(found))]
    why = no_gain(found)
    ranked = standings(found)
    if not found.scored:
        blocks.append(Text("Nothing is scored yet, so nothing can be compared: " + _without_scores(found), "lead"))
    elif why:
        blocks.append(Text(f"No arm can be named first, for a gain is counted from a baseline, and {why}.", "lead"))
    else:
        blocks += [Text(_winner(found, ranked), "lead"), _standings_table(found, ranked)]
        if len(ranked) > 2:
            blocks.append(_lead_table(ranked))
    blocks += [Text(remark, "warning") for remark in found.remarks]
    if found.scored and not why and len(ranked) > 1:
        blocks.append(_pareto(found, ranked))
    blocks.append(Text(_paid(reuse(found))))
    return Panel("answer", "The answer", "Which arm won, by how much, and is that established?", blocks)


def _compared(found: StudyFacts) -> str:
    arms, seeds = len(found.arms), len(found.seeds)
    what = f"{arms} arms and variations" if arms > 1 else f"One arm, {found.arms[0].label}" if arms else "Nothing"
    over = f"{seeds} seeds" if seeds > 1 else "one seed"
    tasks = ", ".join(f"{task.name} ({task.score})" for task in found.tasks)
    on = f"on {found.split}" if found.split else "on no labelled split yet"
    return f"{what}, {over}, {on}" + (f"; tasks: {tasks}." if tasks else ".")


def _without_scores(found: StudyFacts) -> str:
    if any(run.stage == "finetune" for run in found.runs):
        return "runs of stage 2 are scored by sak evaluate, or at the end of their study."
    return "this is a stage 1 alone. What its paths learned stands below."


def in_words(compared: Comparison, unit: str = " points", digits: int = 1) -> str:
    """A difference with its interval and its verdict."""
    if compared.difference is None:
        return "no seed in common: not established"
    told = f"{_signed(compared.difference, digits)}{unit}"
    if compared.low is None or compared.high is None:
        return f"{told}, one seed: not established"
    low, high = _signed(compared.low, digits), _signed(compared.high, digits)
    return f"{told} (95 % interval {low} to {high}, {compared.count} seeds): {compared.verdict}"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _winner(found: StudyFacts, ranked: Sequence[Standing]) -> str:
    known = [one for one in ranked if one.gain.mean is not None]
    if not known:
        return "No arm has a score on every task, so no arm can be named first."
    best = known[0]
    if len(known) == 1:
        return f"{best.arm.label} is the only arm with scores on every task."
    if best.arm.label == found.baseline:
        told = f"{best.arm.label}, the baseline, has the highest scores: no arm gains on it."
    else:
        assert best.gain.mean is not None and best.against_baseline
        told = (
            f"{best.arm.label} has the highest mean gain over {found.baseline}: "
            f"{in_words(best.against_baseline, PERCENT)}."
        )
    second = known[1]
    if second.arm.label != found.baseline:
        lead = compare(best.gains, second.gains, higher_is_better=True)
        told += f" Its lead on the next, {second.arm.label}, is {in_words(lead)}."
    return told


def _standings_table(found: StudyFacts, ranked: Sequence[Standing]) -> Table:
    rows = [
        [
            name(one.arm.label),
            figure(one.gain.mean),
            figure(one.gain.std, tone="quiet"),
            count(one.gain.count),
            *comparison_cells(one.against_baseline),
        ]
        for one in ranked
    ]
    columns = [Column("arm", numeric=False), Column("gain %", sense="higher"), Column(SPREAD), Column("seeds")]
    caption = (
        f"Gain: mean over the tasks of the relative improvement on {found.baseline}. Differences are paired by seed, "
        "in points of gain, with a 95 % interval of Student's t."
    )
    columns += comparison_columns(f"against {found.baseline}")
    return without_empty_spread(Table("standings", caption, columns, rows))


def _lead_table(ranked: Sequence[Standing]) -> Table:
    rows = [
        [name(one.arm.label), *comparison_cells(one.against_first)]
        for one in ranked
        if one.arm.label != ranked[0].arm.label
    ]
    against = f"against {ranked[0].arm.label}"
    columns = [Column("arm", numeric=False), *comparison_columns(against)]
    return Table("lead", f"The others {against}, likewise", columns, rows)


def comparison_columns(difference: str) -> list[Column]:
    """The columns of `comparison_cells`."""
    return [Column(difference), Column("from"), Column("to"), Column("verdict", numeric=False)]


def comparison_cells(compared: Comparison | None, digits: int = 1) -> list[Cell]:
    """Difference, both ends of its interval, and the verdict: four cells."""
    if compared is None:
        return [Cell(None, "–", "quiet")] * 4
    numbers = [figure(value, digits) for value in (compared.difference, compared.low, compared.high)]
    return [*numbers, name(compared.verdict, TONES[compared.verdict])]


def _pareto(found: StudyFacts, ranked: Sequence[Standing]) -> Figure:
    costs = {one.arm.label: arm_cost(found, one.arm) for one in ranked}
    index = {arm.label: place for place, arm in enumerate(found.arms)}
    axes: list[tuple[str, Callable[[ArmCost], float | None], Callable[[ArmCost], float | None]]] = [
        ("training, minutes", lambda c: _over(c.seconds, 60), lambda c: _over(c.extraction_seconds, 60)),
        ("cache read, MB", lambda c: _over(c.cache_bytes, 1e6), lambda c: None),
        ("parameters, million", lambda c: _over(c.parameters, 1e6), lambda c: None),
    ]
    pictures = []
    for title, cost, once in axes:
        points = [
            (index[one.arm.label], x, once(costs[one.arm.label]), one.gain.mean)
            for one in ranked
            if (x := cost(costs[one.arm.label])) is not None and one.gain.mean is not None
        ]
        if not points:
            continue
        svg = draw(f"pareto {title}", 250, lambda area, title=title, points=points: _scatter(area, title, points))  # type: ignore[misc]
        pictures.append(Picture(f"Gain in percent against {title}, a mark an arm; numbers in the table", svg=svg))
    rows = [
        [
            name(one.arm.label),
            figure(one.gain.mean),
            figure(_over(costs[one.arm.label].seconds, 60), 2),
            figure(_over(costs[one.arm.label].extraction_seconds, 60), 2),
            figure(_over(costs[one.arm.label].cache_bytes, 1e6), 1),
            figure(_over(costs[one.arm.label].parameters, 1e6), 2),
        ]
        for one in ranked
    ]
    columns = [
        Column("arm", numeric=False),
        Column("gain %", sense="higher"),
        Column("training, minutes", sense="lower"),
        Column("teachers once, minutes", sense="lower"),
        Column("cache read, MB", sense="lower"),
        Column("parameters, million", sense="lower"),
    ]
    keys = [Key(glyph(place), css_colour(place), arm.label) for place, arm in enumerate(found.arms) if arm.scored]
    return Figure(
        "pareto",
        "Gain against cost",
        "Up and to the left is better; the thin line joins what nothing beats on both. A hollow mark adds the "
        "teachers' one pass over the data, which every run that reads the cache shares.",
        pictures,
        Table("pareto-table", "Gain and cost of one trained system of each arm", columns, rows),
        keys,
    )


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _scatter(axes: Axes, title: str, points: Sequence[tuple[int, float, float | None, float]]) -> None:
    front, best = [], float("-inf")
    for _, x, _, y in sorted(points, key=lambda point: (point[1], -point[3])):
        if y > best:
            front.append((x, y))
            best = y
    axes.plot(*zip(*front, strict=True), color=QUIET, linewidth=0.9, drawstyle="steps-post", zorder=1)
    for index, x, once, y in points:
        if once:
            axes.plot([x, x + once], [y, y], color=colour(index), linewidth=0.9, zorder=2)
            axes.plot(x + once, y, marker(index), markersize=7, markerfacecolor="none", color=colour(index), zorder=3)
        axes.plot(x, y, marker(index), markersize=8, color=colour(index), zorder=4)
    axes.set_xlabel(title)
    axes.set_ylabel("gain %")
    axes.set_xlim(left=0)
    axes.margins(0.12)
    axes.grid()


def _paid(saved: Reuse | None) -> str:
    if saved is None:
        return "Whether the cache has paid for itself cannot be said: no run read features, or no log tells their cost."
    once, live = duration(saved.paid_seconds), duration(saved.live_seconds)
    told = (
        f"The teachers ran once, for {once}. Had each of the {saved.runs} training runs that read their features run "
        f"them itself, that would have been {live}. The cache has paid for itself after {saved.break_even} such runs"
    )
    if saved.saved_seconds >= 0:
        return f"{told}; these {saved.runs} saved {duration(saved.saved_seconds)}."
    return f"{told}: these {saved.runs} are too few, by {duration(-saved.saved_seconds)}."
