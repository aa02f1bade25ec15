"""`sak teachers`: what the teachers are and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.console import progress, table
from pipeline.recipes.stores import parse_size
from sak_core.teachers import TEACHERS, check_teacher
from sak_core.teachers.facts import SIZE, known_facts, measure


def list_teachers(names: Sequence[str], size: str | None, allow_code: bool) -> list[dict[str, Any]]:
    """Facts of `names` (all rows when empty) for views of `size`, JSON-able; those not known yet are measured.

    Raises:
        UnknownName, or what building a teacher raises: there is no such teacher.
    """
    wanted = parse_size(size) if size else SIZE
    names = names or tuple(TEACHERS)
    for name in names:
        check_teacher(name, allow_code)
    known = {facts["name"]: facts for facts in known_facts()} if wanted == SIZE else {}
    unmeasured = [name for name in names if name not in known]
    if unmeasured:
        with progress("measure", len(unmeasured), "teachers") as advance:
            for name in unmeasured:
                known[name] = measure(name, wanted, allow_code)
                advance(1)
    return [known[name] for name in names]


def teachers_text(rows: Sequence[dict[str, Any]]) -> str:
    """`list_teachers` for people: a table, and what the numbers mean."""
    columns = (
        "teacher",
        "model",
        "levels",
        "width",
        "grid",
        "sees",
        "wants",
        "mean / std",
        "parameters",
        "GFLOP",
        "licence",
    )
    cells = [
        [
            row["name"],
            f"{row['library']}:{row['model']}",
            ",".join(map(str, row["levels"])),
            _same(row["widths"]),
            _same([f"{h}x{w}" for h, w in row["grids"]]),
            "{}x{}".format(*row["input_size"]),
            "{}x{}".format(*row["native_size"]) if row["native_size"] else "-",
            f"{_numbers(row['mean'])} / {_numbers(row['std'])}",
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['flops'] / 1e9:.0f}",
            row["licence"],
        ]
        for row in rows
    ]
    return "\n".join(
        [
            table(columns, cells),
            "",
            "levels: tapped blocks; sees: px that the network is given for a view; wants: px that it was trained at; "
            "GFLOP: of one image's forward pass",
        ]
    )


def _same(values: Sequence[Any]) -> str:
    """One value where all are equal, else all."""
    return str(values[0]) if len(set(values)) == 1 else ",".join(map(str, values))


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
