"""Where two JSON values differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NOTHING = "(nothing)"
"""Stands for a field that one side lacks."""

Difference = tuple[str, Any, Any]
"""A field's dotted name, its stored value, its value now."""


def differences(stored: Any, now: Any, path: str = "") -> Iterator[Difference]:
    """Every field in which two JSON values differ, in alphabetical order; true and 1 differ.

    A list of plain values counts as one field.

    >>> list(differences({"a": [1, 2], "b": [{"c": 3}]}, {"a": [1, 4], "b": [{}]}))
    [('a', [1, 2], [1, 4]), ('b[0].c', 3, '(nothing)')]
    """
    if isinstance(stored, Mapping) and isinstance(now, Mapping):
        for key in sorted({*stored, *now}):
            name = f"{path}.{key}" if path else str(key)
            if key in stored and key in now:
                yield from differences(stored[key], now[key], name)
            else:
                yield name, stored.get(key, NOTHING), now.get(key, NOTHING)
    elif isinstance(stored, list) and isinstance(now, list) and len(stored) == len(now):
        pairs = list(enumerate(zip(stored, now, strict=True)))
        found = [one for index, (left, right) in pairs for one in differences(left, right, f"{path}[{index}]")]
        is_plain = not any(isinstance(value, Mapping | list) for value in stored)
        yield from [(path, stored, now)] if found and is_plain else found
    elif stored != now or isinstance(stored, bool) != isinstance(now, bool):
        yield path, stored, now


def first_difference(stored: Any, now: Any) -> Difference | None:
    """The first of `differences`, or None where there are none."""
    return next(differences(stored, now), None)
