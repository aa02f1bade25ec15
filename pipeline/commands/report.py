"""`sak report`, `sak watch`: a study as a page, and as a table while it runs."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import JSON, RUNS, WHERE, show


@click.command()
@click.argument("names", metavar="STUDY_OR_RUNS...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="The page's file."
)
@click.option(
    "--features", type=WHERE, default="features", show_default=True, help="Folder of the caches, or an address."
)
@RUNS
@click.option("--live", is_flag=True, help="Run the teachers on the few images whose features are pictured, too.")
@JSON
def report(names: tuple[Path, ...], out: Path, features: Path | str, runs: Path, live: bool, as_json: bool) -> None:
    """Write one self-contained page on a study, or on RUNS: what won, by how much, what it cost, how it was made.

    Of a study that still runs, or of a stage 1 alone, it shows what is there and says what is missing.
    """
    from pipeline import api

    found = api.report(list(names), to=out, live=live, out=features, runs=runs)
    show(found, as_json, lambda r: r["report"])
