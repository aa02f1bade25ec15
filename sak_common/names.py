"""Unknown names, answered with the nearest right ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from sak_common.errors import SakError

Row = TypeVar("Row")


def part_name(teacher: str) -> str:
    """A teacher's name as a folder and a module can have it.

    >>> part_name("timm:resnet50.a1_in1k"), part_name("open_clip:ViT-B-32/openai")
    ('timm-resnet50-a1_in1k', 'open_clip-ViT-B-32-openai')
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", teacher)


class UnknownName(SakError, ValueError):
    """A name that is in no table: of a teacher, task, data set, codec, option. The message offers the nearest."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A message for an unknown name that offers the nearest right ones, or all when none is near.

    >>> unknown("teacher", "dinov", ["dinov2", "clip"])
    "unknown teacher 'dinov'; did you mean dinov2?"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return f"unknown {kind} {name!r}; {hint}"


def find(kind: str, name: str, table: Mapping[str, Row]) -> Row:
    """The row called `name`.

    Raises:
        UnknownName: see `unknown`, where the table has none.
    """
    if name not in table:
        raise UnknownName(unknown(kind, name, table))
    return table[name]


def listed(items: Sequence[str], most: int = 8) -> str:
    """Names in a sentence: the first ones, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
