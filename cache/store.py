"""A store: creating, finding and opening one, and what it holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.calibration import level_constants, read_calibration
from cache.codecs import get_codec
from cache.errors import BadInput, CacheError, SpecMismatch, StoreNotFound, UnknownName
from cache.files import canonical_json
from cache.layout import group_json, source_arrays
from cache.locks import OnWait, file_lock
from cache.manifest import FOLDER, SOURCE, PartManifest, teacher_part
from cache.parts import ATTRIBUTE, committed_attributes, create_part, grow_part
from cache.reader import ArrayTable, FeatureArray, StoredArray
from cache.rows import OpenShards, RowReader
from cache.spec import FORMAT_VERSION, LevelSpec, SourceSpec, decode_ids, first_difference

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TeacherInfo:
    """A teacher in a store.

    Attributes:
        name: its folder's name.
        provenance: what made its features, JSON values.
        levels: as stored.
        num_views: views that are written or being written.
    """

    name: str
    provenance: Mapping[str, Any]
    levels: tuple[LevelSpec, ...]
    num_views: int


class Store:
    """An open store. Get one by `Store.create`, `Store.open` or `find_stores`.

    Reading is safe from several threads. A half-finished store gives the rows that are committed.

    Attributes:
        path: its folder.
        spec: what its source part was made with.
    """

    def __init__(self, path: Path, spec: SourceSpec) -> None:
        self.path, self.spec = path, spec
        self._parts: dict[str, PartManifest] = {}
        self._files = OpenShards()
        self._rows: dict[str, RowReader] = {}
        self._features: dict[tuple[str, int], FeatureArray] = {}
        self._held: dict[str, int] = {}
        self._mutex = threading.RLock()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    # -- creating, opening ------------------------------------------------------------------------

    @classmethod
    def create(cls, root: Path | str, spec: SourceSpec) -> Store:
        """The store for `spec` below `root`: a new one without views, or the one that is there already.

        Raises:
            SpecMismatch: it was made with another `spec`; names the first differing field and both values.
        """
        path = Path(root) / spec.store_name
        with file_lock(path / FOLDER / SOURCE / "lock", f"the source of {path}", wait=True):
            if not PartManifest(path, SOURCE).exists:
                groups = {
                    "zarr.json": group_json({ATTRIBUTE: {"format": FORMAT_VERSION, "spec": spec.to_dict()}}),
                    **{f"{name}/zarr.json": group_json({}) for name in ("samples", "views", "teachers")},
                }
                if spec.labels:
                    groups["labels/zarr.json"] = group_json({})
                create_part(
                    path,
                    PartManifest(path, SOURCE),
                    groups,
                    source_arrays(spec),
                    spec.num_samples,
                    spec.rows_per_shard,
                )
        store = cls.open(path)
        if difference := first_difference(store.spec.to_dict(), spec.to_dict()):
            raise SpecMismatch(
                f"the store {path}",
                *difference,
                "Ask for the stored value, or give another output folder (OUT=...) for a store of its own.",
            )
        return store

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """The store at `path`.

        Raises:
            StoreNotFound: there is none, or its creation never finished.
            CorruptFile: its metadata is not what was committed.
        """
        path = Path(path)
        manifest = PartManifest(path, SOURCE)
        if not manifest.exists:
            what = "an unfinished creation; run `sak cache` again" if path.exists() else "nothing there"
            raise StoreNotFound(f"{path} is no store: {what}")
        attributes = committed_attributes(path, manifest, "zarr.json")
        store = cls(path, SourceSpec.from_dict(attributes["spec"]))
        store._parts[SOURCE] = manifest
        return store

    # -- parts ------------------------------------------------------------------------------------

    def part(self, part: str) -> PartManifest:
        """The manifest of a part, ``source`` or ``teachers/<name>`` (which may not exist yet)."""
        with self._mutex:
            if part not in self._parts:
                self._parts[part] = PartManifest(self.path, part)
            return self._parts[part]

    @property
    def num_views(self) -> int:
        """Views of the source part that are written or being written."""
        return self.part(SOURCE).metadata.num_views

    def ensure_views(self, num_views: int) -> None:
        """Make room for `num_views` views in the source part; existing bytes of rows stay as they are.

        More than the store has grows its arrays' shapes; fewer changes nothing. Teachers' arrays grow when
        their views are written.
        """
        with self.lock(SOURCE):
            grow_part(self.path, self.part(SOURCE), num_views)

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers, in alphabetical order."""
        folder = self.path / FOLDER / "teachers"
        return sorted(path.parent.name for path in folder.glob("*/metadata.json"))

    def teacher(self, name: str) -> TeacherInfo:
        """What is known about a teacher.

        Raises:
            UnknownName: it is not in this store.
            CorruptFile: its metadata is not what was committed.
        """
        if name not in self.teachers:
            raise UnknownName(f"teacher in {self.path.name}", name, self.teachers)
        manifest = self.part(teacher_part(name))
        attributes = committed_attributes(self.path, manifest, f"teachers/{name}/zarr.json")
        levels = tuple(LevelSpec(**level) for level in attributes["levels"])
        return TeacherInfo(name, attributes["provenance"], levels, manifest.metadata.num_views)

    def calibration(self, teacher: str) -> dict[str, Array] | None:
        """A teacher's calibration arrays, ``level_<i>/<name>`` -> array, or None where none is committed.

        Raises:
            CorruptFile: a file is not what was committed.
        """
        return read_calibration(self.path, teacher, self.part(teacher_part(teacher)))

    @contextmanager
    def lock(self, part: str, wait: bool = True, on_wait: OnWait | None = None) -> Iterator[None]:
        """Be the only process that writes a part while the block runs; may be nested.

        Args:
            part: ``source``, ``teachers/<name>`` or a teacher's name.
            wait: wait for another process, or refuse.
            on_wait: is told once, in words, that there is something to wait for.

        Raises:
            StoreLocked: another process holds the part and `wait` is false.
        """
        if part != SOURCE and not part.startswith("teachers/"):
            part = teacher_part(part)
        with self._mutex:
            is_held = self._held.get(part, 0) > 0
            self._held[part] = self._held.get(part, 0) + 1
        try:
            if is_held:
                yield
            else:
                with file_lock(self.path / FOLDER / part / "lock", f"{part} of {self.path}", wait, on_wait):
                    self.part(part).forget()  # whoever held the lock before may have changed it
                    yield
        finally:
            with self._mutex:
                self._held[part] -= 1

    # -- reading ----------------------------------------------------------------------------------

    def rows(self, part: str, array: str) -> RowReader:
        """The reader of stored rows of the array at path `array` of a part."""
        with self._mutex:
            if array not in self._rows:
                manifest = self.part(part)
                spec = manifest.metadata.arrays[array]
                self._rows[array] = RowReader(self.path, manifest, spec, self._files)
            return self._rows[array]

    @cached_property
    def pixels(self) -> StoredArray:
        """``store.pixels[sample, view]``: uint8 (H, W, 3)."""
        return StoredArray(self.rows(SOURCE, "pixels"))

    @cached_property
    def labels(self) -> ArrayTable:
        """``store.labels[task][sample, view]``: (H, W) or (H, W, c) of the task's dtype; 255 = ignore."""
        return self._table("task with labels", "labels", self.spec.labels)

    @cached_property
    def views(self) -> ArrayTable:
        """``store.views["box"|"flip"|"colour"][sample, view]``: float32 (4,) px, uint8 (), float32 (5,)."""
        return self._table("view field", "views", ("box", "flip", "colour"))

    @cached_property
    def samples(self) -> ArrayTable:
        """``store.samples["ids"|"size"|"digest"|"valid"][samples]``, a row a sample.

        ids uint8 (width,), see `ids`; size int32 (2,): original height and width, px; digest uint8 (32,);
        valid uint8 (), 1 or 0.
        """
        return self._table("sample field", "samples", ("ids", "size", "digest", "valid"))

    def _table(self, what: str, group: str, names: Mapping[str, Any] | Sequence[str]) -> ArrayTable:
        return ArrayTable(what, {name: StoredArray(self.rows(SOURCE, f"{group}/{name}")) for name in names})

    def ids(self, samples: int | slice | Sequence[int] = slice(None)) -> list[str]:
        """Sample ids, all by default; errors as `StoredArray`."""
        return decode_ids(np.atleast_2d(self.samples["ids"][samples]))

    def features(self, teacher: str, level: int) -> FeatureArray:
        """``store.features("dinov2", level=2)[sample, view]``: float32 (h, w, C).

        Raises:
            UnknownName: the teacher or level is not in this store.
            CorruptFile: its metadata or calibration is not what was committed.
            CacheError: its codec needs a calibration, and none is committed yet.
        """
        with self._mutex:
            if (teacher, level) not in self._features:
                spec = self.level(teacher, level)
                codec = get_codec(spec.codec)
                calibration = self.calibration(teacher) if codec.needs else {}
                if calibration is None:
                    raise CacheError(f"{teacher} in {self.path} is not calibrated yet; run `sak cache` again")
                rows = self.rows(teacher_part(teacher), f"teachers/{teacher}/{spec.array}")
                self._features[teacher, level] = FeatureArray(rows, spec, codec, level_constants(spec, calibration))
            return self._features[teacher, level]

    def level(self, teacher: str, level: int) -> LevelSpec:
        """How a teacher's level is stored; `UnknownName` where it is not."""
        levels = {str(spec.level): spec for spec in self.teacher(teacher).levels}
        if str(level) not in levels:
            raise UnknownName(f"level of {teacher}", str(level), levels)
        return levels[str(level)]

    def is_complete(self, part: str, num_views: int) -> bool:
        """Whether every shard of the part's first `num_views` views is committed."""
        manifest = self.part(part)
        return manifest.exists and not manifest.pending(num_views)

    def invalid(self, num_views: int) -> dict[int, str]:
        """Samples with an invalid row among the first `num_views` views, and why (from committed shards)."""
        reasons: dict[int, str] = {}
        for view in reversed(range(num_views)):
            reasons.update(self.part(SOURCE).view(view).invalid)
        return dict(sorted(reasons.items()))

    def valid(self, num_views: int) -> npt.NDArray[np.bool_]:
        """bool (N,): the samples whose rows are valid in each of the first `num_views` views."""
        valid = np.ones(self.spec.num_samples, np.bool_)
        valid[list(self.invalid(num_views))] = False
        return valid

    # -- the log ----------------------------------------------------------------------------------

    def log(self, event: Mapping[str, Any]) -> None:
        """Append a line to ``log.jsonl``: times, hosts, speeds. Outside of every digest."""
        descriptor = os.open(self.path / "log.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, canonical_json(dict(event)))
        finally:
            os.close(descriptor)


def find_stores(
    root: Path | str,
    dataset: str | None = None,
    split: str | None = None,
    size: tuple[int, int] | None = None,
) -> list[Store]:
    """The stores below `root` that match what is given, by name; an empty list where none does.

    Raises:
        BadInput: `root` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadInput(f"{root} is not a folder, so it holds no stores")
    stores = []
    for path in sorted(root.glob("*.zarr")):
        if not PartManifest(path, SOURCE).exists:
            continue
        store = Store.open(path)
        asked = (
            (dataset, store.spec.dataset),
            (split, store.spec.split),
            (size and tuple(size), store.spec.size),
        )
        if all(want is None or want == have for want, have in asked):
            stores.append(store)
    return stores
