"""Object storage for real: a server that speaks S3, behind a proxy that fails as networks do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache.errors import WriteFailed
from cache.maintenance.verification import verify_store
from cache.places.addresses import as_place
from cache.places.place import Place
from cache.store import Store
from tests import cache_toy as toy
from tests.conftest import answer, refusal, sak
from tests.s3 import Proxy, environment, serve_s3


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an S3 server."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server, to which ``s3://`` leads."""
    proxy = Proxy(server)
    for name, value in environment(proxy.port).items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.close()


@pytest.fixture
def root(proxy: Proxy, request: pytest.FixtureRequest) -> Place:
    return as_place(f"s3://bucket/{request.node.name.partition('[')[0]}")


def now_and_then(*faults: str, every: int = 5) -> Callable[[str, int], str | None]:
    """Each of the faults in turn, to every so many requests."""
    turn = iter(range(10**9))
    lock = threading.Lock()

    def choose(method: str, number: int) -> str | None:
        with lock:
            place = next(turn)
        return faults[place // every % len(faults)] if place % every == every - 1 else None

    return choose


def test_views_that_several_machines_append_at_once(proxy: Proxy, root: Place) -> None:
    """The server takes a replacement only of what was read (If-Match), also where answers get lost."""
    name = toy.make_store(root, num_views=1).name
    calm, proxy.faults = proxy.faults, now_and_then(*Proxy.FAULTS, every=13)
    wanted = [3, 6, 2, 5]
    with ThreadPoolExecutor(len(wanted)) as pool:
        list(pool.map(lambda views: Store.open(root / name).ensure_views(views), wanted))
    proxy.faults = calm
    store = Store.open(root / name)
    assert store.num_views == 6 and verify_store(store.place) == []


def test_written_and_read_through_a_bad_network(proxy: Proxy, root: Place, local: Store) -> None:
    proxy.faults = now_and_then(*Proxy.FAULTS, every=13)
    store = toy.make_store(root)
    toy.same_batches(local, store)
    assert verify_store(store.place) == [] and toy.unlisted_files(store.place) == []
    assert all(proxy.counts[fault] >= 3 for fault in Proxy.FAULTS), proxy.counts  # the faults were real
    proxy.faults = lambda method, number: None
    assert toy.content(store.place) == toy.content(local.path)


@pytest.mark.slow
def test_a_server_that_stays_down_is_an_error_not_a_hang(proxy: Proxy, root: Place) -> None:
    root.write({"file": [bytes(10_000)]})
    proxy.faults = lambda method, number: "reset-body" if method == "GET" else "reset"
    with pytest.raises(OSError, match=r"GET|body"):
        root.read("file")
    with pytest.raises(WriteFailed, match=r"cannot write s3://bucket/.*/other"):
        root.write({"other": [b"content"]})


def test_one_of_many_writers_wins(root: Place) -> None:
    def write(number: int) -> bool:
        try:
            root.write({"file": [bytes([number]) * 1000]})
        except WriteFailed:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    assert sum(won) == 1 and root.read("file") == bytes([won.index(True)]) * 1000


@pytest.mark.slow
def test_dasks_workers_extract_onto_a_bucket(root: Place, tmp_path: Path) -> None:
    arguments = ["--teacher", "mini-dino", "--limit", "70", "--views", "2", "--codec", "int8", "--threads", "1"]
    done = sak("cache", *arguments, "--out", root.shown, "--workers", "2", "--json")
    store = Store.open(json.loads(done.stdout)["store"])
    assert store.place.shown.startswith("s3://")
    assert verify_store(store.place) == [] and toy.unlisted_files(store.place) == []
    sak("cache", *arguments, "--out", tmp_path, "--decoders", "0")
    assert toy.content(store.place) == toy.content(next(tmp_path.glob("*.zarr")))
    again = sak("cache", *arguments, "--out", root.shown, "--workers", "2")
    assert "over all workers" not in again.stderr, "nothing was left to write"


def test_two_machines_make_one_store(root: Place, local: Store) -> None:
    start = threading.Barrier(2)

    def make() -> None:
        start.wait()
        toy.make_store(root)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(make) for _ in range(2)]:
            done.result()
    store = Store.open(root / local.name)
    assert verify_store(store.place) == [] and toy.content(store.place) == toy.content(local.path)


def test_a_wrong_key_is_said(root: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(OSError, match=r"403|denied|permission|credentials|SignatureDoesNotMatch"):
        as_place("s3://bucket/x").read("file")


RECIPE = """
teachers = ["mini-dino"]
[student.stem]
name = "custom"
[distill]
data = { dataset = "toy", split = "train", views = 1 }
steps = 1
"""


@pytest.mark.slow
def test_copy_there_and_back_by_command(proxy: Proxy, root: Place, local: Store, tmp_path: Path) -> None:
    address = root.shown
    planned = answer("copy", local.path.parent, address, "--dry-run")
    assert planned["copied"] is False and planned["stores"][0]["shards"] == 24
    assert not root.folders()
    proxy.faults = now_and_then("500", "reset", "reset-body", "slow", every=9)
    done = answer("copy", local.path, address)
    assert done == {**planned, "copied": True}
    proxy.faults = lambda method, number: None
    there = f"{address}/{local.name}"
    assert answer("copy", local.path, address)["stores"][0]["bytes"] == 0
    info = answer("info", there)
    assert info["store"] == there and sorted(info["teachers"]) == ["mini-clip", "mini-dino"]
    assert "every digest and checksum holds" in sak("verify", there).stdout
    sak("copy", there, tmp_path / "back")
    assert toy.content(tmp_path / "back" / local.name) == toy.content(local.path)
    # just what a recipe reads, to scratch
    (tmp_path / "small.toml").write_text(RECIPE)
    said = sak("copy", address, tmp_path / "scratch", "--recipe", tmp_path / "small.toml").stdout
    assert "1 views, mini-dino levels [0, 1, 3]" in said
    scratch = Store.open(tmp_path / "scratch" / local.name)
    assert scratch.teachers == ["mini-dino"] and scratch.num_views == 1 and verify_store(scratch.place) == []
    said = refusal("copy", there, tmp_path / "x", "--teacher", "mini-dno")
    assert "did you mean mini-dino" in said
    assert "is no store, and no folder that holds one" in refusal("copy", tmp_path, tmp_path / "x")
