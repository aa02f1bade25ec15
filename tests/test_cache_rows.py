"""Reading rows by position: any rows in any order; indexes parsed once, files kept open in a bounded number."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cache.loading.ring
import cache.reading.rows
from cache.errors import BadInput, CorruptFile
from cache.format.spec import LevelSpec
from cache.loading.loader import Loader
from cache.places.local import LocalPlace
from cache.reading.rows import OpenShards
from cache.store import Store
from tests import cache_toy as toy

WIDE = (LevelSpec(0, (40, 30), 28, "fp16"),)  # rows of 67,200 bytes: padded to 4 KiB


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = toy.make_store(tmp_path_factory.mktemp("rows"), num_samples=21, rows_per_shard=4)
    toy.write_teacher(store, 2, "wide", WIDE)
    return store


@pytest.mark.parametrize(("part", "path"), [("source", "pixels"), ("teachers/wide", "teachers/wide/level_0")])
@given(asked=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1)), max_size=40))
def test_any_rows_in_any_order(store: Store, part: str, path: str, asked: list[tuple[int, int]]) -> None:
    """Neighbours share requests, the same row may come twice, and every row ends where it was asked for."""
    rows = store.rows(part, path)
    out = np.zeros((len(asked), *rows.array.row_shape), rows.array.dtype)
    samples, views = [sample for sample, _ in asked], [view for _, view in asked]
    rows.read_rows(samples, views, [row.reshape(-1).view(np.uint8).data for row in out])
    for row, (sample, view) in zip(out, asked, strict=True):
        np.testing.assert_array_equal(row, rows.read(sample, view))
    if path == "pixels":
        for row, (sample, view) in zip(out, asked, strict=True):
            if sample not in toy.INVALID:
                np.testing.assert_array_equal(row, toy.pixels(store.spec, sample, view))


def test_past_the_page_cache(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    """O_DIRECT gives the same rows, of any size and alignment, and knows where a file ends."""
    direct = Store.open(LocalPlace(store.path, direct=True))
    try:
        assert direct.pixels[0, 0].shape == (6, 7, 3)
    except BadInput as error:
        pytest.skip(str(error))
    for part, path in (("source", "pixels"), ("source", "labels/normals"), ("teachers/wide", "teachers/wide/level_0")):
        ours, theirs = (where.rows(part, path) for where in (direct, store))
        for sample in range(21):
            np.testing.assert_array_equal(ours.read(sample, 1), theirs.read(sample, 1))
    options: dict[str, Any] = {"batch_size": 3, "num_views": 2, "seed": 3}
    for left, right in zip(Loader(direct, ["wide"], **options), Loader(store, ["wide"], **options), strict=True):
        np.testing.assert_array_equal(left.features["wide"][0], right.features["wide"][0])
    copy = toy.make_store(tmp_path_factory.mktemp("cut"))
    opened = Store.open(LocalPlace(copy.path, direct=True))
    _ = opened.pixels[0, 0]
    with (copy.path / "pixels/c.0.0.0.0.0").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(CorruptFile, match=r"sample 2, view 0 cannot be read: 0 of 130 bytes are there"):
        _ = opened.pixels[2, 0]


@given(
    start=st.sampled_from([0, 4096, 8192, 100, 4000]),
    shift=st.sampled_from([0, 0, 512, 3]),
    sizes=st.lists(st.sampled_from([1, 4, 4092, 4096, 6000, 8192]), min_size=1, max_size=4),
)
def test_past_the_page_cache_at_any_alignment(
    tmp_path_factory: pytest.TempPathFactory, start: int, shift: int, sizes: list[int]
) -> None:
    """Whole sectors go straight to aligned memory, the rest by way of a buffer: the bytes are those of the file, and
    a file that ends too early is told."""
    data = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes()
    folder = tmp_path_factory.mktemp("direct")
    (folder / "x").write_bytes(data)
    try:
        file = LocalPlace(folder, direct=True).open("x", len(data))
    except BadInput as error:
        pytest.skip(str(error))
    memory = memoryview(mmap.mmap(-1, 65536))[shift:]
    ends = np.cumsum(sizes).tolist()
    targets = [memory[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    if start + ends[-1] > len(data):
        with pytest.raises(OSError, match="bytes are there"):
            file.read_into([(start, targets)])
        return
    file.read_into([(start, targets)])
    assert memory[: ends[-1]] == data[start : start + ends[-1]]
    assert not any(memory[ends[-1] :]), "nothing is written behind them"


def test_indexes_are_parsed_once_and_kept_small(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards whose index is as the layout says leave a byte behind; few files are open at once."""
    parsed: list[Any] = []
    real = cache.reading.rows.parse_index

    def parse_index(raw: bytes, path: object) -> Any:
        parsed.append(path)
        return real(raw, path)

    monkeypatch.setattr(cache.reading.rows, "parse_index", parse_index)
    opened = Store.open(store.path)
    opened._files = OpenShards(limit=3)
    rows = opened.rows("source", "pixels")
    assert not parsed, "nothing is read before it is asked for"
    for _ in range(2):
        for sample in range(21):
            np.testing.assert_array_equal(rows.read(sample, 1), store.pixels[sample, 1])
    assert len(parsed) == 6 and len(opened._files._files) == 3
    assert rows._is_regular == {1: bytearray([1] * 6)}


def test_the_ring_is_pinned_where_there_is_a_gpu(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def allocate(size: int) -> Any:
        pinned.append(size)
        return np.zeros(size, np.uint8)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cache.loading.ring, "_pinned", allocate)
    options: dict[str, Any] = {"batch_size": 2, "num_views": 1}
    assert len(list(Loader(store, ["wide"], **options))) == 9
    assert len(pinned) == 3 and pinned[0] >= 2 * 67_200
    list(Loader(store, ["wide"], pin=False, **options))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    list(Loader(store, ["wide"], **options))
    assert len(pinned) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_pinned_batches_reach_the_gpu_whole(store: Store, tmp_path: Path) -> None:
    loader = Loader(store, ["wide"], batch_size=2, num_views=1, prefetch=1)
    for batch in loader:
        assert batch.pixels.is_pinned()
        there = batch.to("cuda")
        for row, sample in enumerate(batch.samples.tolist()):
            np.testing.assert_array_equal(there.pixels[row].cpu().numpy(), toy.pixels(store.spec, sample, 0))
