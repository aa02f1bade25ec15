"""Reads mutated stores in a process that may take little memory and open nothing outside of the store."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.format.spec import LevelSpec
from cache.loading.loader import Loader
from cache.maintenance.store_copy import copy_store, plan_copy, select
from cache.maintenance.verification import verify_store
from cache.places.files import canonical_json
from cache.store import Store
from pipeline.maintenance.inspect import info_text, store_info
from sak_common.errors import SakError
from tests import cache_toy as toy
from tests.fuzz_mutations import Mutation, Mutator

CODECS: dict[str, tuple[LevelSpec, ...]] = {
    "fp32": (LevelSpec(0, (3, 4), 6, "fp32"), LevelSpec(0, (1, 2), 6, "fp32", prefix=True)),
    "fp16": (LevelSpec(0, (3, 4), 6, "fp16"), LevelSpec(1, (2, 2), 6, "bf16")),
    "int8": (LevelSpec(0, (3, 4), 6, "int8"), LevelSpec(1, (3, 4), 5, "int4")),
    "klt": (LevelSpec(0, (3, 4), 6, "klt"), LevelSpec(1, (3, 4), 5, "klt", predicts_from=0)),
    "klt+pcodec": (LevelSpec(0, (3, 4), 6, "klt+pcodec", fidelity=0.99),),
    "klt+trellis": (LevelSpec(0, (3, 4), 6, "klt+trellis", fidelity=0.99),),
}
"""Small stores: all codecs, a level of prefix tokens, one that is predicted."""
TEACHER = "t"
MADE = {
    "teacher": {
        "library": "none", "model": "none", "weights": "sha256:00", "licence": "none", "input_size": [6, 7],
        "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3, "levels": [0, 1],
    },
    "versions": {"torch": "2"}, "precision": "fp32", "batch_size": 8, "threads": 1, "grid": "native", "device": "cpu",
}  # fmt: skip
"""Of a provenance, what is told of it."""
MOST_MEMORY = 3 << 29
"""That reading may take beyond what the process has, in bytes."""
MOST_S = 10
"""Processor time for one store."""
WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
Rows = dict[str, np.ndarray[Any, np.dtype[Any]]]


class Outside(BaseException):
    """Something was opened that is not the store's, or written."""


class _Guard:
    """Keeps this process, while it is on, from files outside of `inside`."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.may_write: list[str] = []
        sys.addaudithook(self._hear)
        libraries = [
            sys.prefix,
            sys.base_prefix,
            *(path for path in sys.path if path),
            str(Path.cwd()),
            "/proc",
            "/sys",
        ]
        self._libraries = [os.path.realpath(path) for path in [*libraries, "/dev/null", "/dev/shm"]]

    @contextmanager
    def on(self, *inside: Path, may_write: Path | None = None) -> Iterator[None]:
        self.may_write = [os.path.realpath(may_write)] if may_write else []
        self.inside = [*(os.path.realpath(path) for path in inside), *self.may_write]
        try:
            yield
        finally:
            self.inside = []

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.inside or event not in ("open", "os.scandir", "os.listdir", *WRITES):
            return
        if not isinstance(args[0], str | bytes | os.PathLike) or not os.path.isabs(args[0]):  # noqa: PTH117
            return  # by a descriptor, which was opened by its path, and what lies below it
        path = os.path.realpath(os.fsdecode(args[0]))
        flags = args[2] if event == "open" and isinstance(args[2], int) else 0
        writes = event in WRITES or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        allowed = self.may_write if writes else [*self.inside, *self._libraries]
        if not any(path == folder or path.startswith(f"{folder}/") for folder in allowed):
            raise Outside(f"{event} {path}")


def make_store(root: Path, codec: str) -> Path:
    """A store of 5 samples in 2 views, one of them unreadable."""
    store = Store.create(root, toy.toy_spec(num_samples=5, rows_per_shard=2))
    toy.write_source(store, 2, {3: "truncated"})
    toy.write_teacher(store, 2, TEACHER, CODECS[codec], **MADE)
    store.log({"stage": "made", "host": "here"})
    return store.path


def _rows(store: Store) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every row of every array, each to be read when called."""
    spec = store.spec
    for sample in range(min(spec.num_samples, 8)):
        yield f"id {sample}", lambda sample=sample: np.array(store.ids(sample))
        for name in ("size", "digest", "valid"):
            yield f"{name} {sample}", lambda name=name, sample=sample: store.samples[name][sample]
        for view in range(min(store.num_views, 2)):
            at = sample, view
            yield f"pixels {at}", lambda at=at: store.pixels[at]
            for table in (store.views, store.labels):
                for name in table:
                    yield f"{name} {at}", lambda table=table, name=name, at=at: table[name][at]
    for teacher in store.teachers:
        info = store.teacher(teacher)
        for level in info.levels:
            array = store.features(teacher, level.level, level.prefix)
            for sample in range(min(spec.num_samples, 8)):
                for view in range(min(info.num_views, 2)):
                    at = sample, view
                    yield f"{level.array} {at}", lambda array=array, at=at: array[at]


