"""Stores of the same images, each with teachers of its own, read as one: nothing is copied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import SpecMismatch, StoresDiffer
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
        SpecMismatch, StoresDiffer: an owner's rows are not those of `source`; see `check_same_rows`.
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

    def _owner(self, teacher: str) -> Store:
        return self._owners.get(teacher, self._source)

    def shares(self, teachers: Sequence[str]) -> dict[Store, list[str]]:
        """Which of `teachers` each of `stores` gives."""
        return {store: [name for name in teachers if self._owner(name) is store] for store in self.stores}

    def reopened(self, stores: Mapping[Store, Store]) -> JoinedStore:
        """The same of other objects for the same stores: old -> new, of each of `stores`."""
        return _joined_again(stores[self._source], {name: stores[owner] for name, owner in self._owners.items()})

    def part(self, part: str) -> PartManifest:
        return (self._source if part == SOURCE else self._owner(part.removeprefix("teachers/"))).part(part)

    @property
    def teachers(self) -> list[str]:
        """See `Store`; of all of them."""
        return sorted({*self._source.teachers, *self._owners})

    def teacher(self, name: str) -> TeacherInfo:
        if name not in self.teachers:
            raise UnknownName(unknown(f"teacher in {self}", name, self.teachers))
        return self._owner(name).teacher(name)

    def calibration(self, teacher: str, names: Collection[str] | None = None) -> dict[str, Array] | None:
        return self._owner(teacher).calibration(teacher, names)

    def rows(self, part: str, array: str) -> RowReader:
        return (self._source if part == SOURCE else self._owner(part.removeprefix("teachers/"))).rows(part, array)

    def features(self, teacher: str, level: int, prefix: bool = False) -> FeatureArray:
        return self._owner(teacher).features(teacher, level, prefix)


def _joined_again(source: Store, owners: Mapping[str, Store]) -> JoinedStore:
    """Of stores that were compared before."""
    joined = JoinedStore(source, {})
    joined._owners = dict(owners)
    return joined


def check_same_rows(one: Store, other: Store) -> None:
    """That two stores hold the same rows, as far as both have committed them, by the digests in their manifests.

    Raises:
        SpecMismatch: they are of other sizes, policies or seeds; names the first differing field and both values.
        StoresDiffer: a row's id, image, view or pixels differ; names the samples.
    """
    mine, theirs = ({name: spec.to_dict()[name] for name in _SAME} for spec in (one.spec, other.spec))
    if difference := first_difference(theirs, mine):
        raise SpecMismatch(f"the store {other}, to be read with {one},", *difference)
    for view in range(min(one.num_views, other.num_views)):
        ours, others = one.part(SOURCE).view(view), other.part(SOURCE).view(view)
        for array in _ROWS if view == 0 else (name for name in _ROWS if not name.startswith("samples/")):
            shards = sorted(ours.shards.keys() & others.shards.keys())
            differ = [shard for shard in shards if ours.file(shard, array) != others.file(shard, array)]
            if differ:
                raise StoresDiffer(_what_differs(one, other, array, view, differ))


def _what_differs(one: Store, other: Store, array: str, view: int, shards: list[int]) -> str:
    """The samples of `shards` whose rows of an array are others; the first shards with some speak for all."""
    for shard in shards:
        mine, theirs = (store.rows(SOURCE, array).read_chunk(view, shard) for store in (one, other))
        different = np.flatnonzero((mine != theirs).reshape(len(mine), -1).any(1))
        numbers = [one.spec.rows(shard)[row] for row in different]
        if numbers:
            ids = zip(one.ids(numbers), other.ids(numbers), strict=True)
            names = [f"{left} and {right}" if left != right else left for left, right in ids]
            more = f", and more in {len(shards) - 1} other shards" if len(shards) > 1 else ""
            seen = "" if array.startswith("samples/") else f" in view {view}"
            return f"{one} and {other} are not of the same rows: {array}{seen} differs for {listed(names)}{more}"
    return f"{one} and {other} are not of the same rows: files of {array} differ"
