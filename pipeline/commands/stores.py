"""`sak info` and `sak verify`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.options import JSON, WHERE, show


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
