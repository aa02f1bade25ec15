"""Errors that are the user's to mend: said in one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something is wrong with what was asked or with what it was asked of; the message says what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A message for an unknown name that offers the nearest right ones.

    >>> unknown("teacher", "dinov", ["dinov2", "clip"])
    "unknown teacher 'dinov'; did you mean dinov2?"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return f"unknown {kind} {name!r}; {hint}"
