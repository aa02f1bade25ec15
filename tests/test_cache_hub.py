"""Stores in a data set's repository on the Hugging Face hub, by the stand-in of `tests.hub`."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import AlreadyThere, BadInput, StoreNotFound, WriteFailed
from cache.maintenance.store_copy import copy_store, plan_copy, select
from cache.maintenance.verification import verify_store
from cache.places import hub_draft
from cache.places.addresses import as_place, as_target, pinned
from cache.places.files import FileDigest
from cache.places.hub import HubAddress, coalesced
from cache.places.web import CATALOGUE, write_catalogue
from cache.store import Store, find_stores
from tests import cache_toy as toy
from tests import hub
from tests.hub import ADDRESS, Answer, Hub


def _copy(local: Store, address: str = ADDRESS) -> Store:
    return copy_store(plan_copy(local, address, select(local)))


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_it_is_found_read_and_verified(given: Hub, local: Store) -> None:
    [store] = find_stores(ADDRESS, "toy", "train")
    assert str(store) == f"{ADDRESS}/{local.name}" and store.teachers == local.teachers and store.ids() == local.ids()
    assert given.counts["tree"] > 1, "lists come in pages"
    toy.same_batches(local, store)
    assert verify_store(store.place) == [] and toy.unlisted_files(store.place) == []
    assert find_stores(f"{ADDRESS}/nothing") == []
    with pytest.raises(StoreNotFound, match=r"none\.zarr is no store: nothing there"):
        Store.open(f"{ADDRESS}/none.zarr")


def test_a_file_larger_than_may_be_read_at_once_is_not_fetched(given: Hub, local: Store) -> None:
    place = Store.open(f"{ADDRESS}/{local.name}").place
    size = place.sizes()["zarr.json"]
    assert len(place.read("zarr.json", most=size)) == size
    with pytest.raises(OSError, match=f"{size} bytes, of which at most {size - 1}"):
        place.read("zarr.json", most=size - 1)
    assert place.digest("zarr.json", most=size - 1) == FileDigest(size, "")


def test_zarr_python_reads_and_lists_it(given: Hub, local: Store) -> None:
    import zarr

    group = zarr.open_group(Store.open(f"{ADDRESS}/{local.name}").zarr(), mode="r")
    assert {name for name, _ in group.members()} == {"labels", "pixels", "samples", "teachers", "views"}
    array = group["teachers/mini-dino/level_0"]
    assert isinstance(array, zarr.Array)
    expected = local.rows("teachers/mini-dino", "teachers/mini-dino/level_0").read(2, 1)
    np.testing.assert_array_equal(array[1, 2], expected)


def test_what_is_held_stays_at_its_commit(given: Hub, local: Store) -> None:
    first = given.data["me/toy"].head
    store = Store.open(f"{ADDRESS}/{local.name}")
    assert store.place.pinned == f"{ADDRESS}@{first}/{local.name}" == pinned(str(store))
    assert pinned("s3://bucket/x") == "s3://bucket/x" and pinned(Path("x")) == Path("x")
    given.data["me/toy"].commit({"README.md": b"gone"})
    assert find_stores(ADDRESS) == []
    [before] = find_stores(f"{ADDRESS}@{first}")
    for old in (store, before, pickle.loads(pickle.dumps(store)), Store.open(str(store.place.pinned))):
        np.testing.assert_array_equal(old.pixels[3, 1], local.pixels[3, 1])


def test_near_ranges_are_one_request_and_a_file_is_asked_for_once(given: Hub, local: Store) -> None:
    place = as_place(f"{ADDRESS}/{local.name}")
    name = "teachers/mini-dino/level_0/c.1.0.0.0.0"
    raw = (local.path / name).read_bytes()
    file, targets = place.open(name, len(raw)), [bytearray(10), bytearray(4), bytearray(6)]
    file.read_into([(20, targets[2:]), (3, targets[:2])])
    assert (bytes(targets[0] + targets[1]), bytes(targets[2])) == (raw[3:17], raw[20:26])
    assert given.ranges == ["bytes=3-25"]
    assert file.read(5, 9) == raw[5:14] and file.read(len(raw) - 3, 9) == raw[-3:] and file.read(len(raw), 9) == b""
    assert given.counts["resolve"] == 1 and given.counts["cdn"] == 4
    with pytest.raises(OSError, match="of 9 bytes are there"):
        file.read_into([(len(raw) - 3, [bytearray(9)])])
    given.uses = 2  # addresses of the other host are good for two requests from here on
    for _ in range(6):
        assert file.read(5, 9) == raw[5:14]
    assert given.counts["resolve"] > 2
    far = [(0, [bytearray(4)]), (9, [bytearray(2)]), (100, [bytearray(1)])]
    assert [[start for start, _ in near] for near in coalesced(far, 5)] == [[0, 9], [100]]


def test_every_failure_of_a_network_is_asked_again(given: Hub, local: Store) -> None:
    store = Store.open(f"{ADDRESS}/{local.name}")
    wrong: list[Answer | None] = [
        Answer(503),
        Answer(429, headers={"Retry-After": "0"}),
        Answer(200, b"broken", headers={"Content-Length": "1000"}),
        None,
    ]
    given.faults = lambda kind, number: wrong[number % 4] if kind == "cdn" else None
    np.testing.assert_array_equal(store.features("mini-dino", 1)[:, 1], local.features("mini-dino", 1)[:, 1])


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_copy_is_the_same_store_in_a_private_repository(there: Hub, local: Store) -> None:
    copy = _copy(local, f"{ADDRESS}/caches")
    made = there.data["me/toy"]
    assert made.private and len(made.commits) == 2, "the repository's own, and one for so few files"
    assert {name.removeprefix("caches/"): raw for name, raw in made.files.items() if "/" in name} == hub.files_of(local)
    assert copy.is_complete("source", 2) and verify_store(f"{ADDRESS}/caches/{local.name}") == []
    write_catalogue(as_target(f"{ADDRESS}/caches"))
    assert local.name in json.loads(made.files[f"caches/{CATALOGUE}"])["stores"]
    assert plan_copy(local, f"{ADDRESS}/caches", select(local)).num_bytes == 0
    before = len(made.commits)
    _copy(local, f"{ADDRESS}/caches")
    assert len(made.commits) == before, "nothing was left to do"


def test_one_that_is_killed_goes_on(there: Hub, local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_draft, "PER_COMMIT", 20)
    refusal = Answer(429, {"error": "You may commit again in 43 minutes"})
    there.faults = lambda kind, number: refusal if kind == "commit" and number >= 2 else None
    with pytest.raises(WriteFailed, match=r"me/toy.*again in 43 minutes"):
        _copy(local)
    made = there.data["me/toy"]
    assert 20 <= len(made.files) < len(hub.files_of(local))
    assert verify_store(f"{ADDRESS}/{local.name}") == [], "what is committed names files that are there"
    before = set(there.sent)
    there.sent.clear()
    there.faults = lambda kind, number: None
    _copy(local)
    assert {name: raw for name, raw in made.files.items() if "/" in name} == hub.files_of(local)
    assert len(made.commits) > 4
    assert before and there.sent and not before & set(there.sent), "nothing is sent again"


def test_what_is_narrowed_is_a_store_of_its_own(there: Hub, local: Store) -> None:
    plan = plan_copy(local, ADDRESS, select(local, 1, ["mini-dino"], [0]))
    copy_store(plan)
    [store] = find_stores(ADDRESS)
    assert store.teachers == ["mini-dino"] and store.num_views == 1 and verify_store(store.place) == []
    copy_store(plan_copy(local, ADDRESS, select(local, 2, ["mini-dino"], [0])))
    [store] = find_stores(ADDRESS)
    assert store.num_views == 2 and verify_store(store.place) == [], "a copy grows"


def test_somebody_elses_commit_is_not_overwritten(there: Hub, local: Store) -> None:
    def meanwhile(kind: str, number: int) -> Answer | None:
        if kind == "commit":
            there.data["me/toy"].commit({**there.data["me/toy"].files, "theirs.txt": b"kept"})
        return None

    there.faults = meanwhile
    with pytest.raises(WriteFailed, match="somebody else has committed to it meanwhile"):
        _copy(local)
    there.faults = lambda kind, number: None
    _copy(local)
    assert there.data["me/toy"].files["theirs.txt"] == b"kept" and verify_store(f"{ADDRESS}/{local.name}") == []


def test_the_hub_is_asked_what_it_holds(there: Hub, local: Store) -> None:
    def rots(kind: str, number: int) -> Answer | None:
        if kind == "commit":
            digest = next(iter(there.uploads))
            there.uploads[digest] = there.uploads[digest] + b"!"
        return None

    there.faults = rots
    with pytest.raises(WriteFailed, match=r"the hub holds HubFacts.* was sent"):
        _copy(local)


def test_other_bytes_are_never_written_over(given: Hub, local: Store) -> None:
    name = f"{local.name}/teachers/mini-dino/level_0/c.1.0.0.0.0"
    files = {
        key: raw for key, raw in given.data["me/toy"].files.items() if "/manifest/teachers/mini-dino/view" not in key
    }
    given.data["me/toy"].commit({**files, name: b"another's"})
    with pytest.raises(AlreadyThere, match=r"c\.1\.0\.0\.0\.0 is there already with other bytes"):
        _copy(local)
    assert given.data["me/toy"].files[name] == b"another's"


def test_a_place_to_copy_to_gives_what_was_written(there: Hub) -> None:
    place = as_target(f"{ADDRESS}/folder")
    place.write({"a.json": [b"1"], "b": [b"2", b"3"]})
    assert (place.read("a.json"), place.sizes(), place.exists("b")) == (b"1", {"a.json": 1, "b": 2}, True)
    assert len(there.data["me/toy"].commits) == 1
    assert place.read("b") == b"23" and len(there.data["me/toy"].commits) == 2, "what was let go is committed first"
    place.update({"a.json": lambda now: now + b"4"})
    place.append("a.json", b"5")
    place.delete(["b", "never"])
    assert place.read("a.json") == b"145" and not place.exists("b")
    with pytest.raises(FileNotFoundError):
        place.read("b")
    place.write({"c": [b"6"]})
    place.remove("")
    place.write({"b": [b"7"]})
    place.finish()
    made = there.data["me/toy"]
    assert {name: raw for name, raw in made.files.items() if "/" in name} == {"folder/b": b"7"}


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_addresses() -> None:
    parsed = HubAddress.parse("hf://datasets/me/a.b-c@v1/features/x.zarr/")
    assert (parsed.repo, parsed.revision, parsed.folder) == ("me/a.b-c", "v1", "features/x.zarr")
    for text in ("hf://datasets/me/a@refs/pr/1/x", "hf://datasets/me/a@refs%2Fpr%2F1/x"):
        parsed = HubAddress.parse(text)
        assert (parsed.revision, parsed.folder) == ("refs/pr/1", "x")
        assert HubAddress.parse(str(parsed)) == parsed
    place = as_place("hf://datasets/me/a/")
    assert place.shown == "hf://datasets/me/a" and (place / "x.zarr").name == "x.zarr"
    wrong: list[Path | str] = ["hf://me/a", "hf://datasets/me", "hf://datasets/me/a/../b", "hf://datasets/me/a@"]
    for where in (*wrong, Path("hf://datasets/me/a")):
        with pytest.raises(BadInput, match=r"write an address of the hub as hf://datasets/OWNER/NAME\[@REVISION\]"):
            as_place(where)


def _no_token(there: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("HF_TOKEN")
    there.data["me/toy"].private = True


def _wrong_token(there: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", "hf_wrong")
    there.data["me/toy"].private = True


def _gated(there: Hub, patch: pytest.MonkeyPatch) -> None:
    there.data["me/toy"].gated = True


def _gone(there: Hub, patch: pytest.MonkeyPatch) -> None:
    del there.data["me/toy"]


def _offline(there: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _unreachable(there: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def _not_installed(there: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "huggingface_hub", None)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (
            _no_token,
            StoreNotFound,
            r"has no data set me/toy that everybody may read, and no token is set.*hf auth login.*HF_TOKEN",
        ),
        (_wrong_token, StoreNotFound, r"has no data set me/toy, or the token that is set may not.*hf auth login"),
        (_gone, StoreNotFound, "has no data set me/toy, or the token"),
        (_gated, StoreNotFound, r"its owners say who may read it; ask them on .*/datasets/me/toy"),
        (_offline, StoreNotFound, "HF_HUB_OFFLINE"),
        (_unreachable, StoreNotFound, r"http://127\.0\.0\.1:9 did not do it"),
        (_not_installed, BadInput, "the hub needs huggingface_hub; `pip install huggingface_hub`"),
    ],
)
def test_why_it_cannot_be_read(
    change: Callable[[Hub, pytest.MonkeyPatch], None],
    kind: type[Exception],
    told: str,
    given: Hub,
    local: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change(given, monkeypatch)
    with pytest.raises(kind, match=f"^{ADDRESS}: .*{told}" if kind is StoreNotFound else told):
        find_stores(ADDRESS)


def test_a_revision_that_is_not_there(given: Hub) -> None:
    for revision in ("v9", "a" * 40):
        with pytest.raises(StoreNotFound, match=f"me/toy has no revision '{revision}'"):
            find_stores(f"{ADDRESS}@{revision}")


def test_why_it_cannot_be_written(given: Hub, local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = given.data["me/toy"].head
    with pytest.raises(BadInput, match=r"a fixed revision is only read from.*leave @main out"):
        _copy(local, f"{ADDRESS}@main")
    [store] = find_stores(ADDRESS)
    writes: list[Callable[[], Any]] = [
        lambda: store.ensure_views(9),
        lambda: store.log({}),
        lambda: store.place.delete(["zarr.json"]),
        lambda: store.place.update({"zarr.json": lambda now: now}),
        lambda: Store.create(ADDRESS, toy.toy_spec(num_samples=3)),
    ]
    for write in writes:
        with pytest.raises(BadInput, match="written to by copying alone; write to a folder, then copy it there"):
            write()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(WriteFailed, match=r"has no data set me/new that everybody may read, and no token is set"):
        _copy(local, "hf://datasets/me/new")
    assert given.data["me/toy"].head == before and "me/new" not in given.data
