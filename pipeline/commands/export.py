"""`sak export`, `sak predict`: take a trained student elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

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
@click.option("--licence", metavar="NAME", help="Of the student, on its card; what its teachers' allow if absent.")
@click.option("--yes", is_flag=True, help="Do not ask where --licence allows more than the teachers' licences.")
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
    licence: str | None,
    yes: bool,
    runs: Path,
    as_json: bool,
) -> None:
    """Write a trained student as a folder that `Student.from_pretrained` and `sak predict` load."""
    from pipeline import api

    def confirm(question: str) -> bool:
        return yes or (sys.stdin.isatty() and click.confirm(question, err=True))

    result = api.export(
        run,
        out,
        onnx=onnx,
        torch_export=torch_export,
        size=size,
        half=half,
        push=model_id,
        public=public,
        licence=licence,
        confirm=confirm,
        runs=runs,
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
    from pipeline.export.models import open_model
    from pipeline.prediction.predict import Settings, plan, predict_text
    from pipeline.prediction.predict import predict as run
    from pipeline.prediction.sources import open_sources

    found = open_sources(sources, every)
    settings = Settings(size=size, tile=tile, raw=raw, batch_size=batch_size, overwrite=overwrite)
    loaded = open_model(model, runs)
    if dry_run:
        show(plan(loaded, found, out, settings), as_json, lambda p: f"would predict {p['images'] - p['already_there']}")
        return
    show(run(loaded, found, out, settings), as_json, predict_text)
