"""A network's tensors in a file of someone's: under the one wrapper or prefix of names that makes all of them fit.

Training scripts save more than a network, and under more than its own names: `teacher.backbone.`, `state_dict_ema`,
`module.`, `_orig_mod.`. A wrapper (a key of a torch file) and a prefix (of a flat file's names) are the same here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sak_common.names import listed
from sak_core.weights.tensor_files import MARKS, Misfit, RefusedFile, State, check_finite, read_parts

T = TypeVar("T")

CHOICE = "::"
"""Between a file and what of it is meant, where several places would fit: `FILE::state_dict_ema`."""


@dataclass(frozen=True)
class Found(Generic[T]):
    """What fits.

    Attributes:
        value: what came of it.
        where: its wrapper and prefix, dotted; "" for the file's own names.
    """

    value: T
    where: str


@dataclass(frozen=True)
class _Place:
    """The tensors under one wrapper and prefix, `where`, their names without it."""

    where: str
    tensors: State

    def below(self) -> list[_Place]:
        """What the first parts of the names divide it into."""
        groups: dict[str, State] = {}
        for name, value in self.tensors.items():
            first, dot, rest = name.partition(".")
            if dot:
                groups.setdefault(first, {})[rest] = value
        return [_Place(f"{self.where}.{first}" if self.where else first, group) for first, group in groups.items()]

    def readings(self) -> Iterator[_Place]:
        """Itself; and, where torch's marks stand within names (in front of all they are a prefix), without them."""
        yield self
        marks = [mark for mark in MARKS if any(mark in name for name in self.tensors)]
        if marks and len({name.partition(".")[0] for name in self.tensors}) > 1:
            plain = {_without(marks, name): value for name, value in self.tensors.items()}
            yield _Place(" ".join([self.where, "without", *marks]).strip(), plain)


def split_choice(path: Path) -> tuple[Path, str]:
    """`FILE::KEY` as file and key; a file that is really called so is itself, without a key."""
    name, mark, key = str(path).rpartition(CHOICE)
    return (Path(name), key.strip(".")) if mark and name and not path.is_file() else (path, "")


def find_state(path: Path, fit: Callable[[State], T], what: str = "the network") -> Found[T]:
    """What `fit` makes of the one place in the file `path` (or `FILE::KEY`) whose tensors fit.

    Names outside of the place belong to other modules (a head, a loss) and are left alone. Within a place that fits no
    other is looked for.

    Args:
        fit: takes tensors by name, raises Misfit where they are not the ones.
        what: they are for.

    Raises:
        FileNotFoundError: no such file.
        RefusedFile: as `read_parts`; where no place fits, or several do and no key says which; for values that are
            not finite.
    """
    path, key = split_choice(path)
    found: list[tuple[_Place, T]] = []
    misfits: list[tuple[_Place, Misfit]] = []
    places = _places(path, key)
    while places:
        place = places.pop(0)
        for reading in place.readings():
            try:
                found.append((reading, fit(reading.tensors)))
                break
            except Misfit as error:
                misfits.append((reading, error))
        else:
            places += place.below()
    if not found:
        raise RefusedFile(path, f"does not fit {what}{_nearest(misfits)}")
    if len(found) > 1:
        names = [place.where or "its own names" for place, _ in found]
        example = next(place.where for place, _ in found if place.where)
        raise RefusedFile(
            path, f"fits {what} in {len(found)} places: {listed(names)}. Say which: {path}{CHOICE}{example}"
        )
    place, value = found[0]
    check_finite(path, place.tensors)
    return Found(value, place.where)


def _places(path: Path, key: str) -> list[_Place]:
    """The state dicts of a file, or what `key` chooses of them."""
    places = [_Place(where, tensors) for where, tensors in read_parts(path).items()]
    if not key:
        return places
    chosen: list[_Place] = []
    while places:
        place = places.pop(0)
        if place.where == key or place.where.startswith(f"{key}."):
            chosen.append(place)
        elif not place.where or key.startswith(f"{place.where}."):
            places += place.below()
    if not chosen:
        raise RefusedFile(path, f"holds nothing under {key!r}")
    return chosen


def _nearest(misfits: Sequence[tuple[_Place, Misfit]]) -> str:
    """Why the place that has the most of the names does not fit; what names begin with where no place has half."""
    place, error = max(misfits, key=lambda tried: len(tried[1].wanted) - len(tried[1].missing))
    if 2 * len(error.missing) <= len(error.wanted):
        return f"{f' under {place.where!r}' if place.where else ''}: {error}"
    there = {f"{place.where}.{name}".lstrip(".") for place, _ in misfits[:1] for name in place.tensors}
    return (
        f": no wrapper or prefix of its names makes them the network's. They begin with {_beginnings(there)}, the "
        f"network's with {_beginnings(error.wanted)}"
    )


def _beginnings(names: Collection[str]) -> str:
    return listed(sorted({name.partition(".")[0] for name in names}))


def _without(marks: Sequence[str], name: str) -> str:
    for mark in marks:
        name = name.replace(mark, "")
    return name
