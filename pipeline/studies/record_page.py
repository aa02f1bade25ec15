"""A study's record as a page of Markdown."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console import amount, number, spread, table
from pipeline.studies.findings import MOST_LOST
from pipeline.studies.statistics import summary
from pipeline.studies.study_table import CONSTANT, markdown

PAIRED = (
    "Paired by seed: mean difference [95 % interval], in the score's unit; gain: mean over tasks, relative, in %. "
    "**Bold**: the interval leaves out 0 and the first arm is better; *italic*: it is worse; plain: not established."
)
LEVELS = "The same of each level, 1 the shallowest: mean differences alone, in thousandths, with the same marks."
_MARKS = {"better": "**", "worse": "*"}


def page(recorded: Mapping[str, Any]) -> str:
    """The record as Markdown: its table, then a section for each thing that the study can say."""
    columns = recorded["table"]["columns"]
    parts = [f"# Study `{recorded['study']['name']}`", *_tables(recorded)]
    if recorded["differences"]:
        parts += ["## Differences", PAIRED, _differences(recorded["differences"], columns)]
    if recorded["ratios"]:
        parts += [f"## {recorded['subject']} against each task's best teacher", "Means over seeds on the test split."]
        parts.append(_ratios(recorded["ratios"], recorded["subject"]))
    if recorded["held_out"]:
        about = "Stage 1 at its end, on held-out rows: cosine to each teacher's features, mean over its levels, ± std."
        parts += ["## How near the student is to its teachers", about, _held_out(recorded["held_out"])]
        compared = [row for row in recorded["differences"] if row.get("cosines")]
        if compared:
            parts += [_cosine_differences(compared, 4), LEVELS]
            parts.append(_cosine_differences([_of_levels(row) for row in compared], 1))
    if recorded["left_out"]:
        about = (
            f"The router weight that {recorded['subject']} gives a teacher, and what the task loses without it: "
            f"{recorded['subject']} minus the student that was distilled without."
        )
        parts += ["## What a teacher is worth", about, _left_out(recorded["left_out"], columns)]
    if recorded["caches"]:
        parts += ["## What a cache costs", *_caches(recorded["caches"])]
    if recorded["foretold"]:
        parts += ["## How well a codec's own figures foretell it", *_foretold(recorded["foretold"], columns)]
    parts += ["## What trained the runs", _trained_by(recorded["runs"])]
    return "\n\n".join(_wrapped(paragraph) for part in parts for paragraph in part.split("\n\n")) + "\n"


def _tables(recorded: Mapping[str, Any]) -> list[str]:
    """The study's table; where the study asks for several, each below its title."""
    whole = recorded["table"]
    asked: Mapping[str, Sequence[str]] = recorded["study"]["tables"]
    parts = []
    for title, arms in asked.items():
        rows = [row for arm in (CONSTANT, *arms) for row in whole["rows"] if row["arm"] == arm]
        parts += [f"## {title}", markdown({**whole, "rows": rows})]
    return parts or [markdown(whole)]


def _wrapped(paragraph: str) -> str:
    """Prose in lines of at most 118 characters; tables and headings as they are."""
    return paragraph if paragraph.startswith(("|", "#")) else textwrap.fill(paragraph, 118, break_on_hyphens=False)


def _differences(rows: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            f"{row['arm']} minus {row['against']}",
            *(_difference(row["tasks"][c["task"]], _digits(c)) for c in columns),
            _difference(row["gain"], 1),
        ]
        for row in rows
    ]
    return table(["", *(c["task"] for c in columns), "gain %"], lines)


def _ratios(ratios: Mapping[str, Mapping[str, Any]], subject: str) -> str:
    lines = [
        [task, r["teacher"], number(r["best"], ".4g"), number(r["ours"], ".4g"), f"{r['ratio']:.2f}"]
        for task, r in ratios.items()
    ]
    return table(["task", "best teacher", "its score", subject, "ratio"], lines)


def _held_out(found: Mapping[str, Mapping[str, Mapping[Any, float | None]]]) -> str:
    teachers = list(dict.fromkeys(teacher for cosines in found.values() for teacher in cosines))
    lines = []
    for arm, cosines in found.items():
        by_teacher = [summary(list(cosines.get(name, {}).values())) for name in teachers]
        lines.append([arm, *(spread(one.mean, one.std, 4) for one in by_teacher)])
    return table(["arm", *teachers], lines)


