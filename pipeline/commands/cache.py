"""`sak cache` and `sak plan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import CODE, DRY, IMAGES, JSON, OUT, PATH, PLACES, SET, WHERE, numbers, show
from pipeline.errors import UserError

_OPTIONS = (
    click.option(
        "--teacher",
        "teachers",
        default="",
        help="Names of teachers, comma-separated; without any, only pixels and labels are cached.",
    ),
    click.option("--dataset", default="rooms", show_default=True, help="A data set of docs/datasets.md."),
    click.option("--split", default="train", show_default=True, help="Split of the data set."),
    click.option("--root", type=PATH, help="Folder of the data set, where it has one."),
    IMAGES,
    click.option("--size", help="S or HxW in px; the data set's own when absent."),
    click.option(
        "--views", type=click.IntRange(1), help="Views per sample; by default 4 in training splits, 1 in val and test."
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the views."),
    click.option("--limit", type=click.IntRange(1), help="Only the first N samples, in a store of their own."),
    click.option(
        "--codec", default="fp16", show_default=True, help="fp32, fp16, bf16, int8, int4, klt, klt+pcodec, klt+trellis."
    ),
    click.option(
        "--fidelity",
        metavar="COSINE|TASK=LOSS,...",
        help="What to promise: a token cosine such as 0.995, plain and with the channel mean removed, or the most that "
        "tasks may lose by probes, in their own units; klt finds the fewest bits for it.",
    ),
    click.option(
        "--standardized",
        is_flag=True,
        help='Keep the promise for standardized channels, too: for recipes with loss.balance = "standardize".',
    ),
    click.option(
        "--predict-levels",
        is_flag=True,
        help="Code each level against the one below: fewer bits, but no level is read alone.",
    ),
    click.option("--levels", help="Numbers of the blocks to keep, comma-separated; by default four, evenly spaced."),
    click.option("--prefix", is_flag=True, help="Keep class and register tokens, too, where a teacher has them."),
    click.option(
        "--grid",
        default="native",
        show_default=True,
        help="Cells to keep, such as 24x24 (averaged over areas), or native.",
    ),
    click.option(
        "--probes",
        type=WHERE,
        metavar="own|CACHE",
        help="Measure what tasks lose to the codec, by linear heads on labelled rows: the store's own, or a cache's.",
    ),
    click.option(
        "--weights",
        type=PATH,
        metavar="FILE[::KEY]",
        help="The teacher's weights (.safetensors or .pth), under any wrapper or prefix; KEY chooses if several fit.",
    ),
    click.option("--random-weights", is_flag=True, help="Run untrained towers, for trials; recorded in the store."),
    CODE,
    click.option("--device", default="auto", show_default=True, help="Device that teachers run on."),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
        show_default=True,
        help="How teachers compute; bf16 and fp16 by automatic mixed precision.",
    ),
    click.option("--compile", is_flag=True, help="Run teachers through torch.compile."),
    click.option(
        "--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Views a teacher sees at once."
    ),
    click.option("--threads", type=click.IntRange(1), help="CPU threads of the teacher; torch's own when absent."),
    click.option("--decoders", type=click.IntRange(0), help="Processes that decode images; all cores when absent."),
    click.option("--strict", is_flag=True, help="Stop at the first unreadable sample."),
    JSON,
)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options that `sak cache` and `sak plan` share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The command line's options as `pipeline.api.cache` takes them."""
    return {**options, "levels": numbers("--levels", options["levels"])}


@click.command()
@_with_options
@OUT
@DRY
@click.option("--workers", type=click.IntRange(0), default=0, help="Run on N Dask workers on this machine.")
@click.option("--scheduler", help="Run on the workers of this Dask scheduler, such as tcp://10.0.0.1:8786.")
def cache(dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run teachers once over a data set and store their features."""
    from pipeline import api

    if dry_run:
        from pipeline.extraction import caching

        result = caching.dry_run(api.cache_request(**_asked(options)))
    else:
        made = asdict(api.cache(**_asked(options)))
        result = {"store": made.pop("path"), **made}
    show(result, as_json, lambda r: f"{r['store']}  {r['rows']} rows, {', '.join(r['teachers']) or 'no teachers'}")


@click.command()
@click.argument("recipe", required=False)
@_with_options
@PLACES
@click.option(
    "--stage",
    type=click.Choice(["distill", "finetune"]),
    default="distill",
    show_default=True,
    help="The recipe's stage to plan.",
)
@SET
@click.pass_context
def plan(
    context: click.Context,
    /,
    as_json: bool,
    recipe: str | None,
    stage: Any,
    assignments: tuple[str, ...],
    places: tuple[Path | str, ...],
    **options: Any,
) -> None:
    """Say what `sak cache` with these options would write, hold and take; nothing is written.

    With RECIPE, say what a training would read and take, measured by a few of its steps; nothing of it is kept.
    """
    from pipeline import api
    from pipeline.extraction.plan import plan_text

    others = {"recipe", "stage", "assignments"} if recipe is None else set(options)
    if given := [name for name in others if name != "recipe" and _is_given(context, name)]:
        named = ", ".join(f"--{_WORDS.get(name, name).replace('_', '-')}" for name in sorted(given))
        what = "a training is planned from RECIPE: name one" if recipe is None else "a cache's, not a training's"
        raise UserError(f"{named}: {what}, or leave it out")
    if recipe is None:
        if len(places) > 1:
            raise UserError(f"--out {places[1]}: a cache is written to one place; several are for a training's RECIPE")
        show(api.plan(**_asked({**options, "out": places[0]})), as_json, plan_text)
        return
    from pipeline.recipes.config import parse_set
    from pipeline.studies.training_plan import training_plan_text

    planned = api.plan_training(recipe, stage, overrides=parse_set(assignments), out=places)
    show(planned, as_json, training_plan_text)


_WORDS = {"assignments": "set", "teachers": "teacher", "predict_levels": "predict-levels"}
"""Options by the names of their parameters, where these differ."""


def _is_given(context: click.Context, name: str) -> bool:
    """Whether the command line says an option, whatever it says."""
    return context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
