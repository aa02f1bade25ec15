"""What manifest files say: a part's metadata, and the committed shards of a view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache.errors import CorruptFile
from cache.format.documents import (
    MOST_ROW_BYTES,
    MOST_ROWS_PER_SHARD,
    MOST_SAMPLES,
    MOST_SHARD_BYTES,
    MOST_SHARDS,
    EntriesDocument,
    FileDocument,
    MetadataDocument,
    checked,
)
from cache.format.layout import ArraySpec
from cache.format.spec import FORMAT_VERSION, CutIntoShards
from cache.places.files import FileDigest


def files_to_dict(files: Mapping[str, FileDigest]) -> dict[str, Any]:
    """Digests as plain JSON values."""
    return {name: {"bytes": file.num_bytes, "sha256": file.sha256} for name, file in files.items()}


def files_of(documents: Mapping[str, FileDocument]) -> dict[str, FileDigest]:
    """The inverse of `files_to_dict`, of what was read."""
    return {name: FileDigest(file.bytes, file.sha256) for name, file in documents.items()}


@dataclass(frozen=True)
class PartMetadata(CutIntoShards):
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

    @classmethod
    def of_document(cls, plain: Any, path: object) -> PartMetadata:
        """What a ``metadata.json`` says; `path` is named in errors.

        Raises:
            CorruptFile: it is none, or promises more than a reader believes.
        """
        read = checked(MetadataDocument, plain, path)
        arrays = {name: ArraySpec.of_document(name, array, path) for name, array in read.arrays.items()}
        made = cls(read.num_views, read.num_samples, read.rows_per_shard, arrays, files_of(read.files), read.groups)
        if why := made.beyond_belief():
            raise CorruptFile(path, why)
        return made

    def beyond_belief(self) -> str | None:
        """What it promises more of than a reader believes, in words."""
        for what, count, most in (
            ("samples", self.num_samples, MOST_SAMPLES),
            ("samples a shard", self.rows_per_shard, MOST_ROWS_PER_SHARD),
            ("shards a view", self.num_shards, MOST_SHARDS),
        ):
            if count > most:
                return f"{count} {what}; a store has at most {most}"
        for name, array in self.arrays.items():
            num_bytes = array.row_bytes * (1 if array.sharded else self.rows_per_shard)
            if num_bytes > MOST_ROW_BYTES or num_bytes * self.rows_per_shard > MOST_SHARD_BYTES:
                return (
                    f"{name}: rows of {array.row_bytes} bytes, {self.rows_per_shard} a shard; at most {MOST_ROW_BYTES} "
                    f"are read at once, and {MOST_SHARD_BYTES} a shard"
                )
        return None

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
        """What is committed of an array's file.

        Raises:
            KeyError: nothing is.
        """
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
    def of_document(cls, plain: Any, path: object) -> ViewEntries:
        """What a manifest file of a view, or of one shard of it, says; `path` is named in errors.

        Raises:
            CorruptFile: it is no such file.
        """
        read = checked(EntriesDocument, plain, path)
        made = cls(
            {shard: place for place, shard in enumerate(read.shards)},
            {array: files.bytes for array, files in read.files.items()},
            {array: files.sha256 for array, files in read.files.items()},
            {int(sample): why for sample, why in read.invalid.items()},
            dict(read.clipped),
        )
        lengths = [len(column) for column in (*made.sizes.values(), *made.clipped.values())]
        lengths += [len(column) for column in made.digests.values()]
        if {len(made.shards), *lengths} - {len(read.shards)}:
            raise CorruptFile(path, "its columns are not one value a shard")
        return made

    def check(self, metadata: PartMetadata, view: int, path: object) -> None:
        """That these entries are of arrays, shards and samples that the part has, and files as large as their rows.

        Raises:
            CorruptFile: they are not.
        """
        arrays = {array.path: array for array in metadata.arrays_of(view)}
        if missing := sorted(set(arrays) - set(self.sizes)):
            raise CorruptFile(path, f"it says nothing of {missing[0]}")
        if strangers := sorted({*self.sizes, *self.clipped} - set(arrays)):
            raise CorruptFile(path, f"it speaks of {strangers[0]!r}, which view {view} of its part does not have")
        for what, numbers, count in (
            ("shard", self.shards, metadata.num_shards),
            ("sample", self.invalid, metadata.num_samples),
        ):
            if numbers and max(numbers) >= count:
                raise CorruptFile(path, f"it speaks of {what} {max(numbers)}; there are {count}")
        last, per_shard = metadata.num_shards - 1, metadata.rows_per_shard
        for name, array in arrays.items():
            sizes = self.sizes[name]
            whole = {size for size in set(sizes) if array.is_file_size(size, len(metadata.rows(0)), per_shard)}
            for shard, place in self.shards.items():
                rows = len(metadata.rows(shard)) if shard == last else per_shard
                if not (array.is_file_size(sizes[place], rows, per_shard) if shard == last else sizes[place] in whole):
                    raise CorruptFile(path, f"it gives shard {shard} of {name} {sizes[place]} bytes for {rows} rows")
