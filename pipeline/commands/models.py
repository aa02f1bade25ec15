"""`sak params`, `sak import-reference`, `sak export-reference`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import JSON, PATH, PLACES, RUNS, SET, show

if TYPE_CHECKING:
    from pipeline.recipes.config import Stage


@click.command()
@click.argument("name", metavar="RECIPE_OR_RUN")
@click.option(
    "--stage", type=click.Choice(["distill", "finetune"]), help="The recipe's stage to count; its last one by default."
)
@SET
@PLACES
@RUNS
@JSON
def params(
    name: str,
    stage: Stage | None,
    assignments: tuple[str, ...],
    places: tuple[Path | str, ...],
    runs: Path,
    as_json: bool,
) -> None:
    """Count the parameters of a recipe's or a run's model, and its multiply-adds per image, by part."""
    from pipeline import api
    from pipeline.export.params import params_text, recipe_parameters, run_parameters
    from pipeline.recipes.config import parse_set

    run = next((path for path in (Path(name), runs / name) if (path / "model.json").is_file()), None)
    if run is not None:
        counts = run_parameters(run)
    else:
        counts = recipe_parameters(name, stage, parse_set(assignments), api.places(places, runs))
    show(counts, as_json, params_text)


@click.command("import-reference")
@click.argument("checkpoint", type=PATH)
@click.argument("out", type=PATH)
@click.option("--size", metavar="HxW", help="Image size of the position embedding, where its length does not tell.")
@JSON
def import_reference(checkpoint: Path, out: Path, size: str | None, as_json: bool) -> None:
    """Read a checkpoint of SAK's (stage 1 or 2), InvPT's or MLoRE's release into the folder OUT."""
    from pipeline.export.reference_checkpoint import import_checkpoint
    from pipeline.recipes.stores import parse_size

    result = import_checkpoint(checkpoint, out, parse_size(size) if size else None)
    show(result, as_json, lambda r: f"{out}: {r['arm']}, {r['stage']}, teachers {', '.join(r['teachers']) or 'none'}")


@click.command("export-reference")
@click.argument("run", type=PATH)
@click.argument("out", type=PATH)
@RUNS
@JSON
def export_reference(run: Path, out: Path, runs: Path, as_json: bool) -> None:
    """Write a student under the names of the authors' release, as a file for torch.load."""
    from pipeline.export.reference_checkpoint import export_checkpoint

    source = run if run.exists() else runs / run
    show(export_checkpoint(source, out), as_json, lambda r: f"{r['file']}: {r['entries']} entries of {r['stage']}")
