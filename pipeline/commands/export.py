"""`sak export`, `sak predict`: take a trained student elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import DRY, JSON, PATH, RUNS, asking, show


@click.command()
@click.argument("run", metavar="RUN_OR_FOLDER_OR_HUB_ID")
@click.argument("out", type=PATH)
@click.option("--onnx", is_flag=True, help="Write model.onnx, too: pixels in, raw outputs out, any batch.")
@click.option("--torch-export", is_flag=True, help="Write model.pt2, too: a torch.export program.")
@click.option(
    "--size", metavar="HxW", help="Size of images for --onnx and --torch-export; by default that of the training views."
)
@click.option("--half", is_flag=True, help="Keep the weights as fp16: half the bytes. Computing stays in fp32.")
@click.option("--push", metavar="OWNER/NAME", help="Upload the folder to the Hugging Face hub, too.")
@click.option("--public", is_flag=True, help="If --push makes a repository, make it public, not private.")
@click.option(
    "--licence",
    metavar="NAME",
    help="The student's licence, for its card; by default what its teachers' licences allow.",
)
@click.option("--yes", is_flag=True, help="Do not ask where --licence allows more than the teachers' licences.")
@RUNS
@JSON
def export(run: str, out: Path, yes: bool, as_json: bool, **options: Any) -> None:
    """Write a trained student as a folder that `Student.from_pretrained` and `sak predict` load."""
    from pipeline import api

    result = api.export(run, out, confirm=asking(yes), **options)
    show(result, as_json, lambda r: r.get("pushed", r["folder"]))


@click.command()
@click.argument("sources", nargs=-1, required=True, type=PATH)
@click.option("--model", required=True, metavar="RUN_OR_FOLDER_OR_HUB_ID", help="A run, an exported folder, a hub id.")
@click.option("--out", type=PATH, required=True, help="Folder for the pictures.")
@click.option(
    "--size", type=click.IntRange(8), help="Longer side, px, that larger images are scaled down to before predicting."
)
@click.option(
    "--tile", type=click.IntRange(8), help="Longest side, px, seen whole; by default twice that of the training views."
)
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take each N-th frame of a video.")
@click.option("--raw", is_flag=True, help="Write the arrays, too: raw/NAME.npz, an array a task.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Images seen at once.")
@click.option("--overwrite", is_flag=True, help="Predict again what is there already.")
@RUNS
@DRY
@JSON
def predict(sources: tuple[Path, ...], model: str, out: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Draw a student's predictions for SOURCES: images of any size, folders of images, videos."""
    from pipeline import api
    from pipeline.prediction.predict import predict_text

    result = api.predict(sources, model, out, dry_run=dry_run, **options)
    show(result, as_json, _would if dry_run else predict_text)


def _would(planned: dict[str, Any]) -> str:
    return f"would predict {planned['images'] - planned['already_there']}"
