"""`sak export`, `sak predict`: take a trained student elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import DRY, JSON, RUNS, show


@click.command()
@click.argument("run", metavar="RUN_OR_FOLDER_OR_HUB_ID")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--onnx", is_flag=True, help="Write model.onnx, too: pixels in, raw outputs out, any batch.")
@click.option("--torch-export", is_flag=True, help="Write model.pt2, too: a torch.export program.")
@click.option(
    "--size", metavar="HxW", help="Of the images of --onnx and --torch-export; the training views' if absent."
)
@click.option("--half", is_flag=True, help="Keep the weights as fp16: half the bytes; they are computed with in fp32.")
@click.option("--push", "model_id", metavar="OWNER/NAME", help="Upload the folder to the Hugging Face hub, too.")
@click.option("--public", is_flag=True, help="Make a new repository of the hub public; private otherwise.")
@RUNS
@JSON
def export(
    run: str,
    out: Path,
    onnx: bool,
    torch_export: bool,
    size: str | None,
    half: bool,
    model_id: str | None,
    public: bool,
    runs: Path,
    as_json: bool,
) -> None:
    """Write a trained student as a folder that `Student.from_pretrained` and `sak predict` load."""
    from pipeline import api

    result = api.export(
        run, out, onnx=onnx, torch_export=torch_export, size=size, half=half, push=model_id, public=public, runs=runs
    )
    show(result, as_json, lambda r: r.get("pushed", r["folder"]))


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="RUN_OR_FOLDER_OR_HUB_ID", help="A run, an exported folder, a hub id.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the pictures.")
@click.option("--size", type=click.IntRange(8), help="Scale larger images down to this longer side, px, to predict.")
@click.option(
    "--tile", type=click.IntRange(8), help="Longest side seen whole, px; twice that of the training views when absent."
)
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Of a video, each such frame.")
@click.option("--raw", is_flag=True, help="Write the arrays, too: raw/NAME.npz, an array a task.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--overwrite", is_flag=True, help="Predict what is there already anew.")
@RUNS
@DRY
@JSON
def predict(
    sources: tuple[Path, ...],
    model: str,
    out: Path,
    size: int | None,
    tile: int | None,
    every: int,
    raw: bool,
    batch_size: int,
    overwrite: bool,
    runs: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Draw a student's predictions for SOURCES: images, folders of images, videos; of any size."""
    from pipeline import api
    from pipeline.prediction.predict import predict_text

    settings = {"size": size, "tile": tile, "raw": raw, "batch_size": batch_size, "overwrite": overwrite}
    result = api.predict(sources, model, out, every=every, runs=runs, dry_run=dry_run, **settings)
    show(result, as_json, _would if dry_run else predict_text)


def _would(planned: dict[str, Any]) -> str:
    return f"would predict {planned['images'] - planned['already_there']}"
