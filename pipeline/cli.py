"""The command line: which commands there are, and how errors reach the user."""

from __future__ import annotations

import signal
import sys
import time
import warnings

import click

from pipeline import __version__
from pipeline.commands import (
    boundary,
    cache,
    copy,
    data,
    demo,
    export,
    frontier,
    miniature,
    models,
    publish,
    redundancy,
    report,
    reproduce,
    stores,
    teachers,
    train,
)
from pipeline.interrupts import Interrupted

FOLLOWER_PATIENCE_S = 10.0
"""How long a process that failed beside a leading one waits for that one to say so; it ends with it."""


SECTIONS: dict[str, dict[click.Command, str]] = {
    "Begin": {
        demo.demo: "Run every step on rendered rooms.",
        data.data: "Check a folder of images, or draw samples of it.",
        teachers.teachers: "List teachers with levels, licence and cost.",
    },
    "Run teachers once": {
        cache.plan: "Say what a cache or a training would take.",
        cache.cache: "Run teachers over a data set and store their features.",
    },
    "Train": {
        train.recipe: "Write a recipe for the caches that are there.",
        train.distill: "Stage 1: distil cached teachers into a student.",
        train.finetune: "Stage 2: train a student on labels.",
    },
    "Score and compare": {
        train.evaluate: "Score a run on a labelled split.",
        train.ablate: "Compare arms, variations and seeds.",
        report.report: "Write one page on a study or on runs.",
        report.watch: "Show a study's runs while they train.",
        boundary.boundary: "Score boundary maps as BSDS does.",
        models.params: "Count parameters and operations.",
    },
    "Use a student": {
        export.predict: "Predict for images, folders, videos.",
        export.export: "Write a student as a folder for others.",
    },
    "Look after caches": {
        stores.info: "Show what a store holds.",
        stores.verify: "Check every byte of a store.",
        stores.repair: "Make damaged files again, byte for byte.",
        stores.drop: "Take a teacher or views out of a store.",
        copy.copy: "Copy stores between folders and buckets.",
        publish.publish: "Hand stores out to others, with a card.",
        publish.join: "Render the pixels of published features.",
        frontier.frontier: "Measure every codec on your features.",
        redundancy.redundancy: "Measure how much teachers share.",
    },
    "Elsewhere": {
        models.import_reference: "Read a checkpoint of the authors' release.",
        models.export_reference: "Write a student as such a checkpoint.",
        miniature.miniature: "Train or probe the miniature teachers and stem.",
        reproduce.reproduce: "Run the studies of the documents again.",
    },
}
"""The commands by the step that they serve, each with its line in `sak --help`."""


class Sections(click.Group):
    """A group whose help lists commands by `SECTIONS`."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(command.name or "") for commands in SECTIONS.values() for command in commands)
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([((command.name or "").ljust(width), line) for command, line in commands.items()])


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def sak() -> None:
    """Run each vision foundation model once, keep its features, distil one student from the cache."""


for _commands in SECTIONS.values():
    for _command in _commands:
        sak.add_command(_command)


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
        from pipeline.advice import explain

        message = explain(error)
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


def _leave(message: str, code: int) -> None:
    from pipeline.console import harmless, is_silent

    if is_silent():
        # a process that trains beside another: that one says how the run ended, unless this one failed alone
        if code != 2:
            sys.exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what started it may end it while it waits
        time.sleep(FOLLOWER_PATIENCE_S)
    print(harmless(message), file=sys.stderr)
    sys.exit(code)
