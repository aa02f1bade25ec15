"""How a recipe asks for its rows to be read: their order, and past the page cache."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from obstore.store import MemoryStore

from cache.errors import BadInput
from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.places.local import LocalPlace
from cache.places.objects import ObjectPlace
from cache.store import Store
from pipeline.errors import UserError
from pipeline.recipes.config import load_recipe
from pipeline.runs import Places
from pipeline.training.distill import open_loader
from pipeline.training.loop import _restore_position
from tests import cache_toy as toy
from tests.mounts import mounted

DATA = {
    "data.dataset": "toy",
    "data.split": "train",
    "data.size": None,
    "data.views": 2,
    "batch_size": 3,
    "teachers": ["mini-dino"],
}


def loader(store: Store, source: str = "cache", **keys: Any) -> Any:
    """The training batches of a recipe whose `loader` has these keys."""
    fabric: Any = SimpleNamespace(world_size=1, global_rank=0)
    return open_loader(
        store, load_recipe("demo", "distill", {**DATA, "source": source, "loader": keys}), (), fabric, Places()
    )


def test_block_order_is_a_key_of_a_recipe(tmp_path: Path) -> None:
    store = toy.make_store(tmp_path)
    assert loader(store).config.shuffle is True
    block = loader(store, shuffle="block", buffer_rows=6)
    assert (block.config.shuffle, block.config.buffer_rows, block.config.block_rows) == ("block", 6, 4)
    assert sorted(s for batch in block for s in batch.samples.tolist())[:3] == [0, 1, 2] and len(block) == 3
    with pytest.raises(UserError, match="shuffle"):
        loader(store, shuffle="blocks")


def test_going_on_with_other_processes_in_block_order_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process's rows up to here and two processes' from here on are not an epoch, as they are in exact order."""
    store = Store.create(tmp_path, toy.toy_spec(num_samples=40))
    toy.write_source(store, 1)
    for shuffle in (True, "block"):
        alone = Loader(store, batch_size=4, num_views=1, shuffle=shuffle, block_rows=4, buffer_rows=8)
        batches = iter(alone)
        seen = [s for _ in range(4) for s in next(batches).samples.tolist()]
        for rank in range(2):
            half = Loader(
                store, batch_size=2, num_views=1, shuffle=shuffle, block_rows=4, buffer_rows=8, rank=rank, world_size=2
            )
            _restore_position(half, alone.state_dict())
            seen += [s for batch in half for s in batch.samples.tolist()]
        assert (sorted(seen) == list(range(40))) == (shuffle is True)
        assert ("2 processes in place of 1" in capsys.readouterr().err) == (shuffle == "block")


def test_past_the_page_cache_is_a_key_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches bit for bit, from files opened with O_DIRECT, by more threads."""
    store = toy.make_store(tmp_path)
    opened: list[bool] = []
    real = LocalPlace.open

    def spy(place: LocalPlace, name: str, num_bytes: int) -> Any:
        opened.append(place.direct)
        return real(place, name, num_bytes)

    monkeypatch.setattr(LocalPlace, "open", spy)
    direct, buffered = loader(store, direct=True), loader(store)
    try:
        taken = [flat(batch) for batch in direct]
    except BadInput as error:
        pytest.skip(str(error))
    assert opened and all(opened)
    opened.clear()
    for left, batch in zip(taken, buffered, strict=True):
        right = flat(batch)
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    assert opened and not any(opened)
    assert (direct.num_threads, buffered.num_threads) == (16, 2)
    assert direct.state_dict() == buffered.state_dict(), "a run may go on with the other"


def flat(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch's tensors, in memory of their own."""
    maps = {f"{name}/{i}": level.clone() for name, levels in batch.features.items() for i, level in enumerate(levels)}
    return {"samples": batch.samples.clone(), "views": batch.views.clone(), "pixels": batch.pixels.clone(), **maps}


def test_a_file_system_that_cannot_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "ramfs"
    with mounted(folder, "-t", "ramfs", "ramfs"):
        store = toy.make_store(folder)
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(store.path / "pixels/c.0.0.0.0.0", os.O_RDONLY | os.O_DIRECT)
        with pytest.raises(BadInput, match=r"c\.\d\.\d.*cannot read past the page cache; leave direct out"):
            next(iter(loader(store, direct=True)))
        assert len(list(loader(store))) == 3


def test_past_the_page_cache_of_what_has_none() -> None:
    bucket = toy.make_store(ObjectPlace(MemoryStore(), "features"))
    with pytest.raises(UserError, match=r"loader.direct = true is for a folder of this machine, not memory:"):
        loader(bucket, direct=True)
    with pytest.raises(UserError, match="source = 'live' reads none: leave it out"):
        loader(bucket, direct=True, source="live")