def read_rows(path: Path) -> Rows:
    """What can be read of the rows; what is refused is left out."""
    rows: Rows = {}
    try:
        for name, read in _rows(Store.open(path)):
            try:
                rows[name] = read()
            except SakError:
                continue
    except SakError:
        pass
    return rows


def read_batch(path: Path) -> Rows:
    """The first batch of training, decoded."""
    store = Store.open(path)
    prefixes = [TEACHER] if any(level.prefix for level in store.teacher(TEACHER).levels) else []
    loader = Loader(
        store, [TEACHER], list(store.labels), batch_size=2, num_views=2, prefixes=prefixes, num_threads=1, prefetch=1,
        pin=False,
    )  # fmt: skip
    batch = next(iter(loader)).to("cpu")
    tensors = {"batch pixels": batch.pixels, **{f"batch {task}": label for task, label in batch.labels.items()}}
    for kind, levels in (("map", batch.features[TEACHER]), ("prefix", batch.prefixes.get(TEACHER, []))):
        tensors |= {f"batch {kind} {number}": level for number, level in enumerate(levels)}
    return {"batch samples": batch.samples.numpy(), **{name: tensor.numpy() for name, tensor in tensors.items()}}


class Fuzz:
    """Reads one store after each of many mutations.

    Attributes:
        counts: (kind of mutation, outcome) -> how often.
        failures: what must not have happened, with how to see it again.
    """

    def __init__(self, folder: Path, codec: str, seed: int, guard: _Guard) -> None:
        self.folder, self.codec, self.seed, self.guard = folder, codec, seed, guard
        self.store = make_store(folder / "features", codec)
        self.outside = folder / "outside"
        self.mutator = Mutator(self.store, self.outside, seed)
        self.rows, self.batch = read_rows(self.store), read_batch(self.store)
        assert verify_store(self.store) == [] and len(self.rows) > 80, "the intact store must be read whole"
        self._info()
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def _info(self) -> Rows:
        info_text(store_info(self.store))
        return {}

    def _copy(self) -> Rows:
        store = Store.open(self.store)
        copy_store(plan_copy(store, self.folder / "copies", select(store)))
        return {}

    def run(self, count: int) -> None:
        """Mutate, read, put right."""
        for number in range(count):
            mutation = self.mutator.next()
            try:
                outcome = self.look_at(mutation, copies=number % 5 == 0)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcome = "FAILED"
                signal.setitimer(signal.ITIMER_PROF, 0)
                where = "".join(traceback.format_exception(error, limit=-4))
                self.failures.append(f"{self.codec}, seed {self.seed}, mutation {number}: {mutation}: {where}")
            self.counts[f"{mutation.kind}: {outcome}"] += 1
            self.mutator.restore(mutation)

    def look_at(self, mutation: Mutation, copies: bool) -> str:
        """What comes of reading it: in a word, or an exception that no reader should see."""
        refused: list[str] = []
        others: list[str] = []
        signal.setitimer(signal.ITIMER_PROF, MOST_S)
        probes: list[tuple[str, Callable[[], Rows], Rows]] = [
            ("info", self._info, {}),
            ("rows", lambda: read_rows(self.store), self.rows),
            ("batch", lambda: read_batch(self.store), self.batch),
        ]
        problems: list[Any] = []
        with self.guard.on(self.store):
            try:
                problems = verify_store(self.store)
            except SakError as error:
                problems = [error]
            for name, probe, right in probes:
                try:
                    found = probe()
                except SakError as error:
                    refused.append(f"{name}: {error}")
                    continue
                others += [key for key in found if key not in right or not _equal(found[key], right[key])]
                refused += [key for key in right if key not in found]
        if copies:
            self._copied(problems)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if others and mutation.is_damage:
            assert mutation.keeps_checksums, f"other numbers in silence: {others[:5]}"
            assert problems, f"not even verifying tells of {others[:5]}"
            return "other numbers, told by verify alone"
        if mutation.is_damage:
            assert problems or refused, "damage that nobody tells of"
        if others:
            return "the stranger's own numbers"
        return "refused" if refused else "found by verify" if problems else "the right numbers"

    def _copied(self, problems: list[Any]) -> None:
        (self.folder / "copies").mkdir()
        with self.guard.on(self.store, may_write=self.folder / "copies"):
            try:
                self._copy()
            except SakError as error:
                problems.append(error)
            finally:
                shutil.rmtree(self.folder / "copies")


def _equal(one: Any, other: Any) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {MOST_S} s for one store")


def main(folder: Path, count: int, seed: int) -> None:
    """Print what came of `count` mutations of each of the small stores, as JSON."""
    os.fsync = lambda descriptor: None  # nothing here survives a power cut, and nothing needs to
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _too_long)
    guard = _Guard()
    fuzzes = [Fuzz(folder / codec, codec, seed + number, guard) for number, codec in enumerate(CODECS)]
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_MEMORY, resource.RLIM_INFINITY))
    counts: Counter[str] = Counter()
    for fuzz in fuzzes:
        fuzz.run(count)
        counts += fuzz.counts
        shutil.rmtree(fuzz.folder)
    failures = [failure for fuzz in fuzzes for failure in fuzz.failures]
    sys.stdout.write(canonical_json({"counts": counts, "failures": failures}).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
