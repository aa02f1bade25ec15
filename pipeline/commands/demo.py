"""`sak demo`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import JSON, PATH, show


@click.command()
@click.option(
    "--out", "folder", type=PATH, default=Path("demo"), show_default=True, help="Folder of its caches and runs."
)
@click.option("--small", is_flag=True, help="A trial of every step: seconds, not minutes; its scores mean nothing.")
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Teachers, then runs, side by side."
)
@JSON
def demo(folder: Path, small: bool, workers: int, as_json: bool) -> None:
    """Run every step on rendered rooms: cache, distil, fine-tune, compare, pictures."""
    from pipeline.demo import demo_text, run_demo

    show(run_demo(folder, small=small, workers=workers), as_json, demo_text)
