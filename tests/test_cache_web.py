"""Stores behind a plain web server: nginx, and a proxy before it that fails as networks do."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cache.errors import BadInput, CorruptFile, PlaceWarning, StoreNotFound
from cache.maintenance.store_copy import plan_copy, select
from cache.maintenance.verification import verify_store
from cache.places import web
from cache.places.addresses import as_place
from cache.places.web import CATALOGUE, read_catalogue, write_catalogue
from cache.store import Store, find_stores
from sak_common.names import UnknownName
from tests import cache_toy as toy
from tests.conftest import answer, logged, refusal, sak
from tests.nginx import nginx, serve
from tests.s3 import Proxy
from tests.test_nodes import TINY

pytestmark = pytest.mark.skipif(nginx() is None, reason="no nginx on this machine: apt-get install nginx-light")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server serves: a folder of caches, copied onto itself by the command."""
    folder = tmp_path_factory.mktemp("served")
    toy.make_store(folder / "features")
    before = toy.tree(folder / "features")
    sak("copy", folder / "features", folder / "features")
    after = toy.tree(folder / "features")
    assert after.pop(CATALOGUE) and after == before
    return folder


@pytest.fixture(scope="module")
def ports(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    with serve(root, tmp_path_factory.mktemp("nginx")) as ports:
        yield ports


@pytest.fixture
def proxy(ports: tuple[int, int]) -> Iterator[Proxy]:
    proxy = Proxy(ports[0])
    yield proxy
    proxy.close()


@pytest.fixture
def local(root: Path) -> Store:
    [store] = find_stores(root / "features")
    return store


@pytest.fixture
def address(ports: tuple[int, int]) -> str:
    return f"http://127.0.0.1:{ports[0]}/features"


def test_it_is_found_read_and_verified(address: str, local: Store) -> None:
    [store] = find_stores(address, "toy", "train")
    assert str(store) == f"{address}/{local.name}" and store.teachers == local.teachers and store.ids() == local.ids()
    toy.same_batches(store, local)
    assert verify_store(store.place) == [] and toy.unlisted_files(store.place) == []
    one = Store.open(f"{address}/{local.name}/")
    assert one.is_complete("source", 2) and pickle.loads(pickle.dumps(one)).teachers == local.teachers
    import zarr

    plain = zarr.open_array(store.place.zarr(), path="teachers/mini-dino/level_0", mode="r")
    np.testing.assert_array_equal(
        plain[2, 1][:] if plain.shape[0] > 2 else plain[1, 2],
        local.rows("teachers/mini-dino", "teachers/mini-dino/level_0").read(2, 1),
    )


def test_codecs_are_measured_on_it_where_it_lies(address: str, local: Store) -> None:
    words = ("--teacher", "mini-dino", "--level", "1")
    measured = [answer("frontier", where, *words) for where in (f"{address}/{local.name}", local.path)]
    there, here = ([(row["codec"], row["bits"], row["cosine"]) for row in result["results"]] for result in measured)
    assert there == here and len(here) > 3


def test_every_failure_of_a_network_is_asked_again(proxy: Proxy, local: Store) -> None:
    faults = ["503", None, "reset", None, "reset-body", None, None]
    proxy.faults = lambda method, number: faults[number % len(faults)]
    store = Store.open(f"http://127.0.0.1:{proxy.port}/features/{local.name}")
    np.testing.assert_array_equal(store.features("mini-dino", 1)[:, 1], local.features("mini-dino", 1)[:, 1])
    assert all(proxy.counts[fault] for fault in ("503", "reset", "reset-body")), proxy.counts


def test_whole_files_instead_of_ranges_are_cut_and_told(ports: tuple[int, int], local: Store) -> None:
    web._warned.clear()
    store = Store.open(f"http://127.0.0.1:{ports[1]}/features/{local.name}")
    with pytest.warns(PlaceWarning, match="answers requests for ranges with whole files"):
        far = store.features("mini-dino", 0)[5, 1]
    np.testing.assert_array_equal(far, local.features("mini-dino", 0)[5, 1])


@pytest.mark.parametrize("damage", ["truncated", "changed", "longer", "gone"])
def test_a_file_that_is_not_what_was_committed(damage: str, root: Path, ports: tuple[int, int], local: Store) -> None:
    folder = root / damage
    shutil.copytree(root / "features", folder)
    name = f"{local.name}/teachers/mini-dino/level_0/c.1.0.0.0.0"
    raw = (folder / name).read_bytes()
    changed = bytearray(raw)
    changed[3] ^= 1
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes({"truncated": raw[:100], "changed": bytes(changed), "longer": raw + raw}[damage])
    [store] = find_stores(f"http://127.0.0.1:{ports[0]}/{damage}")
    [problem] = verify_store(store.place)
    assert problem.file in name
    if damage != "longer":  # the bytes of the row are where they were
        with pytest.raises(CorruptFile, match=r"c\.1\.0\.0\.0\.0"):
            _ = store.features("mini-dino", 0)[0, 1]


def test_nothing_is_written(address: str, local: Store, tmp_path: Path) -> None:
    store = Store.open(f"{address}/{local.name}")
    for write in (
        lambda: plan_copy(local, address, select(local)),
        lambda: store.ensure_views(9),
        lambda: store.log({}),
        lambda: store.place.delete(["zarr.json"]),
        lambda: store.place.remove("pixels"),
        lambda: store.place.update({"zarr.json": lambda now: now}),
        lambda: write_catalogue(as_place(address)),
    ):
        with pytest.raises(BadInput, match="a web server is only read from; write to a folder or a bucket"):
            write()
    assert "a web server is only read from" in refusal("copy", local.path, address)


def test_addresses(ports: tuple[int, int], root: Path) -> None:
    place = as_place("https://host/a/features/")
    assert place.shown == "https://host/a/features" and (place / "x.zarr").name == "x.zarr"
    for wrong in ("https://", "https://host/a?b=c"):
        with pytest.raises(BadInput, match="write an address as https://host/folder"):
            as_place(wrong)
    with pytest.raises(BadInput, match="write an address as https://host/folder"):
        as_place(Path("https://host/folder"))
    with pytest.raises(UnknownName, match=r"unknown kind of address 'ftp'.*https"):
        as_place("ftp://host/folder")
    (root / "bare").mkdir(exist_ok=True)
    with pytest.raises(StoreNotFound, match=r"/bare/catalogue\.json is not there: it says what stores"):
        find_stores(f"http://127.0.0.1:{ports[0]}/bare")
    with pytest.raises(StoreNotFound, match=r"none\.zarr is no store: nothing there"):
        Store.open(f"http://127.0.0.1:{ports[0]}/features/none.zarr")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[" * 100_000,
        b"[]",
        b'{"format": 2, "stores": {}}',
        b'{"format": 1, "stores": [1]}',
        b'{"format": 1, "stores": {"../x.zarr": {"a": 1}}}',
        b'{"format": 1, "stores": {"x.zarr": {"/etc/passwd": 1}}}',
        b'{"format": 1, "stores": {"x.zarr": {"a/../../b": 1}}}',
        b'{"format": 1, "stores": {"x.zarr": {"a": -1}}}',
        b'{"format": 1, "stores": {"x.zarr": {"a": "1"}}}',
    ],
    ids=lambda raw: raw[-40:].decode(),
)
def test_hostile_catalogues_are_refused(document: bytes) -> None:
    with pytest.raises(CorruptFile, match=r"https://host/catalogue\.json: "):
        read_catalogue(document, "https://host/catalogue.json")


