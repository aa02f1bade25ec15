"""`sak cache` and `sak plan`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import CODE, DRY, FEATURES, JSON, numbers, show
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.extraction.request import CacheRequest

_OPTIONS = (
    click.option("--teacher", "teachers", default="", help="Names, comma-separated; none prepares pixels and labels."),
    click.option("--dataset", default="rooms", show_default=True),
    click.option("--split", default="train", show_default=True),
    click.option("--root", type=click.Path(path_type=Path), help="Folder of the data set, where it has one."),
    click.option("--size", help="S or HxW in px; the data set's own when absent."),
    click.option("--views", type=click.IntRange(1), help="Views a sample; 4 for training splits, 1 for val and test."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the views."),
    click.option("--limit", type=click.IntRange(1), help="The first N samples, as a store of its own."),
    click.option(
        "--codec", default="fp16", show_default=True, help="fp32, fp16, bf16, int8, int4, klt, klt+pcodec, klt+trellis."
    ),
    click.option(
        "--fidelity",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Token cosine that is promised, plain and with the mean removed; klt finds the fewest bits (0.995).",
    ),
    click.option(
        "--predict-levels", is_flag=True, help="Code each level against the one below: fewer bits, read as one."
    ),
    click.option("--levels", help="Block numbers, comma-separated; four evenly spaced when absent."),
    click.option("--prefix", is_flag=True, help="Class and register tokens, too, of teachers that have them."),
    click.option("--grid", default="native", show_default=True, help="hxw cells, area-averaged, or native."),
    click.option("--weights", type=click.Path(path_type=Path), help="The teacher's weights (.safetensors or .pth)."),
    click.option("--random-weights", is_flag=True, help="Run untrained towers, for trials; recorded in the store."),
    CODE,
    click.option("--device", default="auto", show_default=True),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
        show_default=True,
        help="Of the teacher: fp32, or automatic mixed precision.",
    ),
    click.option("--compile", is_flag=True, help="Run teachers through torch.compile."),
    click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True),
    click.option("--threads", type=click.IntRange(1), help="CPU threads of the teacher; torch's own when absent."),
    click.option("--decoders", type=click.IntRange(0), help="Processes that decode images; all cores when absent."),
    click.option("--strict", is_flag=True, help="Stop at the first unreadable sample."),
    FEATURES,
    JSON,
)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options that `sak cache` and `sak plan` share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def cache_request(options: Mapping[str, Any]) -> CacheRequest:
    """What the command line's options ask for, checked. Raises `UserError` for values that cannot be."""
    from pipeline.extraction.request import TRAINING_VIEWS, CacheRequest, TeacherOptions
    from pipeline.extraction.samples import DatasetRequest
    from pipeline.recipes.stores import parse_size

    teachers = tuple(name.strip() for name in options["teachers"].split(",") if name.strip())
    split = options["split"]
    evaluation = split in ("val", "test")
    views = options["views"] or (1 if evaluation else TRAINING_VIEWS)
    if evaluation and views != 1:
        raise UserError(f"split {split} has one padded evaluation view; leave VIEWS out")
    if options["weights"] and len(teachers) != 1:
        raise UserError("--weights FILE goes with exactly one teacher")
    source = DatasetRequest(
        options["dataset"],
        split,
        parse_size(options["size"]) if options["size"] else None,
        options["root"],
        options["limit"],
        options["seed"],
    )
    asked = TeacherOptions(
        codec=options["codec"],
        fidelity=options["fidelity"],
        predict_levels=options["predict_levels"],
        levels=numbers("--levels", options["levels"]),
        prefix=options["prefix"],
        grid=None if options["grid"] == "native" else parse_size(options["grid"]),
        weights=options["weights"],
        random_weights=options["random_weights"],
        allow_code=options["allow_code"],
        device=options["device"],
        precision=options["precision"],
        compile=options["compile"],
        batch_size=options["batch_size"],
        threads=options["threads"],
    )
    scheduler, workers = options.get("scheduler"), options.get("workers", 0)
    if scheduler and workers:
        raise UserError("--scheduler uses the workers that are there; leave --workers out")
    return CacheRequest(
        source,
        teachers,
        views,
        options["features"],
        asked,
        decoders=options["decoders"],
        strict=options["strict"],
        dry_run=options["dry_run"],
        scheduler=scheduler,
        workers=workers,
    )


@click.command()
@_with_options
@DRY
@click.option("--workers", type=click.IntRange(0), default=0, help="Run on so many Dask workers on this machine.")
@click.option("--scheduler", help="Run on the workers of this Dask scheduler, such as tcp://10.0.0.1:8786.")
def cache(as_json: bool, **options: Any) -> None:
    """Run teachers once over a data set and store their features."""
    from pipeline.extraction.caching import run_cache

    result = run_cache(cache_request(options))
    show(result, as_json, lambda r: f"{r['store']}  {r['rows']} rows, {', '.join(r['teachers']) or 'no teachers'}")


@click.command()
@_with_options
def plan(as_json: bool, **options: Any) -> None:
    """What `sak cache` with these options would write, hold and take; nothing of it is done."""
    from pipeline.extraction.plan import plan, plan_text

    # all that this process has done so far a run does, too
    show(plan(cache_request({**options, "dry_run": True}), time.process_time()), as_json, plan_text)
