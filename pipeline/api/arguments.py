"""What the functions of this package are given, as the rest of the pipeline takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.runs import Places

Names = str | Sequence[str]  # or one text with commas between them
Paths = Path | str | Sequence[Path | str]


def as_names(given: Names) -> tuple[str, ...]:
    """Names without blanks around them, and without empty ones."""
    listed = given.split(",") if isinstance(given, str) else given
    return tuple(name.strip() for name in listed if name.strip())


def as_list(given: Paths) -> list[Path | str]:
    """One path as a list of one."""
    return [given] if isinstance(given, Path | str) else list(given)


def as_size(given: str | int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) in px of "S", "HxW" or a number.

    Raises:
        UserError: the text is no size.
    """
    from pipeline.recipes.stores import parse_size

    return given if given is None or isinstance(given, tuple) else parse_size(str(given))


def places(
    out: Paths = "features",
    runs: Path | str = "runs",
    roots: Mapping[str, Path] | None = None,
    weights: Mapping[str, Path] | None = None,
) -> Places:
    """Where caches and runs lie; see `pipeline.runs.Places`.

    Args:
        out: folders or addresses of caches. Of several, each teacher is read from the first that has it whole. Those
            on the hub are at one commit from here on, whoever commits meanwhile.
        runs: the folder of runs.
        roots: of live runs, the folders of data sets by name.
        weights: of live runs, the files of teachers' weights by name.

    Raises:
        UserError: no place is given, or an address is none.
    """
    from pipeline.recipes.stores import caches_at
    from pipeline.runs import Places

    return Places(caches_at(as_list(out)), Path(runs), roots or {}, weights or {})
