"""What is committed: digests of the bytes of every file, part by part. Readers and resume trust nothing else.

A *part* is ``source`` or ``teachers/<name>``. Below ``manifest/<part>/`` lie

- ``metadata.json``: the part's arrays, number of views, and the digests of its ``zarr.json`` files
- ``calibration.json``: the digests of a teacher's calibration arrays
- ``view_0000/shard_000000.json``: an entry a (view, shard), written last; when a view is complete its entries
  are compacted to ``view_0000.json``, which has the same form
- ``left_out.json``: of a source that was published without its images: the arrays whose files are not there
- ``lock``: empty, see `cache.places.locks`

Every file is canonical JSON and carries the SHA-256 of the rest of itself, so no byte can change unseen.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from cache.errors import CorruptFile
from cache.faults import fault_point
from cache.format.documents import MOST_ENTRIES_BYTES, MOST_METADATA_BYTES, CalibrationDocument, check_below, checked
from cache.format.entries import PartMetadata, ViewEntries, files_of, files_to_dict
from cache.format.seals import seal, unseal
from cache.format.spec import FORMAT_VERSION
from cache.places.addresses import as_place
from cache.places.files import FileDigest
from cache.places.place import Place

FOLDER = "manifest"
SOURCE = "source"
LOG = "log.jsonl"
CLOSED = f"{FOLDER}/zarr.json"
"""Keeps plain readers of Zarr from looking into the folder; stores of before are without."""
_SOURCE_FILES = ("samples/", "views/", "labels/", "pixels/", "zarr.json", "teachers/zarr.json", CLOSED)
_ENTRY = re.compile(r"/shard_[0-9]+\.json$")
_OF_VIEW = re.compile(r"/view_([0-9]+)(?:/shard_([0-9]+))?\.json$")


def teacher_part(name: str) -> str:
    """Name of a teacher's part."""
    return f"teachers/{name}"


def can_be_left_out(array: str) -> bool:
    """Whether a store may be without the files of an array of its source: pixels and labels, which the data set has."""
    return array == "pixels" or array.startswith("labels/")


def view_and_shard(name: str) -> tuple[int | None, int | None]:
    """The view and shard that a manifest file's name stands for, None where it stands for neither."""
    found = _OF_VIEW.search(name)
    if found is None:
        return None, None
    return int(found[1]), None if found[2] is None else int(found[2])


