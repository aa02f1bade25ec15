"""``python -m benchmarks NAME [--quick] [--json]``: run one benchmark; the last thing printed is its JSON object."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from benchmarks.harness import Result

MODULES = {
    "block": "block",
    "boundary": "boundary",
    "copy": "copying",
    "extract": "extract",
    "frozen": "frozen",
    "frontier": "frontier",
    "live": "live",
    "open": "opening",
    "read": "read",
    "read-cold": "read_cold",
    "read-small": "read_small",
    "shared-reads": "shared_reads",
    "staging": "staging",
    "step": "step",
    "write": "write",
}
"""Name to module, imported when it runs: the processes that a benchmark starts import this file again."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", type=click.Choice([*sorted(MODULES), "all"]))
@click.option("--quick", is_flag=True, help="Less data and fewer rounds: at most 40 s.")
@click.option("--json", "as_json", is_flag=True, help="Only the JSON object on stdout; the table goes to stderr.")
def main(name: str, quick: bool, as_json: bool) -> None:
    """Run the benchmark NAME, or all of them: its sides take turns in one run; medians with ranges."""
    from benchmarks.harness import table

    for one in sorted(MODULES) if name == "all" else [name]:
        result: Result = importlib.import_module(f"benchmarks.{MODULES[one]}").run(quick)
        click.echo(table(result), err=as_json)
        click.echo(json.dumps(result.to_dict()))


if __name__ == "__main__":
    main()
