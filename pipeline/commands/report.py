"""`sak report`, `sak watch`: a study as a page, and as a table while it runs."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import JSON, PATH, RUNS, WHERE, show


@click.command()
@click.argument("names", metavar="STUDY_OR_RUNS...", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, default=Path("report.html"), show_default=True, help="The page's file.")
@click.option(
    "--features",
    "places",
    type=WHERE,
    multiple=True,
    default=("features",),
    show_default=True,
    help="Folder of the caches, or an address (repeatable, as in training).",
)
@RUNS
@click.option("--live", is_flag=True, help="Run the teachers on the few images whose features are pictured, too.")
@JSON
def report(
    names: tuple[Path, ...], out: Path, places: tuple[Path | str, ...], runs: Path, live: bool, as_json: bool
) -> None:
    """Write one self-contained page on a study, or on RUNS: what won, by how much, what it cost, how it was made.

    Of a study that still runs, or of a stage 1 alone, it shows what is there and says what is missing.
    """
    from pipeline import api

    found = api.report(list(names), to=out, live=live, out=places, runs=runs)
    show(found, as_json, lambda r: r["report"])


@click.command()
@click.argument("names", metavar="STUDY_OR_RUNS...", nargs=-1, required=True, type=PATH)
@click.option("--every", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Look once, and end.")
@RUNS
@JSON
def watch(names: tuple[Path, ...], every: float, once: bool, runs: Path, as_json: bool) -> None:
    """Show a study's runs while they train: step, rate, loss, scores and time left, until all have ended.

    With --once, with --json, or if stdout is no terminal, the table is printed once.
    """
    from rich.console import Console

    from pipeline.report import watch as table
    from pipeline.runs import Places

    where = Places(runs=runs)
    if not (once or as_json) and Console().is_terminal:
        table.watch(names, where, every)
        return
    rows = table.watched(names, where)
    if as_json:
        show(table.as_json(rows), True, str)
    else:
        Console(width=None if Console().is_terminal else 160).print(table.as_table(", ".join(map(str, names)), rows))
