"""Teachers by name: one row each; a row's library is imported when the teacher is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sak_core.names import UnknownName, unknown
from sak_core.teachers.base import Teacher


def _miniature(name: str, **options: Any) -> Teacher:
    from sak_core.teachers.miniature import build_miniature

    return build_miniature(name, **options)


TEACHERS: dict[str, Callable[..., Teacher]] = {
    "mini-dino": _miniature,
    "mini-clip": _miniature,
    "mini-sam": _miniature,
}
"""All teachers, one row each."""


def check_teacher(name: str) -> None:
    """Raise UnknownName, offering the nearest names, if there is no such teacher."""
    if name not in TEACHERS:
        raise UnknownName(unknown("teacher", name, TEACHERS))


def build_teacher(
    name: str,
    size: tuple[int, int],
    levels: Sequence[int] | None = None,
    weights: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> Teacher:
    """Build a teacher for views of `size` (H, W), in evaluation mode. Raises TeacherUnavailable without weights."""
    check_teacher(name)
    return TEACHERS[name](
        name, size=size, levels=levels, weights=weights, random_weights=random_weights, seed=seed
    )
