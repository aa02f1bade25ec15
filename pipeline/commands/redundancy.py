"""`sak redundancy`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import JSON, WHERE, show


@click.command()
@click.argument("store", type=WHERE)
@click.option("--rows", type=click.IntRange(1), default=200, show_default=True, help="Images to take, at most.")
@JSON
def redundancy(store: Path | str, rows: int, as_json: bool) -> None:
    """Measure how much of each teacher's features in STORE follows linearly from the other teachers'.

    Near 1, the others hold it already, and the teacher adds little. It is the R² of a ridge regression per level,
    scored on images that it was not fitted on.
    """
    from cache.store import Store
    from pipeline.studies.redundancy import redundancy as measure
    from pipeline.studies.redundancy import redundancy_text

    show(measure(Store.open(store), rows), as_json, redundancy_text)
