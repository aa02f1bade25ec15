"""The command line: which commands there are, and how errors reach the user."""

from __future__ import annotations

import errno
import signal
import sys
import time
import warnings

import click

from pipeline import __version__
from pipeline.commands import boundary, data, demo, frontier, miniature, models, stores, teachers
from pipeline.commands import cache as caching
from pipeline.commands import copy as copying
from pipeline.commands import export as takeaway
from pipeline.commands import train as training
from pipeline.interrupts import Interrupted
from sak_common.errors import SakError

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
    takeaway.predict,
    takeaway.export,
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
    warnings.showwarning = _show_warning
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
        message = _explain(error)
        if message is None:
            raise
        _leave(f"error: {message}", 2)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    """Warnings of what is missing where a store lies are for the user; others name the line that they come from."""
    from pipeline.console import warn

    is_users = category.__name__ == "PlaceWarning"
    warn(str(message) if is_users else warnings.formatwarning(message, category, filename, lineno).rstrip())


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(number)


def _explain(error: Exception) -> str | None:
    """What to tell the user of `error`, or None for a fault of the program, which keeps its traceback."""
    text = str(error)
    if isinstance(error, SakError):
        return text
    names = {kind.__name__ for kind in type(error).__mro__}
    # torch.OutOfMemoryError is CUDA's; the CPU's allocator raises a RuntimeError
    exhausted = isinstance(error, MemoryError) or "OutOfMemoryError" in names
    if exhausted or "out of memory" in text.lower() or "can't allocate memory" in text:
        first = text.partition("\n")[0] or type(error).__name__
        return (
            f"out of memory ({first}); lower batch_size (--batch-size, --set batch_size=8), train a step in parts "
            "(--set accumulate=2) or use bf16 precision (--set precision=bf16-mixed)"
        )
    if isinstance(error, OSError) and error.errno == 28:
        return f"no space or no inodes left (`df` and `df -i` tell): {text}; make room and run the same command again"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{text}; raise the limit (`ulimit -n`) and run the same command again"
    if isinstance(error, PermissionError):
        return f"not allowed: {text}"
    return None


def _leave(message: str, code: int) -> None:
    from pipeline.console import is_silent

    if is_silent():
        # a process that trains beside another: that one says how the run ended, unless this one failed alone
        if code != 2:
            sys.exit(0)
        time.sleep(FOLLOWER_PATIENCE_S)
    print(message, file=sys.stderr)
    sys.exit(code)
