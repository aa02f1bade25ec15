"""`sak teachers`."""

from __future__ import annotations

import click

from pipeline.commands.options import CODE, JSON, show


@click.command()
@click.argument("names", nargs=-1)
@click.option("--size", help="S or HxW of the views in px, 384 when absent.")
@CODE
@JSON
def teachers(names: tuple[str, ...], size: str | None, allow_code: bool, as_json: bool) -> None:
    """List teachers: levels, width, grid, preprocessing, native size, licence, parameters and cost per image.

    Without NAMES, all that have a name here; any other goes by LIBRARY:MODEL (timm:resnet50,
    open_clip:ViT-B-32/openai, sam:vit_l, hf:ID).
    """
    from pipeline.extraction.teacher_list import list_teachers, teachers_text

    show(list_teachers(names, size, allow_code), as_json, teachers_text)