def test_the_commands(address: str, local: Store, tmp_path: Path) -> None:
    there = f"{address}/{local.name}"
    info = answer("info", there)
    mine = answer("info", local.path)
    assert info["teachers"] == mine["teachers"] and info["store"] == there
    assert answer("verify", there)["problems"] == []
    copied = answer("copy", address, tmp_path / "copies")
    assert copied["copied"] and copied["stores"][0]["bytes"] > 0
    copy = Store.open(tmp_path / "copies" / local.name)
    assert toy.content(copy.path) == toy.content(local.path)


def test_a_stage_keeps_what_training_reads(small: Path, tmp_path: Path) -> None:
    """The first run asks the server for its rows, the second for none, and both learn what a folder's run does."""
    sak("copy", small, small)
    own = tmp_path / "nginx"
    own.mkdir()
    settings = [*TINY, "--set", "steps=4", "--set", f"loader.stage='{tmp_path}'"]
    asked = []
    with serve(small, own) as (port, _):
        for run in ("one", "two"):
            sak("distill", "demo", "--out", f"http://127.0.0.1:{port}", "--run", tmp_path / run, *settings)
            asked.append(sum("/c." in line for line in (own / "access.log").read_text().splitlines()))
    assert 0 < asked[0] == asked[1]
    sak("distill", "demo", "--out", small, "--run", tmp_path / "near", *settings)
    assert logged(tmp_path / "one") == logged(tmp_path / "two") == logged(tmp_path / "near")
