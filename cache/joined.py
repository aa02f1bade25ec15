"""Stores of the same images, each with teachers of its own, read as one: nothing is copied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import StoresDiffer
from cache.format.manifest import SOURCE, PartManifest
from cache.reading.arrays import FeatureArray
from cache.reading.rows import RowReader
from cache.store import Store, TeacherInfo
from sak_common.differences import first_difference
from sak_common.names import UnknownName, listed, unknown

Array = npt.NDArray[Any]

_SAME = ("size", "num_samples", "rows_per_shard", "id_width", "policy", "seed", "fill")
"""Fields of a spec that decide which rows there are, and how each is seen."""
_ROWS = ("samples/ids", "samples/digest", "samples/valid", "views/box", "views/flip", "views/colour", "pixels")
"""Arrays whose rows must be the same: who, from what image, seen how, and what a teacher saw of it."""


class JoinedStore(Store):
    """The source part of one store with teachers of others, for reading.

    Args:
        source: pixels, labels and views come from it, and the teachers that have no other owner.
        owners: teacher -> the store that its features are read from.

    Raises:
        StoresDiffer: an owner's rows are not those of `source`; see `check_same_rows`.
    """

    def __init__(self, source: Store, owners: Mapping[str, Store]) -> None:
        super().__init__(source.place, source.spec)
        self._source, self._owners = source, dict(owners)
        for other in self.stores[1:]:
            check_same_rows(source, other)

    def __reduce__(self) -> tuple[Any, ...]:
        return _joined_again, (self._source, self._owners)

    @property
    def stores(self) -> tuple[Store, ...]:
        return tuple(dict.fromkeys((self._source, *self._owners.values())))

    def __str__(self) -> str:
        return " with ".join(map(str, self.stores))

    def owner(self, teacher: str) -> Store:
        """The store that a teacher's features are read from."""
        return self._owners.get(teacher, self._source)

    def reopened(self, stores: Mapping[Store, Store]) -> JoinedStore:
        """The same of other objects for the same stores: old -> new, of each of `stores`."""
        return _joined_again(stores[self._source], {name: stores[owner] for name, owner in self._owners.items()})

    def part(self, part: str) -> PartManifest:
        return (self._source if part == SOURCE else self.owner(part.removeprefix("teachers/"))).part(part)

    @property
    def teachers(self) -> list[str]:
        """See `Store`; of all of them."""
        return sorted({*self._source.teachers, *self._owners})

    def teacher(self, name: str) -> TeacherInfo:
        if name not in self.teachers:
            raise UnknownName(unknown(f"teacher in {self}", name, self.teachers))
        return self.owner(name).teacher(name)

    def calibration(self, teacher: str, names: Collection[str] | None = None) -> dict[str, Array] | None:
        return self.owner(teacher).calibration(teacher, names)

    def rows(self, part: str, array: str) -> RowReader:
        return (self._source if part == SOURCE else self.owner(part.removeprefix("teachers/"))).rows(part, array)

    def features(self, teacher: str, level: int, prefix: bool = False) -> FeatureArray:
        return self.owner(teacher).features(teacher, level, prefix)


def shares(store: Store, teachers: Sequence[str]) -> dict[Store, list[str]]:
    """Which of `teachers` each of the stores gives that `store` reads."""
    if not isinstance(store, JoinedStore):
        return {store: list(teachers)}
    return {one: [name for name in teachers if store.owner(name) is one] for one in store.stores}


def _joined_again(source: Store, owners: Mapping[str, Store]) -> JoinedStore:
    """Of stores that were compared before."""
    joined = JoinedStore(source, {})
    joined._owners = dict(owners)
    return joined


def check_same_rows(one: Store, other: Store) -> None:
    """That two stores hold the same rows, as far as both have committed them: by the digests in their manifests, and
    where these differ, by the rows themselves.

    Raises:
        StoresDiffer: they are of other sizes, policies or seeds, the first differing field and both values are named;
            or a row's id, image, view or pixels differ, the samples are named.
    """
    mine, theirs = ({name: spec.to_dict()[name] for name in _SAME} for spec in (one.spec, other.spec))
    if difference := first_difference(mine, theirs):
        field, here, there = difference
        raise StoresDiffer(f"{one} and {other} are not of the same rows: {field} is {here!r} and {there!r}")
    for view in range(min(one.num_views, other.num_views)):
        ours, others = one.part(SOURCE).view(view), other.part(SOURCE).view(view)
        for array in _ROWS if view == 0 else (name for name in _ROWS if not name.startswith("samples/")):
            shards = sorted(ours.shards.keys() & others.shards.keys())
            differ = [shard for shard in shards if ours.file(shard, array) != others.file(shard, array)]
            for shard in differ:
                if numbers := _differing(one, other, array, view, shard):
                    names = [f"{a} and {b}" if a != b else a for a, b in _ids(one, other, numbers)]
                    more = f", and perhaps more in {len(differ) - 1} other shards" if len(differ) > 1 else ""
                    seen = "" if array.startswith("samples/") else f" in view {view}"
                    raise StoresDiffer(
                        f"{one} and {other} are not of the same rows: {array}{seen} differs for {listed(names)}{more}"
                    )


def _differing(one: Store, other: Store, array: str, view: int, shard: int) -> list[int]:
    """The samples of a shard, of which two stores have other files, whose rows are others; all where only the files'
    digests are here."""
    samples = one.spec.rows(shard)
    if array in one.left_out | other.left_out:
        return list(samples)
    mine, theirs = (store.rows(SOURCE, array).read_chunk(view, shard) for store in (one, other))
    return [samples[row] for row in np.flatnonzero((mine != theirs).reshape(len(mine), -1).any(1))]


def _ids(one: Store, other: Store, numbers: list[int]) -> list[tuple[str, str]]:
    return list(zip(one.ids(numbers), other.ids(numbers), strict=True))
