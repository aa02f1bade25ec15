"""Copies of stores: the same bytes, or just what is asked for; from and to anywhere; resumable; checked."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from obstore.store import MemoryStore

import cache.maintenance.store_copy
from cache.errors import BadInput, CacheError, CorruptFile, SpecMismatch
from cache.format.manifest import PartManifest
from cache.loading.loader import Loader
from cache.maintenance.store_copy import CopyPlan, copy_store, plan_copy, select
from cache.maintenance.verification import verify_store
from cache.places.local import LocalPlace
from cache.places.objects import ObjectPlace
from cache.places.place import Place
from cache.store import Store
from sak_common.names import UnknownName
from tests import cache_toy as toy


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return toy.make_store(tmp_path_factory.mktemp("source"))


def bucket() -> ObjectPlace:
    return ObjectPlace(MemoryStore(), "features/", "s3://bucket/features")


def test_a_whole_copy_is_the_same_store_byte_for_byte(store: Store, tmp_path: Path) -> None:
    """Here to here, here to a bucket, bucket to bucket, and back again."""
    there: Place = bucket()
    source = toy.content(store.path)
    for target in (LocalPlace(tmp_path / "one"), there, bucket(), LocalPlace(tmp_path / "two")):
        plan = plan_copy(store, target, select(store))
        assert plan.num_shards == 4 * 2 * 3 and plan.num_bytes > 0
        told: list[int] = []
        store = copy_store(plan, told.append)
        assert sum(told) == plan.num_bytes and len(told) == plan.num_shards
        assert plan_copy(store, target, select(store)).num_shards == 0
        assert verify_store(store.place) == [] and toy.unlisted_files(store.place) == []
    one, two = (toy.content(next((tmp_path / name).iterdir())) for name in ("one", "two"))
    assert one == two == source and len(one) > 100


def test_a_copy_of_what_is_read(store: Store, tmp_path: Path) -> None:
    selection = select(store, 1, ["mini-dino"], [3, 0])
    copy = copy_store(plan_copy(store, tmp_path, selection))
    assert copy.num_views == 1 and copy.teachers == ["mini-dino"]
    assert [spec.level for spec in copy.teacher("mini-dino").levels] == [0, 3]
    assert verify_store(copy.place) == [] and toy.unlisted_files(copy.place) == []
    assert copy.teacher("mini-dino").provenance == store.teacher("mini-dino").provenance
    assert {name.partition("/")[0] for name in copy.calibration("mini-dino") or {}} == {"level_0", "level_3"}
    for level in (0, 3):
        ours, theirs = (s.features("mini-dino", level)[:, 0] for s in (store, copy))
        np.testing.assert_array_equal(ours, theirs)
    assert copy.invalid(1) == store.invalid(1)
    assert len(list(Loader(copy, ["mini-dino"], ["semseg"], batch_size=2, num_views=1))) == 5
    with pytest.raises(SpecMismatch, match="teacher mini-dino in"):  # the same teacher with other levels
        copy_store(plan_copy(store, tmp_path, select(store)))
    # the other teacher and the other view come later: then it is as if they had come at once
    copy_store(plan_copy(store, tmp_path, select(store, 2, ["mini-clip"])))
    copy_store(plan_copy(store, tmp_path, select(store, 2, ["mini-dino"], [0, 3])))
    grown = Store.open(copy.place)
    assert grown.num_views == 2 and grown.teachers == ["mini-clip", "mini-dino"] and verify_store(grown.place) == []
    at_once = toy.make_store(tmp_path / "whole").path
    files, whole = toy.content(grown.path), toy.content(at_once)
    differing = {name for name in files if files[name] != whole[name]}
    # what lists levels is its own; the rest is as it was
    prefix = "manifest/teachers/mini-dino/"
    listing = {f"{prefix}{name}.json" for name in ("metadata", "calibration", "view_0000", "view_0001")}
    assert differing == {"teachers/mini-dino/zarr.json", *listing}


def test_an_interrupted_copy_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.maintenance.store_copy, "BATCH_BYTES", 1)  # so that every shard is a batch
    target = bucket()
    plan = plan_copy(store, target, select(store))

    def interrupt(num_bytes: int, seen: list[int]) -> None:
        seen.append(num_bytes)
        if len(seen) == 7:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        copy_store(plan, lambda n: interrupt(n, seen))
    left = plan_copy(store, target, select(store))
    assert left.num_shards == plan.num_shards - 7
    half = Store.open(plan.target)
    np.testing.assert_array_equal(half.pixels[3, 0], store.pixels[3, 0])
    told: list[int] = []
    copy = copy_store(left, told.append)
    assert len(told) == left.num_shards and verify_store(copy.place) == []
    assert toy.content(copy.place) == toy.content(store.path)


def test_shards_are_made_durable_together(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    copies = {}
    for name, batch_bytes in (("one by one", 1), ("together", cache.maintenance.store_copy.BATCH_BYTES)):
        synced.clear()
        monkeypatch.setattr(cache.maintenance.store_copy, "BATCH_BYTES", batch_bytes)
        copies[name] = copy_store(plan_copy(store, tmp_path / name, select(store)))
        folders = [path for path in synced if Path(path).is_dir()]
        of_pixels = [path for path in folders if path.endswith("/pixels")]
        assert len(of_pixels) == (1 + 8 if batch_bytes == 1 else 1 + 1) + 1  # created, shards, grown
        shards = [path for path in synced if "/pixels/.c." in path]
        assert len(shards) == 8, "every file is durable before it has its name"
    one, together = (toy.content(copy.path) for copy in copies.values())
    assert one == together == toy.content(store.path)


def test_a_killed_batch_commits_nothing_and_is_gone_over_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PartManifest.commit_entries

    def killed(self: PartManifest, entries: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PartManifest, "commit_entries", killed)
    with pytest.raises(KeyboardInterrupt):
        copy_store(plan_copy(store, tmp_path, select(store)))
    half = Store.open(tmp_path / store.name)
    assert (half.path / "pixels/c.1.3.0.0.0").exists() and not half.part("source").view(0, refresh=True).shards
    assert verify_store(half.place) == []
    monkeypatch.setattr(PartManifest, "commit_entries", real)
    assert toy.content(copy_store(plan_copy(store, tmp_path, select(store))).path) == toy.content(store.path)


def test_a_half_made_store_is_copied_as_far_as_it_is(tmp_path: Path) -> None:
    half = Store.create(tmp_path / "source", toy.toy_spec())
    half.ensure_views(1)
    writer = toy.SourceWriter(half)
    writer.write_shard(0, 1, toy.source_arrays(half.spec, 0, 1))
    copy = copy_store(plan_copy(half, tmp_path / "copy", select(half)))
    assert not copy.is_complete("source", 1) and verify_store(copy.place) == []
    toy.write_source(half, 1)
    plan: CopyPlan = plan_copy(half, tmp_path / "copy", select(half))
    assert [(shard.view, shard.shard) for shard in plan.parts[0].shards] == [(0, 0), (0, 2), (0, 3)]
    assert toy.content(copy_store(plan).path) == toy.content(half.path)


def test_damage_is_not_copied(tmp_path: Path) -> None:
    source = toy.make_store(tmp_path / "source")
    file = source.path / "labels/semseg/c.1.2.0.0"
    toy.flip(file, 9)
    plan = plan_copy(source, tmp_path / "copy", select(source))
    with pytest.raises(CorruptFile, match=r"labels/semseg/c\.1\.2\.0\.0: it is not the file that was committed"):
        copy_store(plan)
    copy = Store.open(plan.target)
    assert not copy.part("source").is_committed(1, 2) and not (copy.path / "labels/semseg/c.1.2.0.0").exists()
    file.unlink()
    with pytest.raises(CorruptFile, match="it cannot be read"):
        copy_store(plan_copy(source, tmp_path / "copy", select(source)))


def test_what_cannot_be_selected_is_named(store: Store) -> None:
    with pytest.raises(UnknownName, match="did you mean mini-dino"):
        select(store, teachers=["mini-din"])
    with pytest.raises(UnknownName, match="level of mini-clip"):
        select(store, levels=[3])
    with pytest.raises(BadInput, match="3 views asked for"):
        select(store, 3)
    assert issubclass(SpecMismatch, CacheError)
