"""`sak data`: look at data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import IMAGES, JSON, PATH, show


@click.group()
def data() -> None:
    """Look at data sets."""


@data.command()
@click.argument("dataset", default="rooms")
@click.option("--split", default="train", show_default=True, help="Split of the data set.")
@click.option("--root", type=PATH, help="Folder of the data set, where it has one.")
@IMAGES
@click.option("--count", type=click.IntRange(1), default=8, show_default=True, help="How many samples are drawn.")
@click.option("--out", type=PATH, default=Path("preview.png"), show_default=True, help="The picture's file.")
def preview(dataset: str, split: str, root: Path | None, images: str | None, count: int, out: Path) -> None:
    """Draw a sheet of samples with every label beside them."""
    from pipeline.data.sheet import preview_sheet

    print(preview_sheet(dataset, split, root, count, out, images))


@data.command()
@click.argument("dataset", metavar="NAME_OR_DIR")
@click.option("--root", type=PATH, help="The data set's folder, where NAME_OR_DIR is a name.")
@IMAGES
@click.option("--split", "splits", multiple=True, help="Only this split (repeatable); all of them when absent.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N samples of each split.")
@click.option("--sheet", type=PATH, default=Path("data-check.png"), show_default=True, help="The contact sheet's file.")
@click.option("--workers", type=click.IntRange(1), help="Processes that read; all cores when absent.")
@JSON
def check(dataset: str, as_json: bool, **options: Any) -> None:
    """Read every sample of a data set: counts, sizes, label ranges, and a sheet with each label over its image.

    Files that are missing, unreadable, of another size than their image or with values out of range are listed with
    what was expected; the exit code is then 1.
    """
    from pipeline.data.check import check_dataset, check_text

    report = check_dataset(dataset, **options)
    show(report, as_json, check_text)
    if report["problems"]:
        sys.exit(1)
