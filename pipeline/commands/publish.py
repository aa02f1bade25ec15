"""`sak publish` and `sak join`: caches handed out, and made whole by those who get them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import DRY, JSON, PATH, WHERE, asking, show


@click.command()
@click.argument("stores", nargs=-1, required=True, type=WHERE)
@click.argument("target", type=WHERE)
@click.option("--without-pixels", is_flag=True, help="Features alone, with ids and digests of images: see sak join.")
@click.option("--data-licence", metavar="NAME", help="Licence of images and labels, such as CC-BY-4.0.")
@click.option("--yes", is_flag=True, help="Do not ask before copying.")
@DRY
@JSON
def publish(
    stores: tuple[Path | str, ...], target: Path | str, without_pixels: bool, yes: bool, as_json: bool, **options: Any
) -> None:
    """Copy STORES, stores or folders of stores, to where others read them: TARGET, a folder or an address.

    First the licences of data set and teachers are shown side by side, and what they let others do; then it asks. A
    card (README.md) and a catalogue are written beside the stores. What was interrupted goes on with the same command.
    """
    from pipeline import api
    from pipeline.maintenance.publish import publish_text

    result = api.publish(stores, target, pixels=not without_pixels, confirm=asking(yes), **options)
    show(result, as_json, publish_text)


@click.command()
@click.argument("features", type=WHERE)
@click.option("--root", type=PATH, help="Folder of the data set, where it has one.")
@click.option("--out", type=WHERE, help="Folder of caches for the whole stores; by default they stay where they are.")
@JSON
def join(features: Path | str, root: Path | None, out: Path | str | None, as_json: bool) -> None:
    """Render what was left out of FEATURES, a store published without pixels (or a folder of such), from the data set.

    Every image is compared with its recorded digest; the result is the store that was published, byte for byte, with
    its images. Exit code 1 if images are missing or have changed: each is named, and the same command goes on.
    """
    from pipeline import api
    from pipeline.maintenance.join import is_joined, join_text

    result = api.join(features, root, out)
    show(result, as_json, join_text)
    if not is_joined(result):
        sys.exit(1)
