"""What the command line tells the user of an error: its facts, and what to do about them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from functools import wraps
from typing import ParamSpec, TypeVar

from cache import errors as cache
from sak_common.errors import SakError
from sak_common.extras import extra_of, how_to_install
from sak_core import errors as core

P = ParamSpec("P")
R = TypeVar("R")

AGAIN = "run the same command again"
_MORE_FILES = f"raise the limit (`ulimit -n`) and {AGAIN}"

ADVICE: dict[type[Exception], str] = {
    cache.UnfinishedStore: "run `sak cache` again",
    cache.UncommittedRow: "run `sak cache` again to finish the store",
    cache.NotCalibrated: "run `sak cache` again to finish the store",
    cache.LeftOut: "`sak join {store} --root DIR` renders them from the data set",
    cache.NotLocal: "`sak copy` brings it here",
    cache.SpecMismatch: "ask for the stored value, or give another output folder (OUT=..., --out)",
    cache.StoresDiffer: "name one of the two places alone (--out, or out = [...] in a recipe)",
    cache.CorruptFile: "`sak verify` lists all damage, `sak repair` mends it",
    cache.CalibrationDiffers: (
        "go back to the one that made it, put the file of another copy of this store in its place, or "
        "`sak drop --teacher {teacher}` and extract it again"
    ),
    cache.StoreLocked: f"wait until it ends, or stop it, and {AGAIN}",
    cache.StoreFull: f"make room and {AGAIN}",
    cache.TooManyOpenFiles: _MORE_FILES,
    cache.AlreadyThere: "match them, or delete it",
    cache.WriteFailed: f"mend that and {AGAIN}",
    core.FolderNeeded: "say which (ROOT=DIR, --root DIR)",
    core.SeveralInputs: (
        "say which to take with --images: the ending of the photographs in tars, the column of a table, or all where "
        "every image in the tars is an input"
    ),
    core.NoWeights: (
        "run where the hub can be reached, give a file (--weights FILE, safetensors or .pth), or try the untrained "
        "tower (--random-weights)"
    ),
    core.NoSettings: (
        "run where the hub can be reached, or name a folder that holds config.json and preprocessor_config.json "
        "(hf:FOLDER)"
    ),
    core.OwnCode: "--allow-code lets it run",
    core.PerhapsOwnCode: "if it is code of your own, --allow-code lets it run",
}
"""What to do about an error of the floors below, which know of no command; braces take the error's attributes.

An error without a row of its own has that of its nearest base. All other errors say themselves what to do.
"""


def advised(error: Exception) -> str:
    """The message of an error that a user can mend, with what to do about it."""
    advice = next((ADVICE[kind] for kind in type(error).__mro__ if kind in ADVICE), None)
    return str(error) if advice is None else f"{error}; {advice.format_map(vars(error))}"


def explain(error: Exception) -> str | None:
    """What to tell the user of `error`, or None for a fault of the program, which keeps its traceback."""
    text = str(error)
    if isinstance(error, SakError):
        return advised(error)
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name)):
        return f"this needs {error.name}, which is not installed: {how_to_install(extra)}"
    if _is_out_of_memory(error):
        first = text.partition("\n")[0] or type(error).__name__
        return (
            f"out of memory ({first}); lower batch_size (--batch-size, --set batch_size=8), train a step in parts "
            "(--set accumulate=2) or use bf16 precision (--set precision=bf16-mixed)"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space or no inodes left (`df` and `df -i` tell): {text}; make room and {AGAIN}"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{text}; {_MORE_FILES}"
    if isinstance(error, BrokenExecutor):
        return (
            "a worker process was killed, for lack of memory perhaps (`dmesg` tells); what is finished stays: "
            f"{AGAIN}, with fewer processes (--workers, --decoders)"
        )
    if isinstance(error, PermissionError):
        return f"not allowed: {text}"
    return None


def with_advice(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose errors carry as a note what to do about them, where their own message does not say it."""

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(*arguments, **options)
        except Exception as error:
            advice = (explain(error) or "").removeprefix(str(error)).removeprefix("; ")
            if advice and advice not in getattr(error, "__notes__", ()):
                error.add_note(advice)
            raise

    return call


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return True
    if "can't allocate memory" in str(error):  # the CPU's allocator raises a RuntimeError
        return True
    torch = sys.modules.get("torch")  # not imported for the sake of an error that it did not raise
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