def _cosine_differences(rows: Sequence[Mapping[str, Any]], digits: int) -> str:
    teachers = list(dict.fromkeys(teacher for row in rows for teacher in row["cosines"]))
    lines = [
        [
            f"{row['arm']} minus {row['against']}",
            *(_difference(row["cosines"][t], digits) if t in row["cosines"] else "-" for t in teachers),
        ]
        for row in rows
    ]
    return table(["", *teachers], lines)


def _of_levels(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose cosines are those of each level, times 1000 and without intervals."""
    cosines = {}
    for level, found in row["level_cosines"].items():
        difference = None if found["difference"] is None else found["difference"] * 1000
        cosines[level.replace("_level", " ")] = {**found, "difference": difference, "low": None, "high": None}
    return {**row, "cosines": cosines}


def _trained_by(runs: Sequence[Mapping[str, Any]]) -> str:
    """A table of commits and machines, with how many runs of both stages each has trained."""
    stage1 = {run["stage1"]["run"]: run["stage1"] for run in runs if "stage1" in run}
    found = Counter(tuple(one.get("environment", {}).items()) for one in (*runs, *stage1.values()))
    keys = ("commit", "device", "threads", "python", "torch")
    lines = [[*(str(dict(made).get(key) or "not noted") for key in keys), str(count)] for made, count in found.items()]
    return table([*keys, "runs"], lines)


def _left_out(rows: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            row["teacher"],
            c["task"],
            f"{row['tasks'][c['task']]['weight']:.3f}",
            _difference(row["tasks"][c["task"]]["cost"], _digits(c)),
        ]
        for row in rows
        for c in columns
    ]
    return table(["left out", "task", "its weight", "difference"], lines)


def _caches(found: Mapping[str, Any]) -> list[str]:
    about = f"Bytes of features that stage 1 reads, and the gain over {found['reference']}."
    lines = [[cell["arm"], amount(cell["bytes"]), _difference(cell["gain"], 1)] for cell in found["cells"]]
    lost = f"a loss of more than {MOST_LOST:g} %"
    named = (
        f"The smallest whose interval excludes {lost}: {found['arm']}."
        if found["arm"]
        else f"No cache's interval excludes {lost}: not established."
    )
    return [about, table(["arm", "features", "gain %"], lines), named]


def _foretold(found: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> list[str]:
    about = (
        "Linear probes, fitted on the teachers' raw features, lose so much on decoded ones (mean over the teachers); "
        "students lose so much that were trained from them [95 % interval]. Both in the score's unit, more is worse."
    )
    columns = [c for c in columns if c["task"] in found["ranks"]]
    lines = []
    for cell in found["cells"]:
        losses = []
        for c in columns:
            one, digits = cell["tasks"][c["task"]], _digits(c)
            losses += [f"{one['probe']:+.{digits + 1}f}", _difference(_as_loss(one["student"], c), digits)]
        lines.append([f"{cell['arm']} for {cell['against']}", f"{1 - cell['cosine']:.4f}", *losses])
    heads = [head for c in columns for head in (f"{c['task']}: probe", "student")]
    ranked = [[task, *(number(one[by], ".2f") for by in ("cosine", "probe"))] for task, one in found["ranks"].items()]
    count = len(found["cells"])
    return [
        about,
        table(["", "1 - cosine", *heads], lines),
        f"Spearman's rank correlation with the students' losses over these {count} pairs:",
        table(["task", "1 - cosine", "probe's loss"], ranked),
    ]


def _as_loss(found: Mapping[str, Any], column: Mapping[str, Any]) -> Mapping[str, Any]:
    """A comparison with the sign that makes more worse."""
    if not column["higher_is_better"] or found["difference"] is None:
        return found
    low, high = (None if found[end] is None else -found[end] for end in ("high", "low"))
    return {**found, "difference": -found["difference"], "low": low, "high": high}


def _digits(column: Mapping[str, Any]) -> int:
    return 3 if column["score"] == "RMSE" else 1


def _difference(found: Mapping[str, Any], digits: int) -> str:
    """A `statistics.Comparison` as a cell."""
    if found["difference"] is None:
        return "-"
    text = f"{found['difference']:+.{digits}f}"
    if found["low"] is not None:
        text += f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    mark = _MARKS.get(found["verdict"], "")
    return f"{mark}{text}{mark}"
