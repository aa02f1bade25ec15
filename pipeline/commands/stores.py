"""`sak info`, `sak verify`, `sak repair` and `sak drop`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import CODE, DRY, JSON, PATH, WEIGHTS, WHERE, paths_by_name, show

ROOT = click.option("--root", type=PATH, help="Folder of the data set, for damaged pixels and labels.")
DEVICE = click.option("--device", default="auto", show_default=True, help="Device that teachers run on.")


@click.command()
@click.argument("store", type=WHERE)
@JSON
def info(store: Path | str, as_json: bool) -> None:
    """Show what STORE holds, what of it is committed, its bytes, fidelity and provenance."""
    from pipeline.maintenance.inspect import info_text, store_info

    show(store_info(store), as_json, info_text)


@click.command()
@click.argument("store", type=WHERE)
@click.option("--live", type=click.IntRange(1), help="Compute N random rows of each teacher again, and compare.")
@click.option(
    "--probes",
    type=WHERE,
    metavar="own|CACHE",
    help="Measure what tasks lose on the stored rows; labelled rows are the store's own, or a cache's.",
)
@WEIGHTS
@DEVICE
@CODE
@JSON
def verify(store: Path | str, weights: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Check every digest and checksum of STORE; exit code 1 if anything is wrong."""
    from pipeline.maintenance import inspect

    result = inspect.verify(store, weights=paths_by_name(weights), **options)
    show(result, as_json, inspect.verify_text)
    if not inspect.is_well(result):
        sys.exit(1)


@click.command()
@click.argument("store", type=WHERE)
@ROOT
@WEIGHTS
@DEVICE
@CODE
@DRY
@JSON
def repair(store: Path | str, weights: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Make again what is damaged in STORE, byte for byte; exit code 1 if something cannot be."""
    from pipeline.maintenance.repair import RepairRequest, repair_store, repair_text

    result = repair_store(store, RepairRequest(weights=paths_by_name(weights), **options))
    show(result, as_json, repair_text)
    if result["left"]:
        sys.exit(1)


@click.command()
@click.argument("store", type=WHERE)
@click.option("--teacher", help="The teacher to drop; with --views, only its last views.")
@click.option("--views", type=click.IntRange(1), help="Drop the last N views.")
@click.option("--yes", is_flag=True, help="Do not ask before dropping.")
@DRY
@JSON
def drop(store: Path | str, teacher: str | None, views: int | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Take a teacher or the last views out of STORE."""
    from pipeline.maintenance.drop import DropRequest, drop_text
    from pipeline.maintenance.drop import drop as run

    show(run(store, DropRequest(teacher, views, yes, dry_run)), as_json, drop_text)
