"""The order of rows that a recipe asks for reaches the loader."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import load_recipe
from pipeline.errors import UserError
from pipeline.training.distill import open_loader
from tests import cache_toy as toy
from tests.cache_toy import no_fsync  # noqa: F401 (an autouse fixture)


def test_block_order_is_a_key_of_a_recipe(tmp_path: Path) -> None:
    store = toy.make_store(tmp_path)
    fabric: Any = SimpleNamespace(world_size=1, global_rank=0)
    data = {
        "data.dataset": "toy",
        "data.split": "train",
        "data.size": None,
        "data.views": 2,
        "batch_size": 3,
        "teachers": ["mini-dino"],
    }

    def loader(**keys: Any) -> Any:
        recipe = load_recipe("demo", "distill", {**data, **keys})
        return open_loader(store, recipe, (), fabric)

    assert loader().config.shuffle is True
    block = loader(shuffle="block", shuffle_rows=6)
    assert (block.config.shuffle, block.config.buffer_rows, block.config.block_rows) == ("block", 6, 4)
    assert sorted(s for batch in block for s in batch.samples.tolist())[:3] == [0, 1, 2] and len(block) == 3
    with pytest.raises(UserError, match="shuffle"):
        loader(shuffle="blocks")