class PartManifest:
    """The manifest of one part, read lazily, a view at a time.

    Attributes:
        place: of the store.
        folder: of the part's manifest files, below it.

    Raises, in every method that reads or commits:
        CorruptFile: a manifest file that it needs is damaged.
        StoreFull, WriteFailed: what is to be committed cannot be written, and is not.
        AlreadyThere: another machine has committed something else there, in object storage.
    """

    def __init__(self, place: Place | Path | str, part: str) -> None:
        self.place, self.part = as_place(place), part
        self.folder = f"{FOLDER}/{part}"
        self._metadata: PartMetadata | None = None
        self._views: dict[int, ViewEntries] = {}
        self._left_out: frozenset[str] | None = None
        self._mutex = threading.RLock()  # several threads read a store, and some workers have several that write

    def __reduce__(self) -> tuple[Any, ...]:
        return PartManifest, (self.place, self.part)

    def forget(self) -> None:
        """Read everything from the disk anew when it is next asked for."""
        self._metadata = None
        self._views = {}
        self._left_out = None

    # -- metadata ---------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether the part's metadata is committed."""
        return self.place.exists(f"{self.folder}/metadata.json")

    @property
    def metadata(self) -> PartMetadata:
        """The part's committed metadata.

        Raises:
            FileNotFoundError: there is none.
        """
        if self._metadata is None:
            name = f"{self.folder}/metadata.json"
            shown = self.place.show(name)
            metadata = PartMetadata.of_document(self.read(name), shown)
            arrays = [f"{path}/zarr.json" for path in metadata.arrays]
            check_below(shown, [*arrays, *metadata.files, *metadata.groups], self._folders)
            self._metadata = metadata
        return self._metadata

    @property
    def _folders(self) -> Sequence[str]:
        """Where the files of this part lie, but those of its manifest."""
        return _SOURCE_FILES if self.part == SOURCE else (f"{self.part}/",)

    def commit_metadata(self, metadata: PartMetadata, replace: bool = False) -> None:
        """Make `metadata` the part's, in place of what it was before where `replace` says so."""
        self._write(f"{self.folder}/metadata.json", self._document(metadata), replace)
        self._metadata = metadata

    def grow_metadata(self, metadata: PartMetadata) -> None:
        """As `commit_metadata`, unless the part has come to as many views, or more, meanwhile."""
        name, grown = f"{self.folder}/metadata.json", seal(self._document(metadata))

        def change(now: bytes) -> bytes | None:
            return grown if unseal(now, self.place.show(name))["num_views"] < metadata.num_views else None

        self.place.update({name: change})
        self._metadata = None

    def _document(self, metadata: PartMetadata) -> dict[str, Any]:
        return {
            "format": FORMAT_VERSION,
            "part": self.part,
            "num_views": metadata.num_views,
            "num_samples": metadata.num_samples,
            "rows_per_shard": metadata.rows_per_shard,
            "arrays": {path: array.to_dict() for path, array in metadata.arrays.items()},
            "files": files_to_dict(metadata.files),
            **({"groups": metadata.groups} if metadata.groups else {}),
        }

    # -- what is left out -------------------------------------------------------------------------

    @property
    def left_out(self) -> frozenset[str]:
        """Arrays that are committed, and whose files are not here: pixels and labels of a store published without."""
        if self._left_out is None:
            name = self._left_out_name
            arrays = self.read(name).get("arrays") if self.part == SOURCE and self.place.exists(name) else []
            if not isinstance(arrays, list) or not all(isinstance(a, str) and can_be_left_out(a) for a in arrays):
                raise CorruptFile(self.place.show(name), f"it names {arrays!r}, which are not pixels and labels")
            self._left_out = frozenset(arrays)
        return self._left_out

    def leave_out(self, arrays: Iterable[str]) -> None:
        """Say which arrays' files are not here; none says that all are."""
        if listed := sorted(arrays):
            document = {"format": FORMAT_VERSION, "part": self.part, "arrays": listed}
            self._write(self._left_out_name, document, replace=True)
        elif self.place.exists(self._left_out_name):
            self.place.delete([self._left_out_name])
        self._left_out = frozenset(listed)

    @property
    def _left_out_name(self) -> str:
        return f"{self.folder}/left_out.json"

    # -- calibration ------------------------------------------------------------------------------

    def calibration(self) -> dict[str, FileDigest] | None:
        """Digests of the calibration's files, or None where none is committed."""
        name = f"{self.folder}/calibration.json"
        if not self.place.exists(name):
            return None
        shown = self.place.show(name)
        files = files_of(checked(CalibrationDocument, self.read(name), shown).files)
        check_below(shown, list(files), [f"{self.part}/calibration/"])
        return files

    def commit_calibration(self, files: Mapping[str, FileDigest], version: int = FORMAT_VERSION) -> None:
        """Make `files` the part's calibration; `version` is of its format."""
        self._write(
            f"{self.folder}/calibration.json",
            {"format": version, "part": self.part, "files": files_to_dict(files)},
        )

    # -- shards -----------------------------------------------------------------------------------

    def view(self, view: int, refresh: bool = False) -> ViewEntries:
        """The committed shards of `view`; `refresh` looks again for what other processes committed."""
        with self._mutex:
            if refresh or view not in self._views:
                self._views[view] = self._read_view(view)
            return self._views[view]

    def is_committed(self, view: int, shard: int) -> bool:
        """Whether a shard is committed; asks the disk again before it says no.

        Raises:
            CorruptFile: the manifest file that would say so is damaged.
        """
        entries = self.view(view)
        if shard in entries.shards:
            return True
        if shard in entries.damaged:
            raise entries.damaged[shard]
        if self.place.exists(self._entry_name(view, shard)):
            found = self._read_entry(self._entry_name(view, shard))  # this one alone: others may be thousands
            if isinstance(found, CorruptFile):
                raise found
            if found is not None:
                with self._mutex:
                    entries.add(found)
                return True
        return self.place.exists(self._compact_name(view)) and shard in self.view(view, refresh=True).shards

    def commit_shard(
        self,
        view: int,
        shard: int,
        files: Mapping[str, FileDigest],
        invalid: Mapping[int, str] | None = None,
        clipped: Mapping[str, int] | None = None,
    ) -> None:
        """Commit a shard whose files are durable (array -> digest); compacts the view when it is complete."""
        self.commit_entries([(view, ViewEntries.of_shard(shard, files, invalid, clipped))])

    def commit_entries(self, entries: Sequence[tuple[int, ViewEntries]]) -> None:
        """As `commit_shard`, for several at once: each a view, and the entry of one shard of it."""
        self.place.write(
            {
                self._entry_name(view, shard): [seal(entry.to_dict(self.part, view))]
                for view, entry in entries
                for shard in entry.shards
            }
        )
        for view, entry in entries:
            with self._mutex:
                self.view(view).add(entry)
        for view in sorted({view for view, _ in entries}):
            self.compact(view)

    def compact(self, view: int) -> None:
        """Turn the entries of a complete view into one file; does nothing to an incomplete one."""
        entries, is_compacted = self.view(view), self.place.exists(self._compact_name(view))
        # by another machine, it may be, whose shards this one does not know of: an entry written since is one too many
        if len(entries.shards) < self.metadata.num_shards and not is_compacted:
            return
        if not is_compacted:
            self._write(self._compact_name(view), entries.to_dict(self.part, view))
            fault_point("compact")
        self.place.remove(self._entry_folder(view))

    def uncommit(self, view: int, shard: int | None = None) -> None:
        """Forget that a view's shards, or one that has an entry of its own, are committed; durable when this returns.

        Every state that a kill leaves in between is that of a half-finished view.
        """
        if shard is not None and not self.place.exists(self._compact_name(view)):
            self.place.delete([self._entry_name(view, shard)])
        else:
            # Entries first: without them the compacted file still commits every shard, and no entry is left alone.
            self.place.delete([name for name in self.place.sizes(self._entry_folder(view)) if _ENTRY.search(name)])
            self.place.remove(self._entry_folder(view))
            self.place.delete([self._compact_name(view)])
        self._views.pop(view, None)

    def pending(self, num_views: int) -> list[tuple[int, int]]:
        """The (view, shard) of the first `num_views` views that are not committed, in order.

        Raises:
            CorruptFile: a manifest file is damaged.
        """
        left = []
        for view in range(num_views):
            entries = self.view(view, refresh=True)
            for error in entries.damaged.values():
                raise error
            committed = entries.shards
            left += [(view, shard) for shard in range(self.metadata.num_shards) if shard not in committed]
        return left

    def entry_files(self) -> list[str]:
        """The names of every manifest file of the part that exists."""
        names = (PurePosixPath(name) for name in self.place.sizes(self.folder))
        return [path.as_posix() for path in names if path.suffix == ".json" and not path.name.startswith(".")]

    def _entry_folder(self, view: int) -> str:
        return f"{self.folder}/view_{view:04d}"

    def _entry_name(self, view: int, shard: int) -> str:
        return f"{self._entry_folder(view)}/shard_{shard:06d}.json"

    def _compact_name(self, view: int) -> str:
        return f"{self.folder}/view_{view:04d}.json"

    def _read_view(self, view: int) -> ViewEntries:
        self.metadata  # noqa: B018  what entries are held to: its own errors are not theirs
        # Entries first: a compaction that happens between the two looks then loses nothing.
        singles = [name for name in self.place.sizes(self._entry_folder(view)) if _ENTRY.search(name)]
        entries = ViewEntries()
        with ThreadPoolExecutor(self.place.num_readers) as pool:  # an entry a request, where it lies far away
            for name, found in zip(singles, pool.map(self._read_entry, singles), strict=True):
                if isinstance(found, CorruptFile):  # its reach is one shard
                    entries.damaged[view_and_shard(name)[1] or 0] = found
                elif found is not None:
                    entries.add(found)
        if self.place.exists(self._compact_name(view)):
            whole = self._entries(self._compact_name(view), view)
            whole.add(entries)
            return whole
        return entries

    def _read_entry(self, name: str) -> ViewEntries | CorruptFile | None:
        try:
            return self._entries(name, view_and_shard(name)[0] or 0)
        except FileNotFoundError:
            return None  # compacted meanwhile
        except CorruptFile as error:
            return error

    def _entries(self, name: str, view: int) -> ViewEntries:
        path = self.place.show(name)
        entries = ViewEntries.of_document(self.read(name), path)
        entries.check(self.metadata, view, path)
        return entries

    def read(self, name: str) -> dict[str, Any]:
        """The content of a manifest file of this part, named by its path below the store.

        Raises:
            CorruptFile: it is not what was written there.
            FileNotFoundError: there is none.
        """
        path = self.place.show(name)
        view, shard = view_and_shard(name)
        most = MOST_METADATA_BYTES if view is None else MOST_ENTRIES_BYTES
        try:
            plain = unseal(self.place.read(name, most), path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CorruptFile(path, f"it cannot be read: {error}") from error
        if plain.get("part") != self.part:
            raise CorruptFile(path, f"it belongs to {plain.get('part')}")
        if plain.get("view") != view or (shard is not None and plain.get("shards") != [shard]):
            raise CorruptFile(path, f"it belongs to view {plain.get('view')}, shards {plain.get('shards')}")
        return plain

    def _write(self, name: str, document: Mapping[str, Any], replace: bool = False) -> None:
        self.place.write({name: [seal(document)]}, replace=replace)
