"""`sak copy`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import DRY, JSON, WHERE, numbers, show


@click.command()
@click.argument("source", type=WHERE)
@click.argument("target", type=WHERE)
@click.option("--recipe", help="Just the stores, teachers and views that RECIPE reads.")
@click.option("--teacher", "teachers", help="Just these teachers, comma-separated.")
@click.option(
    "--levels",
    help="Just these levels of each teacher (0 = shallowest), and those they are coded against.",
)
@click.option("--views", type=click.IntRange(1), help="Just the first N views.")
@DRY
@JSON
def copy(
    source: Path | str,
    target: Path | str,
    recipe: str | None,
    teachers: str | None,
    levels: str | None,
    views: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy SOURCE, a store or a folder of stores, into the folder of caches TARGET.

    Either may be an address such as s3://bucket/features. Digests are checked on the way; what was interrupted
    goes on with the same command. A copy of some levels or views is a store of its own. SOURCE may also lie behind
    a web server, https://host/features, by the catalogue.json that is written beside the copies. Either may be on the
    Hugging Face hub, hf://datasets/OWNER/NAME/folder; a new repository is private.
    """
    from pipeline.maintenance.copy_caches import CopyRequest, copy_text
    from pipeline.maintenance.copy_caches import copy as run

    names = tuple(name.strip() for name in teachers.split(",") if name.strip()) if teachers is not None else None
    request = CopyRequest(source, target, recipe, names, numbers("--levels", levels), views)
    show(run(request, dry_run), as_json, copy_text)
