"""`sak boundary`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import JSON, PATH, show


@click.command()
@click.argument("predictions", type=PATH)
@click.argument("truths", type=PATH)
@click.option(
    "--max-dist",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.0075,
    show_default=True,
    help="How far apart matched pixels may be, as a share of the diagonal: 0.0075 on BSDS and PASCAL-Context, "
    "0.011 on NYUD-v2.",
)
@click.option(
    "--thresholds",
    type=click.IntRange(1),
    default=99,
    show_default=True,
    help="Number of thresholds N, at k/(N+1) for k = 1..N.",
)
@click.option(
    "--nms", "suppress", is_flag=True, help="Non-maximum suppression before thinning, as published scores have it."
)
@click.option("--workers", type=click.IntRange(1), help="Images scored side by side; all cores when absent.")
@JSON
def boundary(predictions: Path, truths: Path, as_json: bool, **options: Any) -> None:
    """Score the boundary maps of folder PREDICTIONS against the annotations of folder TRUTHS, as BSDS does.

    Predictions are 8-bit grey PNGs, NAME.png, 255 being 1. Annotations are PNGs of the same names (boundaries where
    not 0), or several an image: NAME.mat as BSDS has them, or numbered PNGs (NAME-1.png ..., or NAME/1.png ...).
    """
    from pipeline.boundary_scores import BoundaryRequest, score_folders, scores_text

    show(score_folders(predictions, truths, BoundaryRequest(**options)), as_json, scores_text)
