"""`sak data`: look at data sets."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Look at data sets."""


@data.command()
@click.argument("dataset", default="rooms")
@click.option("--split", default="train", show_default=True)
@click.option("--root", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1), default=8, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("preview.png"), show_default=True)
def preview(dataset: str, split: str, root: Path | None, count: int, out: Path) -> None:
    """Draw a sheet of samples with every label beside them."""
    from pipeline.report import preview_sheet

    print(preview_sheet(dataset, split, root, count, out))
