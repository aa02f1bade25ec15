"""`sak export`, `sak predict`: take a trained student elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import JSON, RUNS, show


@click.command()
@click.argument("run")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--push", "model_id", metavar="OWNER/NAME", help="Upload the folder to the Hugging Face hub, too.")
@click.option("--public", is_flag=True, help="Make a new repository of the hub public; private otherwise.")
@RUNS
@JSON
def export(run: str, out: Path, model_id: str | None, public: bool, runs: Path, as_json: bool) -> None:
    """Write the student of RUN as a folder that `Student.from_pretrained` and `sak predict` load."""
    from pipeline.export import export as write
    from pipeline.export import push
    from pipeline.models import open_model

    model = open_model(run, runs)
    result = write(model, out, model_id)
    if model_id:
        result["pushed"] = push(out, model_id, public)
    show(result, as_json, lambda r: r.get("pushed", r["folder"]))
