"""The base of every error that a user can mend, and one line of what others say."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any


class SakError(Exception):
    """Something is wrong with what was asked, or with what it was asked of; the message says what, where, what to do.

    The command line prints the message alone; any other exception is a fault of the program and keeps its traceback.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """It reaches another process whole, whatever its class is made from: pickle would make it from its message."""
        return _again, (type(self), self.args, self.__dict__)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: the message and notes alone, as the command line does."""
        return [f"{type(self).__name__}: {self}", *getattr(self, "__notes__", ())]


def _again(kind: type[SakError], args: tuple[Any, ...], attributes: Mapping[str, Any]) -> SakError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


def out_of_resources(error: BaseException) -> bool:
    """Whether the process ran out of file descriptors or memory: no fault of the file that it was reading."""
    lacks = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return lacks or isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """What a library says of an error, in one line; the error's name where it says nothing.

    >>> first_line(ValueError("no such size\\nat line 3")), first_line(KeyError())
    ('no such size', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
