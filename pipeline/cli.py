"""The command line: which commands there are, and how errors reach the user."""

from __future__ import annotations

import signal
import sys
import time

import click

from pipeline import __version__
from pipeline.commands import boundary, data, demo, frontier, miniature, models, stores, teachers
from pipeline.commands import cache as caching
from pipeline.commands import copy as copying
from pipeline.commands import export as exporting
from pipeline.commands import train as training
from pipeline.interrupts import Interrupted

FOLLOWER_PATIENCE_S = 10.0
"""How long a process that failed beside a leading one waits for that one to say so; it ends with it."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def sak() -> None:
    """Run each vision foundation model once, keep its features, distil one student from the cache."""


for command in (
    caching.cache,
    caching.plan,
    training.distill,
    training.finetune,
    training.evaluate,
    training.ablate,
    exporting.predict,
    exporting.export,
    models.params,
    models.import_reference,
    models.export_reference,
    stores.info,
    stores.verify,
    stores.repair,
    stores.drop,
    frontier.frontier,
    boundary.boundary,
    copying.copy,
    data.data,
    teachers.teachers,
    demo.demo,
    miniature.miniature,
):
    sak.add_command(command)


def main() -> None:
    """Entry point: turn errors that are the user's to mend into one line and an exit code of 2.

    Exit codes: 130 after Ctrl-C, 143 after SIGTERM; what trains saves a checkpoint first in both cases.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sak.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        # click turns a KeyboardInterrupt into its Abort
        cause = error if isinstance(error, Interrupted) else error.__cause__
        code = cause.exit_code if isinstance(cause, Interrupted) else 130
        _leave("interrupted; the same command goes on where it stopped", code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        from pipeline.advice import explain

        message = explain(error)
        if message is None:
            raise
        _leave(f"error: {message}", 2)


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(number)


def _leave(message: str, code: int) -> None:
    from pipeline.console import is_silent

    if is_silent():
        # a process that trains beside another: that one says how the run ended, unless this one failed alone
        if code != 2:
            sys.exit(0)
        time.sleep(FOLLOWER_PATIENCE_S)
    print(message, file=sys.stderr)
    sys.exit(code)
