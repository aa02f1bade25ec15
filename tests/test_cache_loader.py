"""Batches: every row the one that was asked for, resumable anywhere, never stale in silence."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import BadInput, CacheError, StaleBatch, StateMismatch, UncommittedRow
from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.loading.sampler import SamplerConfig, epoch_requests
from cache.store import Store
from sak_common.names import UnknownName
from tests import cache_toy as toy


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return toy.make_store(tmp_path_factory.mktemp("loader"), num_views=3, num_samples=41, rows_per_shard=8)


def make(store: Store, **options: Any) -> Loader:
    defaults: dict[str, Any] = {"batch_size": 4, "num_views": 3, "seed": 5}
    return Loader(store, ("mini-dino", "mini-clip"), ("semseg", "normals"), **{**defaults, **options})


def numbers(batch: Batch) -> tuple[Any, ...]:
    return batch.samples.tolist(), batch.views.tolist(), batch.weights.tolist()


def check(store: Store, batch: Batch) -> None:
    """Each number of a batch on the CPU is what the store holds for its row."""
    ready = batch.to("cpu")
    for row, (sample, view) in enumerate(zip(batch.samples.tolist(), batch.views.tolist(), strict=True)):
        np.testing.assert_array_equal(ready.pixels[row].numpy(), toy.pixels(store.spec, sample, view))
        for task, label in ready.labels.items():
            np.testing.assert_array_equal(label[row].numpy(), toy.label(store.spec, task, sample, view))
        for teacher, levels in (("mini-dino", toy.LEVELS), ("mini-clip", toy.OTHER_LEVELS)):
            for place, level in enumerate(levels):
                decoded = ready.features[teacher][place][row]
                assert decoded.dtype == torch.float32 and decoded.shape == (level.width, *level.grid)
                expected = store.features(teacher, level.level)[sample, view]
                np.testing.assert_allclose(decoded.permute(1, 2, 0).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("shuffle", [True, "block"])
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_hold_the_rows_that_the_sampler_asks_for(store: Store, threads: int, shuffle: Any) -> None:
    loader = make(store, num_threads=threads, prefetch=3, shuffle=shuffle, buffer_rows=12)
    config = SamplerConfig(4, 3, 5, shuffle=shuffle, drop_last=True, block_rows=8, buffer_rows=12)
    for epoch in (0, 1, 4):
        loader.set_epoch(epoch)
        requests = epoch_requests(store.valid(3), config, epoch)
        count = 0
        for batch, samples, views in zip(loader, requests.samples, requests.views, strict=True):
            assert batch.samples.tolist() == samples.tolist() and batch.views.tolist() == views.tolist()
            assert len(batch) == 4
            check(store, batch)
            count += 1
        assert count == len(loader) == 9  # 39 valid samples
        assert not set(toy.INVALID) & set(requests.samples.ravel().tolist())


def test_a_fresh_batch_is_as_stored_and_uncopied(store: Store) -> None:
    loader = make(store)
    iterator = iter(loader)
    first = next(iterator)
    assert [level.dtype for level in first.features["mini-dino"]] == [torch.float16, torch.int8, torch.uint16]
    assert first.features["mini-dino"][0].shape == (4, 5, 4, 6) and first.labels["normals"].shape == (4, 6, 7, 3)
    seen = {first.pixels.data_ptr()}
    seen |= {batch.pixels.data_ptr() for batch in iterator}
    assert len(seen) == 3, "as many buffers as prefetch + 1, used again and again"


def test_evaluation_pads_with_weight_zero(store: Store) -> None:
    loader = make(store, shuffle=False, batch_size=4, rank=1, world_size=2)
    batches = [(numbers(batch), check(store, batch)) for batch in loader]
    assert len(batches) == len(loader) == 5
    assert [weight for (_, _, weights), _ in batches for weight in weights] == [1.0] * 19 + [0.0]


def test_subsets(store: Store) -> None:
    loader = Loader(store, {"mini-dino": [3, 0]}, batch_size=2, num_views=1, pixels=False)
    batch = next(iter(loader))
    assert [level.shape[-1] for level in batch.features["mini-dino"]] == [6, 8] and batch.labels == {}
    assert batch.pixels.shape == (2, 0, 0, 3) and batch.to("cpu").pixels.shape == (2, 0, 0, 3)
    assert not batch.views.any()


def test_what_cannot_be_read_is_refused(store: Store) -> None:
    with pytest.raises(UnknownName, match="mini-dino"):
        Loader(store, ["mini-din"], batch_size=2, num_views=1)
    with pytest.raises(UnknownName, match="level of mini-dino"):
        Loader(store, {"mini-dino": [7]}, batch_size=2, num_views=1)
    with pytest.raises(UnknownName, match="semseg"):
        Loader(store, labels=["semsek"], batch_size=2, num_views=1)
    with pytest.raises(UncommittedRow, match="pixels: sample 0, view 3"):
        Loader(store, batch_size=2, num_views=4)
    with pytest.raises(BadInput, match="nothing to read"):
        Loader(store, batch_size=2, num_views=1, pixels=False)
    with pytest.raises(BadInput, match="39 valid samples do not fill one batch of 40"):
        Loader(store, batch_size=40, num_views=1)
    with pytest.raises(BadInput, match="at least 1"):
        Loader(store, batch_size=4, num_views=1, prefetch=0)


# ---- resuming --------------------------------------------------------------------------------------------------------


def epochs(loader: Loader, first: int, last: int) -> Iterator[tuple[int, Any]]:
    for epoch in range(first, last):
        loader.set_epoch(epoch)
        for batch in loader:
            yield epoch, (numbers(batch), batch.to("cpu").features["mini-dino"][1].sum().item())


@pytest.mark.parametrize("shuffle", [True, "block"])
@pytest.mark.parametrize("taken", [0, 1, 8, 9, 10, 17, 18])
def test_resuming_gives_exactly_what_would_have_come(store: Store, taken: int, shuffle: Any) -> None:
    options = {"shuffle": shuffle, "buffer_rows": 16, "block_rows": 8}
    whole = list(epochs(make(store, **options), 0, 3))
    loader = make(store, prefetch=4, **options)
    running = epochs(loader, 0, 3)
    before = list(islice(running, taken))
    state = json.loads(json.dumps(loader.state_dict()))
    assert state["version"] == 1
    resumed = make(store, num_threads=3, prefetch=1, **options)  # none of these changes what comes
    resumed.load_state_dict(state)
    assert resumed.epoch == state["epoch"] == max(0, (taken - 1)) // 9
    after = list(epochs(resumed, state["epoch"], 3))
    assert before + after == whole


def test_a_restored_position_is_used_once(store: Store) -> None:
    loader = make(store)
    state = {**loader.state_dict(), "epoch": 1, "batch": 7}
    loader.load_state_dict(state)
    assert len(list(loader)) == 2 and len(list(loader)) == 9
    loader.load_state_dict(state)
    loader.set_epoch(2)  # another epoch than the restored one begins at its beginning
    assert len(list(loader)) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3}, "sampler.batch_size = 4, this loader has 3"),
        ({"seed": 6}, "sampler.seed = 5"),
        ({"num_views": 2}, "sampler.num_views = 3"),
        ({"world_size": 2}, "sampler.world_size = 1"),
        ({"shuffle": False}, "sampler.drop_last = True"),
        ({"pixels": False}, "pixels = True"),
        ({"shuffle": "block"}, "sampler.shuffle = True, this loader has 'block'"),
        ({"block_rows": 4}, "sampler.block_rows = 8"),
    ],
)
def test_a_state_of_another_configuration_is_refused(store: Store, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StateMismatch, match=message):
        make(store, **options).load_state_dict(make(store).state_dict())


def test_a_state_of_another_store_is_refused(store: Store, tmp_path: Path) -> None:
    state = make(store).state_dict()
    other = toy.make_store(tmp_path / "seed", num_views=3, num_samples=41, rows_per_shard=8, seed=4)
    with pytest.raises(StateMismatch, match="store = 'toy-train-6x7"):
        make(other).load_state_dict(state)
    twin = Store.create(tmp_path / "twin", store.spec)
    toy.write_source(twin, 3, toy.INVALID)
    toy.write_teacher(twin, 3, precision="bf16")
    toy.write_teacher(twin, 3, "mini-clip", toy.OTHER_LEVELS)
    with pytest.raises(StateMismatch, match=r"provenance.precision = '\(nothing\)', this loader has 'bf16'"):
        make(twin).load_state_dict(state)
    with pytest.raises(StateMismatch, match="version 2"):
        make(store).load_state_dict({**state, "version": 2})
    with pytest.raises(StateMismatch, match="batch 10; an epoch has 9"):
        make(store).load_state_dict({**state, "batch": 10})


# ---- block order -----------------------------------------------------------------------------------------------------


def test_block_order_reads_neighbours_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """41 samples in 6 shards, all views: a request a row in exact order, a request a run in block order."""
    asked: list[int] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: Any, offset: int) -> int:
        asked.append(offset)
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    counts = {}
    for shuffle in (True, "block"):
        asked.clear()
        loader = Loader(
            store, batch_size=3, num_views=3, shuffle=shuffle, buffer_rows=39, drop_last=False, num_threads=1
        )
        rows = sorted(sample for batch in loader for sample in batch.samples.tolist())
        assert rows == sorted(set(range(41)) - set(toy.INVALID))
        counts[shuffle] = len(asked)
    assert 30 <= counts[True] <= 39  # neighbours in one batch may share a request
    assert counts["block"] == 6  # a shard each


def test_a_batch_of_blocks_stays_valid_as_any(store: Store) -> None:
    loader = make(store, shuffle="block", buffer_rows=8, debug=True)
    iterator = iter(loader)
    first = next(iterator)
    check(store, first)
    second = next(iterator)
    check(store, second)
    third = next(iterator)  # from the next window
    check(store, third)
    for stale in (first, second):
        with pytest.raises(StaleBatch):
            stale.pixels.sum()


# ---- how long a batch is valid ---------------------------------------------------------------------------------------


def test_a_stale_batch_raises_in_debug_mode(store: Store) -> None:
    loader = make(store, debug=True)
    iterator = iter(loader)
    first = next(iterator)
    view = first.pixels[0]
    kept = first.pixels.float() + 1  # a new tensor is nobody's buffer
    assert type(kept) is torch.Tensor
    before = first.pixels.clone()
    check(store, first)
    second = next(iterator)
    for use in (
        lambda: first.pixels.sum(),
        lambda: first.pixels[0],
        lambda: first.features["mini-dino"][1].float(),
        lambda: first.labels["semseg"].numpy(),
        lambda: view + 1,
        lambda: torch.stack([second.pixels, first.pixels]),
        lambda: first.to("cpu"),
    ):
        with pytest.raises(StaleBatch, match="given to a later batch"):
            use()
    check(store, second)
    assert kept.shape == before.shape and (kept == before.float() + 1).all()
    next(iter(loader))  # a new iteration takes all buffers
    with pytest.raises(StaleBatch):
        second.pixels.sum()


@pytest.mark.parametrize("shuffle", [True, "block"])
def test_a_newer_iteration_ends_the_older(store: Store, shuffle: Any) -> None:
    loader = make(store, shuffle=shuffle, debug=True)
    older, never_begun = iter(loader), iter(loader)
    next(older)
    newer = iter(loader)
    batch = next(newer)
    check(store, batch)
    with pytest.raises(CacheError, match="this iteration over the loader ended when another one began"):
        next(older)
    check(store, batch)  # the older one gave back memory that is no longer its own
    assert len(list(newer)) == 8
    del never_begun


def test_what_to_returns_owns_its_memory(store: Store) -> None:
    loader = make(store, prefetch=1)
    iterator = iter(loader)
    first = next(iterator).to("cpu")
    pixels, clip = first.pixels.clone(), first.features["mini-clip"][0].clone()
    for _ in iterator:
        pass
    assert torch.equal(first.pixels, pixels) and torch.equal(first.features["mini-clip"][0], clip)
    again = first.to("cpu")  # decoded once, moved as often as one likes
    assert torch.equal(again.features["mini-dino"][1], first.features["mini-dino"][1])


def test_threads_end_with_their_iteration(store: Store) -> None:
    def readers() -> int:
        return sum(thread.name.startswith("cache-read") for thread in threading.enumerate())

    loader = make(store)
    for _ in range(3):
        for batch in loader:
            del batch
            break
    list(loader)
    assert readers() == 0
    iterator = iter(loader)
    next(iterator)
    assert readers() > 0
    del iterator, loader
    gc.collect()
    assert readers() == 0
