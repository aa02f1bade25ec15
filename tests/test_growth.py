"""Views appended by several machines at once, without a lock: nobody's views are lost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from cache.errors import CorruptFile
from cache.format.manifest import PartManifest
from cache.maintenance.verification import verify_store
from cache.places.objects import ObjectPlace
from cache.store import Store
from tests import cache_toy as toy


def bucket_of(num_views: int) -> tuple[MemoryStore, str]:
    """A bucket with the toy store, and the store's name there."""
    bucket = MemoryStore()
    store = toy.make_store(ObjectPlace(bucket, "features/"), num_views)
    return bucket, store.name


def opened(bucket: MemoryStore, name: str) -> Store:
    """The store as a machine of its own sees it."""
    return Store.open(ObjectPlace(bucket, f"features/{name}/", f"memory://features/{name}"))


def append(store: Store, num_views: int) -> None:
    """What `sak cache` does for so many views."""
    toy.write_source(store, num_views, toy.INVALID)
    toy.write_teacher(store, num_views)
    toy.write_teacher(store, num_views, "mini-clip", toy.OTHER_LEVELS)


def before_write(number: int, act: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Let `act` happen just before the conditional write of that number, of the machine that writes first."""
    real, count = obstore.put, 0

    def put(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        if isinstance(options.get("mode"), dict):
            count += 1
            if count == number:
                act()
        return real(*arguments, **options)

    patch.setattr(obstore, "put", put)


@pytest.mark.parametrize("number", [1, 3, 6, 7, 8])
@pytest.mark.parametrize(("mine", "others"), [(3, 4), (4, 3)])
def test_another_machine_appends_in_between(
    mine: int, others: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source has six arrays with views: its growth writes these, then its metadata; then come teachers."""
    bucket, name = bucket_of(2)
    acted: list[bool] = []

    def act() -> None:
        acted.append(True)
        append(opened(bucket, name), others)

    with monkeypatch.context() as patch:
        before_write(number, act, patch)
        store = opened(bucket, name)
        append(store, mine)
    assert acted == [True]
    assert opened(bucket, name).num_views == 4 and verify_store(store.place) == []
    whole = opened(*bucket_of(4))
    assert toy.content(store.place) == toy.content(whole.place)


def test_many_grow_at_once() -> None:
    bucket, name = bucket_of(1)
    wanted = [3, 9, 2, 7, 12, 5, 11, 4]
    with ThreadPoolExecutor(len(wanted)) as pool:
        list(pool.map(lambda views: opened(bucket, name).ensure_views(views), wanted))
    store = opened(bucket, name)
    assert store.num_views == 12 and verify_store(store.place) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    store = toy.make_store(tmp_path)
    (store.path / "pixels/zarr.json").unlink()
    with pytest.raises(CorruptFile, match=r"pixels/zarr\.json"):
        Store.open(store.path).ensure_views(3)
    assert Store.open(store.path).num_views == 2


def test_an_entry_that_comes_after_another_machines_compaction_is_tidied() -> None:
    """The slower machine knows of its own shard alone; left where it is, its entry would make equal stores differ."""
    place = ObjectPlace(MemoryStore(), "features/")
    slow = PartManifest(Store.create(place, toy.toy_spec()).place, "source")
    assert not slow.view(0).shards
    store = toy.make_store(place, 1)
    before, fast = toy.content(store.place), store.part("source")
    last = fast.metadata.num_shards - 1
    files = {array.path: fast.view(0).file(last, array.path) for array in fast.metadata.arrays_of(0)}
    slow.commit_shard(0, last, files)
    assert toy.content(store.place) == before and verify_store(store.place) == []
