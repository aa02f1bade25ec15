"""What manifest files say: a part's metadata, and the committed shards of a view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cache.errors import CorruptFile
from cache.format.layout import ArraySpec
from cache.format.spec import FORMAT_VERSION
from cache.places.files import FileDigest


def files_to_dict(files: Mapping[str, FileDigest]) -> dict[str, Any]:
    """Digests as plain JSON values."""
    return {name: {"bytes": file.num_bytes, "sha256": file.sha256} for name, file in files.items()}


def files_from_dict(plain: Mapping[str, Any]) -> dict[str, FileDigest]:
    """The inverse of `files_to_dict`."""
    return {name: FileDigest(file["bytes"], file["sha256"]) for name, file in plain.items()}


def check_below(shown: str, names: Iterable[str]) -> None:
    """That files which the manifest file at `shown` names lie below its store; a stranger's need not.

    Raises:
        CorruptFile: one does not, and would be read, or written by a copy, elsewhere.
    """
    for name in names:
        if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise CorruptFile(shown, f"it names {name!r}, which is not below the store")


@dataclass(frozen=True)
class PartMetadata:
    """What a part is made of.

    Attributes:
        num_views: V; its arrays are (V, N, ...).
        num_samples: N.
        rows_per_shard: samples that share a file.
        arrays: path -> layout.
        files: path -> digest of its metadata files.
        groups: path of a group's ``zarr.json`` -> its attributes, where it has some: a second copy, from which a lost
            file can be made again. Empty in stores of before it was kept.
    """

    num_views: int
    num_samples: int
    rows_per_shard: int
    arrays: Mapping[str, ArraySpec]
    files: Mapping[str, FileDigest]
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """Shards a view is cut into."""
        return -(-self.num_samples // self.rows_per_shard)

    def arrays_of(self, view: int) -> list[ArraySpec]:
        """The arrays that have files in a view: those without views belong to view 0."""
        return [array for _, array in sorted(self.arrays.items()) if array.has_views or view == 0]


@dataclass
class ViewEntries:
    """The committed shards of one view.

    Attributes:
        shards: shard -> position in the lists.
        sizes: array -> bytes of its file, a shard each.
        digests: array -> SHA-256 (hex) of its file, a shard each.
        invalid: sample -> why its row is invalid.
        clipped: array -> number of clipped values, a shard each; only arrays whose codec clips.
        damaged: shard -> what is wrong with the entry that should commit it.
    """

    shards: dict[int, int] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)
    invalid: dict[int, str] = field(default_factory=dict)
    clipped: dict[str, list[int]] = field(default_factory=dict)
    damaged: dict[int, CorruptFile] = field(default_factory=dict)

    @classmethod
    def of_shard(
        cls,
        shard: int,
        files: Mapping[str, FileDigest],
        invalid: Mapping[int, str] | None = None,
        clipped: Mapping[str, int] | None = None,
    ) -> ViewEntries:
        """The entry of one shard: array -> what is committed of its file, and the facts of its rows."""
        return cls(
            {shard: 0},
            {array: [file.num_bytes] for array, file in files.items()},
            {array: [file.sha256] for array, file in files.items()},
            dict(invalid or {}),
            {array: [count] for array, count in (clipped or {}).items()},
        )

    def file(self, shard: int, array: str) -> FileDigest:
        """What is committed of an array's file. Raises KeyError where nothing is."""
        place = self.shards[shard]
        return FileDigest(self.sizes[array][place], self.digests[array][place])

    def add(self, other: ViewEntries) -> None:
        """Take over the shards of `other` that are not here yet; by one thread at a time, beside others that look."""
        new = [shard for shard in other.shards if shard not in self.shards]
        columns: list[tuple[dict[str, list[Any]], dict[str, list[Any]]]] = [
            (self.sizes, other.sizes),
            (self.digests, other.digests),
            (self.clipped, other.clipped),
        ]
        for mine, theirs in columns:
            for array, values in theirs.items():
                mine.setdefault(array, []).extend(values[other.shards[shard]] for shard in new)
        self.invalid.update(other.invalid)
        # last: whoever finds a shard here finds all that is said of it
        self.shards.update({shard: place for place, shard in enumerate(new, len(self.shards))})

    def to_dict(self, part: str, view: int) -> dict[str, Any]:
        """As plain JSON values, shards in order."""
        order = sorted(self.shards)
        places = [self.shards[shard] for shard in order]
        return {
            "format": FORMAT_VERSION,
            "part": part,
            "view": view,
            "shards": order,
            "files": {
                array: {
                    "bytes": [sizes[place] for place in places],
                    "sha256": [self.digests[array][place] for place in places],
                }
                for array, sizes in self.sizes.items()
            },
            "invalid": {str(sample): why for sample, why in self.invalid.items()},
            "clipped": {array: [counts[place] for place in places] for array, counts in self.clipped.items()},
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ViewEntries:
        """The inverse of `to_dict`."""
        return cls(
            {shard: place for place, shard in enumerate(plain["shards"])},
            {array: files["bytes"] for array, files in plain["files"].items()},
            {array: files["sha256"] for array, files in plain["files"].items()},
            {int(sample): why for sample, why in plain["invalid"].items()},
            dict(plain["clipped"]),
        )
