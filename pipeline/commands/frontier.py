"""`sak frontier`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import JSON, PATH, WHERE, show


@click.command()
@click.argument("sources", nargs=-1, required=True, type=WHERE)
@click.option("--teacher", help="The teacher to measure, where SOURCE is a cache.")
@click.option(
    "--level",
    "levels",
    type=click.IntRange(0),
    multiple=True,
    help="A level to measure, where SOURCE is a cache (repeatable: several are coded as one group).",
)
@click.option(
    "--fidelity",
    "fidelities",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    default=(0.995,),
    show_default=True,
    help="Token cosine for codecs with a rate (repeatable).",
)
@click.option("--probes", is_flag=True, help="Measure what tasks lose, by linear heads on a labelled cache.")
@click.option("--save", type=PATH, help="Folder for every setting's coded and decoded rows.")
@JSON
def frontier(
    sources: tuple[Path | str, ...],
    teacher: str | None,
    levels: tuple[int, ...],
    fidelities: tuple[float, ...],
    probes: bool,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure how many bits per value every codec takes at a token cosine of --fidelity.

    SOURCES are caches or .npy arrays (rows, tokens, width); several are levels of one teacher, row for row. Codecs are
    fitted on one half of the rows and reported on the other. Speeds are of one core; decoding is bytes to integers.
    """
    from pipeline.maintenance.frontier import frontier as measure
    from pipeline.maintenance.frontier import frontier_text, read_probing, read_source

    read = [read_source(where, teacher, level) for where in sources for level in levels or (None,)]
    probing = read_probing(sources[0], read) if probes else None
    show(measure(read, fidelities, save, probing), as_json, frontier_text)
