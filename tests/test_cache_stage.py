"""Staging: what is read from far away is kept on this machine's disk: whole, checked, bounded, clean after a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import BadInput, CorruptFile, PlaceWarning
from cache.format.spec import LevelSpec
from cache.loading.loader import Loader
from cache.places.local import LocalPlace
from cache.places.open_files import OpenFile, Range
from cache.places.stage import Stage
from cache.places.staged import StagedPlace
from cache.store import Store
from tests import cache_toy as toy
from tests.conftest import logged, sak
from tests.mounts import mounted
from tests.test_nodes import TINY

GB = 10**9
WIDE = LevelSpec(0, (8, 8), 520, "fp16")
"""Rows of 66 kB: aligned, as those of real teachers are."""


class FarPlace(LocalPlace):
    """A folder that counts what is asked of its rows."""

    reads: int = 0
    num_readers = 8

    def __truediv__(self, name: str) -> FarPlace:
        return FarPlace(self.path / name)

    def open(self, name: str, num_bytes: int) -> OpenFile:
        return FarFile(super().open(name, num_bytes))


class FarFile(OpenFile):
    def __init__(self, file: OpenFile) -> None:
        self._file, self.shown = file, file.shown

    def read(self, start: int, num_bytes: int) -> bytes:
        FarPlace.reads += 1
        return self._file.read(start, num_bytes)

    def read_into(self, ranges: Sequence[Range]) -> None:
        FarPlace.reads += len(ranges)
        self._file.read_into(ranges)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = toy.make_store(tmp_path_factory.mktemp("far"), num_samples=40)
    toy.write_teacher(store, 2, "wide", [WIDE])
    toy.write_teacher(store, 2, "klt", [LevelSpec(0, (5, 4), 6, "klt", fidelity=0.99)])
    return store


@pytest.fixture(autouse=True)
def count() -> Iterator[None]:
    FarPlace.reads = 0
    yield


def far(store: Store, folder: Path, num_bytes: int = GB) -> Store:
    """The store as another process reads it."""
    return Store.open(StagedPlace(FarPlace(store.path), Stage(folder, num_bytes)))


def batches(store: Store, epoch: int = 0, **options: Any) -> list[dict[str, torch.Tensor]]:
    teachers = options.pop("teachers", ["mini-dino", "wide", "klt"])
    loader = Loader(store, teachers, ["normals"], batch_size=4, num_views=2, seed=4, pin=False, **options)
    loader.set_epoch(epoch)
    return [
        {
            "pixels": batch.pixels.clone(),
            "normals": batch.labels["normals"].clone(),
            **{f"{name}/{i}": t.clone() for name, levels in batch.features.items() for i, t in enumerate(levels)},
        }
        for batch in loader
    ]


def assert_same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> None:
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def staged_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "sak-stage").iterdir() if len(path.name) == 64)


def test_what_was_read_is_read_from_the_stage(store: Store, tmp_path: Path) -> None:
    """Every view once from afar; then nothing, in this process or the next, whatever the order."""
    for shuffle in (True, "block"):
        folder = tmp_path / str(shuffle)
        one = far(store, folder)
        for epoch in range(2):
            assert_same(batches(one, epoch, shuffle=shuffle), batches(store, epoch, shuffle=shuffle))
        assert FarPlace.reads > 0
        for again in (one, far(store, folder), pickle.loads(pickle.dumps(one))):
            batches(again)  # what the epochs cut off
            FarPlace.reads = 0
            for epoch in range(2):
                assert_same(batches(again, epoch, shuffle=shuffle), batches(store, epoch, shuffle=shuffle))
            assert FarPlace.reads == 0
            assert isinstance(again.place, StagedPlace) and again.place.held_bytes() > 0


def test_only_what_is_read_is_fetched(store: Store, tmp_path: Path) -> None:
    """A row's blocks, not its shard: epochs of one view of random rows do not read all views."""
    one = far(store, tmp_path)
    one.place.will_read(one.rows("teachers/wide", "teachers/wide/level_0").files(2))
    rows = one.rows("teachers/wide", "teachers/wide/level_0")
    np.testing.assert_array_equal(rows.read(5, 1), store.rows("teachers/wide", "teachers/wide/level_0").read(5, 1))
    size = rows.array.row_bytes + 4
    assert isinstance(one.place, StagedPlace) and size <= one.place.held_bytes() <= size + 3 * 4096
    taken = sum(512 * path.stat().st_blocks for path in staged_files(tmp_path))
    assert 0 < taken <= size + 8 * 4096


def test_it_is_read_as_from_far_away_until_the_stage_has_it_all(tmp_path: Path) -> None:
    """Many threads wait for a slow place; a disk near by they would only keep from each other."""
    store = Store.create(tmp_path / "far", toy.toy_spec(num_samples=40))
    toy.write_source(store, 2)
    toy.write_teacher(store, 2, "wide", [WIDE])
    one = far(store, tmp_path)
    counts = [one.place.num_readers]
    for epoch in range(2):
        batches(one, epoch, teachers=["wide"], drop_last=False)
        counts.append(one.place.num_readers)
    assert counts == [8, 8, store.place.num_readers]


