"""Stores in object storage: written, read, resumed and checked as on a disk. Here in obstore's own memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from obstore.store import MemoryStore

from cache.errors import BadInput, CacheError, CorruptFile, RemadeDiffers, StoreNotFound, UncommittedRow, WriteFailed
from cache.maintenance.verification import verify_store
from cache.places.addresses import as_place
from cache.places.objects import ObjectPlace
from cache.store import Store, find_stores
from sak_common.names import UnknownName
from tests import cache_toy as toy


@pytest.fixture
def bucket() -> ObjectPlace:
    return ObjectPlace(MemoryStore(), "features/", "s3://bucket/features")


def test_a_store_has_the_same_bytes_wherever_it_lies(bucket: ObjectPlace, local: Store) -> None:
    store = toy.make_store(bucket)
    store.log({"stage": "test"})
    assert str(store) == f"s3://bucket/features/{local.name}" and store.name == local.name
    assert toy.content(store.place) == toy.content(local.path)
    assert verify_store(store.place) == [] and toy.unlisted_files(store.place) == []
    with pytest.raises(CacheError, match="not a folder of this machine"):
        _ = store.path


def test_it_is_found_and_read(bucket: ObjectPlace, local: Store) -> None:
    toy.make_store(bucket)
    [store] = find_stores(bucket, "toy", "train", (6, 7))
    assert store.teachers == local.teachers and store.ids() == local.ids() and store.invalid(2) == local.invalid(2)
    for level in (0, 1, 3):
        ours, theirs = (where.features("mini-dino", level) for where in (local, store))
        np.testing.assert_array_equal(theirs[:, 1], ours[:, 1])
    np.testing.assert_array_equal(store.views["box"][[3, 12, 0], 1], local.views["box"][[3, 12, 0], 1])
    with pytest.raises(StoreNotFound, match=r"s3://bucket/features/none\.zarr is no store: nothing there"):
        Store.open(bucket / "none.zarr")


def test_batches_are_those_of_the_local_store(bucket: ObjectPlace, local: Store) -> None:
    toy.same_batches(local, toy.make_store(bucket))


def test_zarr_python_opens_it_through_its_own_object_store(bucket: ObjectPlace, local: Store) -> None:
    import zarr

    store = toy.make_store(bucket)
    for where in (store, local):
        group = zarr.open_group(where.zarr(), mode="r")
        assert group.attrs["sak"]["spec"]["dataset"] == "toy"
        np.testing.assert_array_equal(
            group["teachers/mini-dino/level_0"][1, 5], local.features("mini-dino", 0).stored[5, 1]
        )


def test_neighbours_are_fetched_by_one_request(
    bucket: ObjectPlace, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = toy.make_store(bucket)
    asked: list[tuple[str, int]] = []
    real = obstore.get_ranges

    def get_ranges(place: Any, path: str, **options: Any) -> Any:
        asked.append((path.rpartition("/")[2], len(options["starts"])))
        return real(place, path, **options)

    monkeypatch.setattr(obstore, "get_ranges", get_ranges)
    rows = store.rows("source", "pixels")
    out = np.zeros((13, *store.spec.size, 3), np.uint8)
    order = [7, 2, 12, 5, 4, 6, 0, 3, 1, 11]
    rows.read_rows(order, [1] * 10, [out[sample].reshape(-1).data for sample in order])
    for sample in order:
        np.testing.assert_array_equal(out[sample], local.pixels[sample, 1])
    # 0..3 and 4..7 follow each other without a gap; 11 is the last of shard 2, 12 is alone
    assert asked == [("c.1.0.0.0.0", 1), ("c.1.1.0.0.0", 1), ("c.1.2.0.0.0", 1), ("c.1.3.0.0.0", 1)]


def test_who_comes_second_compares(bucket: ObjectPlace) -> None:
    store = Store.create(bucket, toy.toy_spec())
    store.ensure_views(1)
    arrays = toy.source_arrays(store.spec, 0, 1)
    one, two = (toy.SourceWriter(Store.open(store.place)) for _ in range(2))
    one.write_shard(0, 1, arrays)
    before = toy.content(store.place)
    two.write_shard(0, 1, arrays)  # the same bytes: nothing to do
    assert toy.content(store.place) == before
    arrays["pixels"][0, 0, 0, 0] ^= 1
    with pytest.raises(RemadeDiffers, match=r"pixels/c\.0\.1\.0\.0\.0"):
        two.write_shard(0, 1, arrays)
    assert toy.content(store.place) == before
    store.part("source").uncommit(0, 1)  # as before its entry came
    two = toy.SourceWriter(Store.open(store.place))
    before = toy.content(store.place)
    with pytest.raises(WriteFailed, match=r"pixels/c\.0\.1\.0\.0\.0 is there already with other bytes: a teacher, dev"):
        two.write_shard(0, 1, arrays)
    assert toy.content(store.place) == before


def test_a_half_finished_store_goes_on(bucket: ObjectPlace, local: Store) -> None:
    store = Store.create(bucket, toy.toy_spec())
    store.ensure_views(2)
    toy.SourceWriter(store).write_shard(0, 2, toy.source_arrays(store.spec, 0, 2))
    again = Store.open(store.place)
    np.testing.assert_array_equal(again.pixels[9, 0], local.pixels[9, 0] if 9 not in toy.INVALID else 0)
    with pytest.raises(UncommittedRow):
        _ = again.pixels[0, 0]
    toy.make_store(ObjectPlace(MemoryStore()))  # another bucket is another
    toy.write_source(again, 2, {})
    assert Store.open(store.place).is_complete("source", 2)


def test_damage_is_found_and_named(bucket: ObjectPlace) -> None:
    store = toy.make_store(bucket)
    name = "teachers/mini-dino/level_0/c.0.1.0.0.0"
    raw = bytearray(store.place.read(name))
    raw[300] ^= 4
    obstore.put(bucket.store, f"features/{store.name}/{name}", bytes(raw))
    [problem] = verify_store(store.place)
    assert problem.file == name and problem.rows == (5,)
    opened = Store.open(store.place)
    with pytest.raises(CorruptFile, match=r"level_0/c\.0\.1\.0\.0\.0: sample 5, view 0 fails its crc32c"):
        _ = opened.features("mini-dino", 0)[5, 0]
    obstore.put(bucket.store, f"features/{store.name}/{name}", bytes(raw[:200]))
    with pytest.raises(CorruptFile):
        _ = Store.open(store.place).features("mini-dino", 0)[6, 0]
    obstore.delete(bucket.store, f"features/{store.name}/{name}")
    with pytest.raises(CorruptFile, match=r"cannot be"):
        _ = Store.open(store.place).features("mini-dino", 0)[6, 0]
    assert "it is missing" in str(verify_store(store.place)[0])


def test_addresses() -> None:
    with pytest.raises(UnknownName, match=r"unknown kind of address 'ftp'"):
        as_place("ftp://host/folder")
    with pytest.raises(BadInput, match="write an address as s3://bucket/folder"):
        as_place(Path("s3://bucket/folder"))  # pathlib folds the slashes
    place = as_place("s3://bucket/features/")
    assert place.shown == "s3://bucket/features" and (place / "x.zarr").shown == "s3://bucket/features/x.zarr"
    assert (place / "x.zarr").name == "x.zarr"
