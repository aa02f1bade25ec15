"""Options that several commands share, and how they show their results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UserError


class Where(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """A path, or an address such as ``s3://bucket/features``, which stays text: pathlib would fold its slashes."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        return value if isinstance(value, Path) or "://" in value else Path(value)


WHERE = Where()
PATH = click.Path(path_type=Path)

OUT = click.option(
    "--out",
    type=WHERE,
    default="features",
    show_default=True,
    help="Folder of the caches, or an address such as s3://bucket/features.",
)
PLACES = click.option(
    "--out",
    "places",
    type=WHERE,
    multiple=True,
    default=("features",),
    show_default=True,
    help="Folder of the caches, or an address such as s3://bucket/features (repeatable: each teacher is read from the "
    "first place that has it whole).",
)
RUNS = click.option("--runs", type=PATH, default=Path("runs"), show_default=True, help="Folder of the runs.")
ROOTS = click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="[DATASET=]DIR",
    help="Folder of the data set, for recipes with source = 'live'; DATASET=DIR where the stages read different ones.",
)
WEIGHTS = click.option(
    "--weights",
    multiple=True,
    metavar="[TEACHER=]FILE[::KEY]",
    help="A teacher's file of weights, if it was cached with one (in training: for recipes with source = 'live').",
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, all else on stderr.")
DRY = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
DEVICES = click.option(
    "--devices",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes per machine, each with a GPU of its own where there are GPUs.",
)
NODES = click.option(
    "--nodes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Machines that run this command, each with its NODE_RANK; leave it out under torchrun and srun.",
)
WANDB = click.option("--wandb", is_flag=True, help="Log to Weights & Biases, too.")
IMAGES = click.option(
    "--images",
    help="Which of a sample's images is the input: endings in tars (jpg; rgb.png,rgb.jpg; all), a column in tables.",
)
CODE = click.option(
    "--allow-code",
    is_flag=True,
    help="Let teachers of your own, module:build or package.module:build, be imported and run.",
)
SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe (repeatable)."
)


def asking(yes: bool) -> Callable[[str], bool]:
    """Asks a question on a terminal: whether the answer is yes, which `yes` says beforehand."""
    return lambda question: yes or (sys.stdin.isatty() and click.confirm(question, err=True))


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """`0,3` as (0, 3), None as None; `UserError` for anything else."""
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r}: expected numbers such as 0,3") from None


def keywords(
    places: Sequence[Path | str], runs: Path, roots: Sequence[str] = (), weights: Sequence[str] = ()
) -> dict[str, Any]:
    """Where caches, runs and data sets lie, and the files of teachers' weights, as `pipeline.api` takes them."""
    return {"out": places, "runs": runs, "roots": paths_by_name(roots), "weights": paths_by_name(weights)}


def paths_by_name(given: Sequence[str]) -> dict[str, Path]:
    """``[NAME=]PATH`` options as name -> path; a path without a name is under ""."""
    return dict(map(_named_path, given))


def _named_path(text: str) -> tuple[str, Path]:
    """`nyud=data/nyud` as (nyud, data/nyud), `data/nyud` and `data/a=b` as they are, under ""."""
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and "/" not in name else ("", Path(text))


def show(result: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    """Print a command's result to stdout: one JSON value, or what `text` makes of it."""
    from pipeline.console import harmless, is_silent

    if is_silent():
        return
    print(json.dumps(result, indent=1) if as_json else harmless(text(result)))
