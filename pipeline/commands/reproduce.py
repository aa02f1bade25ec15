"""`sak reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import JSON, PATH, show


@click.command()
@click.argument("studies", nargs=-1)
@click.option(
    "--folder", type=PATH, default=Path("reproduction"), show_default=True, help="Folder of the caches and runs."
)
@click.option("--docs", type=PATH, default=Path("docs/reproduction"), show_default=True, help="Folder for the records.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Runs side by side.")
@click.option(
    "--share-reads", type=click.IntRange(1), default=1, show_default=True, help="Runs per worker, on one read."
)
@click.option("--small", is_flag=True, help="A trial of every step in seconds; its numbers mean nothing.")
@JSON
def reproduce(studies: tuple[str, ...], folder: Path, docs: Path, as_json: bool, **options: Any) -> None:
    """Run the published STUDIES again, all by default: claim, parts, views, scale, rivals, proxy, lora.

    Caches and runs lie below --folder; tables, JSON and a report of each go to --docs. What is interrupted goes on with
    the same command.
    """
    from pipeline import api
    from pipeline.studies.record_page import page
    from pipeline.studies.reproduce import reproduce as run

    def text(found: list[dict[str, Any]]) -> str:
        return "\n".join(page(one) for one in found)

    found = run(studies, folder, docs, **options)
    for one in found:
        name = one["study"]["name"]
        api.report(folder / "runs" / name, to=docs / f"{name}.html", out=folder / "features", runs=folder / "runs")
    show(found, as_json, text)
