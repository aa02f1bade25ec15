"""`sak info`, `sak verify` and `sak repair`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.options import DRY, JSON, WHERE, show

ROOT = click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of the data set, for damaged pixels and labels."
)
WEIGHTS = click.option(
    "--weights", multiple=True, metavar="TEACHER=FILE", help="A teacher's weights, where it was extracted with a file."
)
DEVICE = click.option("--device", default="auto", show_default=True, help="Where teachers run.")


def weights_by_teacher(given: tuple[str, ...]) -> dict[str, Path]:
    """``--weights TEACHER=FILE`` options as teacher -> file."""
    pairs = [text.partition("=") for text in given]
    if bad := [text for text, (name, _, file) in zip(given, pairs, strict=True) if not (name and file)]:
        raise click.BadParameter(f"{bad[0]!r}: expected TEACHER=FILE, for example dinov2=dinov2.safetensors")
    return {name: Path(file) for name, _, file in pairs}


@click.command()
@click.argument("store", type=WHERE)
@JSON
def info(store: Path | str, as_json: bool) -> None:
    """What STORE holds, what of it is committed, its bytes, fidelity and provenance."""
    from pipeline.inspect import info_text, store_info

    show(store_info(store), as_json, info_text)


@click.command()
@click.argument("store", type=WHERE)
@JSON
def verify(store: Path | str, as_json: bool) -> None:
    """Check every digest and checksum of STORE; exit code 1 if anything is damaged."""
    from pipeline.inspect import verify_text, verify_with_progress

    result = verify_with_progress(store)
    show(result, as_json, verify_text)
    if result["problems"]:
        sys.exit(1)


@click.command()
@click.argument("store", type=WHERE)
@ROOT
@WEIGHTS
@DEVICE
@DRY
@JSON
def repair(
    store: Path | str, root: Path | None, weights: tuple[str, ...], device: str, dry_run: bool, as_json: bool
) -> None:
    """Make again what is damaged in STORE, byte for byte; exit code 1 if something cannot be."""
    from pipeline.repair import RepairRequest, repair_store, repair_text

    result = repair_store(store, RepairRequest(root, weights_by_teacher(weights), device, dry_run))
    show(result, as_json, repair_text)
    if result["left"]:
        sys.exit(1)