def spoil_bytes(path: Path) -> None:
    """As a power cut may leave them: said to be there, and zero."""
    size = path.stat().st_size * 4096 // 4097
    with path.open("r+b") as file:
        file.write(bytes(size))


@pytest.mark.parametrize("damage", [spoil_bytes, lambda path: os.truncate(path, 100), Path.unlink])
def test_damage_is_seen_told_and_mended(store: Store, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    batches(far(store, tmp_path))
    for path in staged_files(tmp_path):
        damage(path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert_same(batches(far(store, tmp_path)), batches(store))
    assert any("fails its checksum" in str(one.message) for one in told) == (damage is spoil_bytes)
    FarPlace.reads = 0
    assert_same(batches(far(store, tmp_path)), batches(store))
    assert FarPlace.reads == 0


def test_what_is_damaged_where_it_lies_is_an_error(store: Store, tmp_path: Path) -> None:
    copy = Store.open(toy_copy(store, tmp_path / "copy"))
    toy.flip(copy.path / "teachers/wide/level_0/c.0.3.0.0.0", 77)
    with pytest.warns(PlaceWarning, match="fails its checksum"), pytest.raises(CorruptFile, match="fails its crc32c"):
        batches(far(copy, tmp_path / "stage"))
    toy.flip(copy.path / "teachers/wide/level_0/c.0.3.0.0.0", 77)  # mended there: what the stage has is not trusted
    with pytest.warns(PlaceWarning, match="fails its checksum"):
        assert_same(batches(far(copy, tmp_path / "stage")), batches(store))


def toy_copy(store: Store, path: Path) -> Path:
    shutil.copytree(store.path, path)
    return path


def test_a_cache_that_was_made_anew_is_read_anew(tmp_path: Path) -> None:
    """Another teacher of the same name, shapes and sizes: its rows have checksums that hold, and are not these."""
    stores = [toy.make_store(tmp_path / name, num_samples=16) for name in ("old", "new")]
    toy.write_teacher(stores[0], 1, "wide", [WIDE])
    with pytest.MonkeyPatch.context() as patch:
        real = toy.features
        patch.setattr(toy, "features", lambda *key: real(*key) + 1)
        toy.write_teacher(stores[1], 1, "wide", [WIDE])
    for store in stores:
        loaded = far(store, tmp_path / "stage")
        mine = loaded.features("wide", 0)
        loaded.place.will_read(mine.rows.files(1))
        np.testing.assert_array_equal(mine[3, 0], store.features("wide", 0)[3, 0])


def test_it_is_bounded_and_says_so(store: Store, tmp_path: Path) -> None:
    bound = 300_000
    for _ in range(2):
        one = far(store, tmp_path, bound)
        with pytest.warns(PlaceWarning, match=r"holds its 0.0003 GB.*allow more \(loader.stage_gb\)") as told:
            for epoch in range(3):
                assert_same(batches(one, epoch), batches(store, epoch))
        assert len(told) == 1
        held = staged_files(tmp_path)
        assert bound / 2 < sum(path.stat().st_size for path in held) <= bound
        assert int((tmp_path / "sak-stage/used").read_text()) == sum(path.stat().st_size for path in held)


def test_what_no_run_used_for_longest_goes_first(store: Store, tmp_path: Path) -> None:
    batches(far(store, tmp_path), teachers=["mini-dino"])
    batches(far(store, tmp_path), teachers=["klt"])
    before = {path.name: path.stat().st_size for path in staged_files(tmp_path)}
    for path in staged_files(tmp_path):
        os.utime(path, ns=(0, path.stat().st_mtime_ns - GB))
    read = Loader(store, ["mini-dino"], batch_size=1, num_views=2, pixels=False)._files()
    place = StagedPlace(FarPlace(store.path), Stage(tmp_path, GB))
    oldest = {place.staged_name(file) for _, file in read} & set(before)
    for name in oldest:
        os.utime(tmp_path / "sak-stage" / name, ns=(0, 0))
    files = store.rows("teachers/wide", "teachers/wide/level_0").files(2)
    wide = sum(file.num_bytes * 4097 // 4096 + 4097 for _, file in files)
    gone = sum(before[name] for name in oldest) // 2
    one = far(store, tmp_path, sum(before.values()) + wide - gone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches(one, teachers=["wide"], pixels=True)
        batches(one, 1, teachers=["wide"], pixels=True)
    left = {path.name for path in staged_files(tmp_path)}
    assert 0 < len(set(before) - left) < len(oldest) and set(before) - left < oldest


def test_what_somebody_reads_stays(tmp_path: Path) -> None:
    descriptor = Stage(tmp_path, GB).open("a" * 64, 4096)
    assert descriptor is not None
    small = Stage(tmp_path, 5000)
    with pytest.warns(PlaceWarning, match="holds its"):
        assert small.open("b" * 64, 4096) is None
    os.close(descriptor)
    again = Stage(tmp_path, 5000).open("b" * 64, 4096)
    assert again is not None and [path.name for path in staged_files(tmp_path)] == ["b" * 64]
    os.close(again)


def test_a_full_disk_ends_staging_and_not_the_run(store: Store, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=512k", "tmpfs"):
        with pytest.warns(PlaceWarning, match=r"staging stops: .*No space left on device.*read from afar") as told:
            one = far(store, tmp_path / "disk")
            for epoch in range(2):
                assert_same(batches(one, epoch), batches(store, epoch))
        assert len(told) == 1
        del one


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file cannot hold a stage: "):
        Stage(tmp_path / "file", GB)


def read_for_ever(store: Store, folder: Path) -> None:
    while True:
        for epoch in range(2):
            batches(far(store, folder), epoch)


def test_processes_share_it_and_a_kill_leaves_it_whole(store: Store, tmp_path: Path) -> None:
    """Two processes fill a stage, killed at any moment; what is there is true, and no temporary file stays."""
    fork = multiprocessing.get_context("fork")
    for _ in range(2):
        readers = [fork.Process(target=read_for_ever, args=(store, tmp_path), daemon=True) for _ in range(2)]
        for reader in readers:
            reader.start()
        deadline = time.monotonic() + 60
        while not (tmp_path / "sak-stage").exists() or len(staged_files(tmp_path)) < 3:
            assert time.monotonic() < deadline and all(reader.is_alive() for reader in readers)
            time.sleep(0.002)
        for reader in readers:
            reader.kill()
            reader.join()
        leftover = tmp_path / "sak-stage" / f".{'c' * 64}.1.tmp"
        leftover.write_bytes(b"half")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for epoch in range(2):
                assert_same(batches(far(store, tmp_path), epoch), batches(store, epoch))
        assert not leftover.exists()
        assert not list((tmp_path / "sak-stage").glob(".*"))
        for path in staged_files(tmp_path):
            path.unlink()


def test_a_run_and_its_plan_read_through_it(small: Path, tmp_path: Path) -> None:
    """The same losses; training rows and those that are validated on; and a plan that says what is there already."""
    own = [
        *TINY, "--set", "steps=4", "--set", "validation.dataset=rooms", "--set", "validation.split=unlabelled",
        "--set", "validation.every=2", "--out", str(small),
    ]  # fmt: skip
    with_stage = ["--set", f"loader.stage='{tmp_path}'", "--set", "loader.stage_gb=0.5"]
    sak("distill", "demo", "--run", tmp_path / "plain", *own)
    sak("distill", "demo", "--run", tmp_path / "staged", *own, *with_stage)
    plain, staged = (logged(tmp_path / name) for name in ("plain", "staged"))
    assert plain == staged and any("validation/loss" in line for line in plain)
    assert len(staged_files(tmp_path)) >= 2 * 3
    plan = json.loads(sak("plan", "demo", *own, *with_stage, "--json").stdout)
    assert 0.4 < plan["stage_share"] <= 1
    refused = sak(
        "distill", "demo", "--run", tmp_path / "x", *own, *with_stage, "--set", "loader.direct=true", check=False
    )
    assert refused.returncode == 2 and "loader.stage for others: leave one out" in refused.stderr


def test_a_run_goes_on_where_the_disk_is_full(small: Path, tmp_path: Path) -> None:
    own = [*TINY, "--set", "steps=4", "--out", str(small)]
    sak("distill", "demo", "--run", tmp_path / "plain", *own)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=256k", "tmpfs"):
        stage = ["--set", f"loader.stage='{tmp_path / 'disk'}'"]
        done = sak("distill", "demo", "--run", tmp_path / "staged", *own, *stage)
    assert done.stderr.count("staging stops") == 1 and "No space left on device" in done.stderr
    assert logged(tmp_path / "plain") == logged(tmp_path / "staged")


def test_a_staged_place_is_at_the_others_commit(store: Store, tmp_path: Path) -> None:
    class Committed(FarPlace):
        pinned = "hf://datasets/lab/trio@" + "0" * 40

    assert StagedPlace(Committed(store.path), Stage(tmp_path, GB)).pinned == Committed.pinned


def test_a_store_cannot_leave_rows_in_the_stage_for_another(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "forged" / store.name)
    forged = Store.open(tmp_path / "forged" / store.name)
    assert_same(batches(far(forged, tmp_path)), batches(store))
    FarPlace.reads = 0
    batches(far(store, tmp_path))
    assert FarPlace.reads > 0, "the same digests at another address are fetched for themselves"
