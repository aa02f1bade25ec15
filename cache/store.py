"""A store: creating, finding and opening one, and what it holds."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.calibration.statistics import level_constants, needed_tables
from cache.calibration.stored import calibration_folder, read_calibration
from cache.codecs import get_codec
from cache.errors import BadInput, LeftOut, NotCalibrated, NotLocal, SpecMismatch, StoreNotFound, UnfinishedStore
from cache.format.documents import refused_as
from cache.format.layout import source_arrays
from cache.format.manifest import CLOSED, FOLDER, LOG, SOURCE, PartManifest, teacher_part
from cache.format.parts import committed_spec, committed_teacher, create_part, grow_part, source_groups
from cache.format.spec import LevelSpec, SourceSpec, decode_ids
from cache.places.addresses import as_place
from cache.places.files import canonical_json
from cache.places.local import LocalPlace
from cache.places.locks import Holds, OnWait
from cache.places.place import Place
from cache.reading.arrays import ArrayTable, FeatureArray, StoredArray
from cache.reading.rows import OpenShards, RowReader
from sak_common.differences import first_difference
from sak_common.names import UnknownName, find, unknown

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

    @property
    def maps(self) -> tuple[LevelSpec, ...]:
        """The levels themselves, shallowest first, without the arrays of their prefix tokens."""
        return tuple(sorted((level for level in self.levels if not level.prefix), key=lambda level: level.level))


class Store:
    """An open store. Get one by `Store.create`, `Store.open` or `find_stores`.

    Reading is safe from several threads, and a store, its levels and arrays can be pickled, as for a DataLoader's
    workers. A half-finished store gives the rows that are committed.

    Attributes:
        place: where its files lie.
        name: its folder's name.
        spec: what its source part was made with.
    """

    def __init__(self, place: Place, spec: SourceSpec) -> None:
        self.place, self.name, self.spec = place, place.name, spec
        self._parts: dict[str, PartManifest] = {}
        self._files = OpenShards()
        self._rows: dict[str, RowReader] = {}
        self._features: dict[tuple[str, int, bool], FeatureArray] = {}
        self._holds = Holds()
        self._mutex = threading.RLock()

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.place,)  # another process opens it anew: locks and open files are this one's

    def __str__(self) -> str:
        return self.place.shown

    @property
    def path(self) -> Path:
        """Its folder.

        Raises:
            NotLocal: it is no folder of this machine.
        """
        if isinstance(self.place, LocalPlace):
            return self.place.path
        raise NotLocal(f"{self} is not a folder of this machine")

    @property
    def stores(self) -> tuple[Store, ...]:
        """Itself; of several that are read as one, each. (No attribute: who holds itself keeps its files open.)"""
        return (self,)

    def zarr(self) -> Any:
        """The store for zarr-python, wherever it lies: ``zarr.open_group(store.zarr(), mode="r")``."""
        from cache.reading.zarr_nodes import zarr_nodes

        return zarr_nodes(self.place.zarr())

    # -- creating, opening ------------------------------------------------------------------------

    @classmethod
    def create(
        cls, root: Place | Path | str, spec: SourceSpec, on_wait: OnWait | None = None, left_out: Collection[str] = ()
    ) -> Store:
        """The store for `spec` below `root`: a new one without views, or the one that is there already.

        Args:
            on_wait: is told once, in words, if another process works on its source, which this waits for.
            left_out: what it may be without, and a new one is, see `Store.left_out`.

        Raises:
            LeftOut: it is without more.
            SpecMismatch: it was made with another `spec`; names the first differing field and both values.
        """
        place = as_place(root) / spec.store_name
        with place.lock(f"{FOLDER}/{SOURCE}/lock", f"the source of {place.shown}", wait=True, on_wait=on_wait):
            manifest = PartManifest(place, SOURCE)
            if not manifest.exists:
                manifest.leave_out(left_out)
                arrays = source_arrays(spec)
                create_part(place, manifest, source_groups(spec), arrays, spec.num_samples, spec.rows_per_shard)
        store = cls.open(place)
        if difference := first_difference(store.spec.to_dict(), spec.to_dict()):
            raise SpecMismatch(f"the store {place.shown}", *difference)
        if not store.left_out <= set(left_out):
            raise LeftOut(store, store.left_out)
        return store

    @classmethod
    def open(cls, where: Place | Path | str) -> Store:
        """The store at a path, or at an address such as ``s3://bucket/features/x.zarr``.

        Raises:
            StoreNotFound: there is none; UnfinishedStore where its creation never finished.
            CorruptFile: its metadata is not what was committed.
        """
        place = as_place(where)
        manifest = PartManifest(place, SOURCE)
        if not manifest.exists:
            if place.folders():
                raise UnfinishedStore(f"{place.shown} is no store: an unfinished creation")
            raise StoreNotFound(f"{place.shown} is no store: nothing there")
        store = cls(place, committed_spec(place, manifest))
        store._parts[SOURCE] = manifest
        return store

    # -- parts ------------------------------------------------------------------------------------

    def part(self, part: str) -> PartManifest:
        """The manifest of a part, ``source`` or ``teachers/<name>`` (which may not exist yet); reads nothing."""
        with self._mutex:
            if part not in self._parts:
                self._parts[part] = PartManifest(self.place, part)
            return self._parts[part]

    @property
    def num_views(self) -> int:
        """Views of the source part that are written or being written.

        Raises:
            CorruptFile: its metadata is damaged.
        """
        return self.part(SOURCE).metadata.num_views

    @property
    def left_out(self) -> frozenset[str]:
        """``pixels`` and ``labels/<task>`` where they are committed and their files are not here: published without
        them, a store raises `LeftOut` where they are read. Errors as `num_views`.
        """
        return self.part(SOURCE).left_out

    def ensure_views(self, num_views: int) -> None:
        """Make room for `num_views` views in the source part; existing bytes of rows stay as they are. Fewer than there
        are change nothing; teachers' arrays grow when their views are written.

        Raises:
            CorruptFile: the part's metadata is damaged.
            StoreFull, WriteFailed: metadata cannot be written; the store is as it was.
        """
        with self.lock(SOURCE):
            grow_part(self.place, self.part(SOURCE), num_views)

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers, in alphabetical order."""
        names = self.place.folders(f"{FOLDER}/teachers")
        return [name for name in names if self.part(teacher_part(name)).exists]

    def teacher(self, name: str) -> TeacherInfo:
        """What is known about a teacher.

        Raises:
            UnknownName: it is not in this store.
            CorruptFile: its metadata is not what was committed.
        """
        if name not in self.teachers:
            raise UnknownName(unknown(f"teacher in {self.name}", name, self.teachers))
        manifest = self.part(teacher_part(name))
        provenance, levels = committed_teacher(self.place, manifest, self.spec, name)
        return TeacherInfo(name, provenance, levels, manifest.metadata.num_views)

    def calibration(self, teacher: str, names: Collection[str] | None = None) -> dict[str, Array] | None:
        """A teacher's calibration arrays, ``level_<i>/<name>`` -> array, or None where none is committed.

        Args:
            names: only these arrays; all by default.

        Raises:
            CorruptFile: a file is not what was committed.
        """
        return read_calibration(self.place, teacher, self.part(teacher_part(teacher)), names)

    @contextmanager
    def lock(self, part: str, wait: bool = True, on_wait: OnWait | None = None) -> Iterator[None]:
        """Be the only process and thread that writes a part while the block runs; may be nested within a thread.

        Another thread may end the block, as where a worker takes over what its caller has locked.

        Args:
            part: ``source``, ``teachers/<name>`` or a teacher's name.
            wait: wait for another process or thread, or refuse.
            on_wait: is told once, in words, that there is something to wait for.

        Raises:
            StoreLocked: another process or thread holds the part and `wait` is false.
        """
        if part != SOURCE and not part.startswith("teachers/"):
            part = teacher_part(part)

        @contextmanager
        def taken() -> Iterator[None]:
            with self.place.lock(f"{FOLDER}/{part}/lock", what, wait, on_wait):
                self.part(part).forget()  # whoever held the lock before may have changed it
                yield

        what = f"{part} of {self}"
        with self._holds.hold(part, what, taken, wait, on_wait):
            yield

    # -- reading ----------------------------------------------------------------------------------

    def rows(self, part: str, array: str) -> RowReader:
        """The reader of stored rows of the array at path `array` of a part.

        Raises:
            KeyError: the part has no such array.
            LeftOut: its files are not here.
            CorruptFile: its metadata is not what was committed.
        """
        with self._mutex:
            if array not in self._rows:
                manifest = self.part(part)
                if array in manifest.left_out:
                    raise LeftOut(self, manifest.left_out)
                spec = manifest.metadata.arrays[array]
                self._rows[array] = RowReader(self.place, manifest, spec, self._files)
            return self._rows[array]

    @cached_property
    def pixels(self) -> StoredArray:
        """``store.pixels[sample, view]``: uint8 (H, W, 3); errors as `StoredArray`."""
        return StoredArray(self.rows(SOURCE, "pixels"))

    @cached_property
    def labels(self) -> ArrayTable:
        """``store.labels[task][sample, view]``: (H, W) or (H, W, c) of the task's dtype; 255 = ignore.

        Raises:
            UnknownName: there is no such task; what indexing an array raises, see `StoredArray`.
        """
        return self._table("task with labels", "labels", self.spec.labels)

    @cached_property
    def views(self) -> ArrayTable:
        """``store.views["box"|"flip"|"colour"][sample, view]``: float32 (4,) px, uint8 (), float32 (5,). Errors as
        `labels`.
        """
        return self._table("view field", "views", ("box", "flip", "colour"))

    @cached_property
    def samples(self) -> ArrayTable:
        """``store.samples["ids"|"size"|"digest"|"valid"][samples]``, a row a sample.

        ids uint8 (width,), see `ids`; size int32 (2,): original height and width, px; digest uint8 (32,);
        valid uint8 (), 1 or 0. Errors as `labels`.
        """
        return self._table("sample field", "samples", ("ids", "size", "digest", "valid"))

    def _table(self, what: str, group: str, names: Mapping[str, Any] | Sequence[str]) -> ArrayTable:
        return ArrayTable(what, {name: StoredArray(self.rows(SOURCE, f"{group}/{name}")) for name in names})

    def ids(self, samples: int | slice | Sequence[int] = slice(None)) -> list[str]:
        """Sample ids, all by default; errors as `StoredArray`."""
        table = np.atleast_2d(self.samples["ids"][samples])
        with refused_as(self.place.show("samples/ids")):
            return decode_ids(table)

    def features(self, teacher: str, level: int, prefix: bool = False) -> FeatureArray:
        """``store.features("dinov2", level=2)[sample, view]``: float32 (h, w, C), or (P, C) of its prefix tokens.

        Raises:
            UnknownName: the teacher or level is not in this store.
            CorruptFile: its metadata or calibration is not what was committed.
            NotCalibrated: its codec needs a calibration, and none is committed yet.
        """
        with self._mutex:
            if (teacher, level, prefix) not in self._features:
                spec = self.level(teacher, level, prefix)
                codec = get_codec(spec.codec)
                needs = [f"{spec.array}/{name}" for name in needed_tables(spec)]
                calibration = self.calibration(teacher, needs) if needs else {}
                if calibration is None:
                    raise NotCalibrated(f"{teacher} in {self} is not calibrated yet")
                rows = self.rows(teacher_part(teacher), f"teachers/{teacher}/{spec.array}")
                lower = None if spec.predicts_from is None else self.features(teacher, spec.predicts_from)
                with refused_as(self.place.show(calibration_folder(teacher))):
                    constants = level_constants(spec, calibration, None if lower is None else lower.level.width)
                self._features[teacher, level, prefix] = FeatureArray(rows, spec, codec, constants, lower)
            return self._features[teacher, level, prefix]

    def level(self, teacher: str, level: int, prefix: bool = False) -> LevelSpec:
        """How a teacher's level (or its prefix tokens) is stored; errors as `teacher`."""
        levels = {str(spec.level): spec for spec in self.teacher(teacher).levels if spec.prefix == prefix}
        return find(f"level of {teacher}", str(level), levels)

    def is_complete(self, part: str, num_views: int) -> bool:
        """Whether every shard of the part's first `num_views` views is committed; errors as `invalid`."""
        manifest = self.part(part)
        return manifest.exists and not manifest.pending(num_views)

    def invalid(self, num_views: int) -> dict[int, str]:
        """Samples with an invalid row among the first `num_views` views, and why (from committed shards).

        Raises:
            CorruptFile: a manifest file is damaged.
        """
        reasons: dict[int, str] = {}
        for view in reversed(range(num_views)):
            reasons.update(self.part(SOURCE).view(view).invalid)
        return dict(sorted(reasons.items()))

    def valid(self, num_views: int) -> npt.NDArray[np.bool_]:
        """bool (N,): the samples whose rows are valid in each of the first `num_views` views; errors as `invalid`."""
        valid = np.ones(self.spec.num_samples, np.bool_)
        valid[list(self.invalid(num_views))] = False
        return valid

    # -- the log ----------------------------------------------------------------------------------

    @property
    def log_file(self) -> str:
        """Where `log` writes, below the store."""
        return f"{FOLDER}/{LOG}" if CLOSED in self.part(SOURCE).metadata.files else LOG

    def log(self, event: Mapping[str, Any]) -> None:
        """Append a line to `log_file`: times, hosts, speeds. Outside of every digest; errors as `Place.append`."""
        self.place.append(self.log_file, canonical_json(dict(event)))


def find_stores(
    root: Place | Path | str,
    dataset: str | None = None,
    split: str | None = None,
    size: tuple[int, int] | None = None,
) -> list[Store]:
    """The stores below `root` that match what is given, by name; an empty list where none does.

    Raises:
        BadInput: `root` is not a folder.
        CorruptFile: metadata of one of them is not what was committed.
    """
    root = as_place(root)
    if isinstance(root, LocalPlace) and not root.path.is_dir():
        raise BadInput(f"{root.shown} is not a folder, so it holds no stores")
    stores = []
    for name in root.folders():
        place = root / name
        if not name.endswith(".zarr") or not PartManifest(place, SOURCE).exists:
            continue
        store = Store.open(place)
        spec = store.spec
        asked = (dataset, spec.dataset), (split, spec.split), (size and tuple(size), spec.size)
        if all(want is None or want == have for want, have in asked):
            stores.append(store)
    return stores
