"""`sak miniature`: train the miniature teachers and the stem again, or probe the teachers."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import JSON, PATH, show


@click.group()
def miniature() -> None:
    """The miniature teachers and stem: train them again, or probe the teachers."""


@miniature.command("train")
@click.argument("name")
@click.option(
    "--out", type=PATH, default=Path("runs/miniatures"), show_default=True, help="Folder for weights, card and log."
)
@click.option("--steps", type=click.IntRange(1), help="Length of the run; by default as the weights that ship.")
@click.option(
    "--scenes", "num_scenes", type=click.IntRange(64), default=8000, show_default=True, help="How many are rendered."
)
def miniature_train(name: str, out: Path, steps: int | None, num_scenes: int) -> None:
    """Train a miniature teacher or the stem, mini-vit, again, from rendered scenes; goes on where it stopped."""
    from pipeline.console import say
    from pipeline.miniature.trainer import train

    print(train(name, out, num_scenes=num_scenes, num_steps=steps, report=say))


@miniature.command("probe")
@click.option(
    "--out", type=PATH, default=Path("runs/miniatures/probe"), show_default=True, help="Folder for the scores."
)
@JSON
def miniature_probe(out: Path, as_json: bool) -> None:
    """Score the miniature teachers' frozen features under one head on all six tasks."""
    from pipeline.console import say
    from pipeline.miniature.probe import probe, render_table

    show(probe(out=out, report=say), as_json, render_table)
