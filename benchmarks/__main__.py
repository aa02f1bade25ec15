"""``python -m benchmarks NAME [--quick] [--json]``: run one benchmark; the last thing printed is its JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from benchmarks import (
    block,
    boundary,
    copying,
    extract,
    frontier,
    frozen,
    live,
    opening,
    read,
    read_cold,
    read_small,
    step,
    together,
    write,
)
from benchmarks.harness import Result, table

BENCHMARKS: dict[str, Callable[[bool], Result]] = {
    "block": block.run,
    "boundary": boundary.run,
    "copy": copying.run,
    "extract": extract.run,
    "frozen": frozen.run,
    "frontier": frontier.run,
    "live": live.run,
    "open": opening.run,
    "read": read.run,
    "read-cold": read_cold.run,
    "read-small": read_small.run,
    "step": step.run,
    "together": together.run,
    "write": write.run,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", type=click.Choice([*sorted(BENCHMARKS), "all"]))
@click.option("--quick", is_flag=True, help="Less data and fewer rounds: at most 40 s.")
@click.option("--json", "as_json", is_flag=True, help="Only the JSON object on stdout; the table goes to stderr.")
def main(name: str, quick: bool, as_json: bool) -> None:
    """Run the benchmark NAME, or all of them: its sides take turns in one run; medians with ranges."""
    for one in sorted(BENCHMARKS) if name == "all" else [name]:
        result = BENCHMARKS[one](quick)
        click.echo(table(result), err=as_json)
        click.echo(json.dumps(result.to_dict()))


if __name__ == "__main__":
    main()
