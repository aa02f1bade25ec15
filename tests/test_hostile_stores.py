"""A stranger's store names files outside of itself: refused, and nothing is written there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cache.errors import CorruptFile
from cache.format.seals import seal
from cache.maintenance.verification import verify_store
from cache.store import Store
from tests import cache_toy as toy
from tests.cache_toy import no_fsync  # noqa: F401 (an autouse fixture)
from tests.conftest import refusal


@pytest.mark.parametrize("table", ["arrays", "files"])
@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "pixels/../../outside", "a//b"])
def test_paths_that_climb_are_refused(table: str, name: str, tmp_path: Path) -> None:
    store = toy.make_store(tmp_path / "features", num_views=1)
    path = store.path / "manifest/source/metadata.json"
    document = json.loads(path.read_text())
    document[table][name] = next(iter(document[table].values()))
    path.write_bytes(seal({key: value for key, value in document.items() if key != "digest"}))
    with pytest.raises(CorruptFile, match="which is not below the store"):
        Store.open(store.path)
    assert "which is not below the store" in str(verify_store(store.path)[0])


def test_a_copy_writes_nothing_outside(tmp_path: Path) -> None:
    store = toy.make_store(tmp_path / "features", num_views=1)
    path = store.path / "manifest/teachers/mini-dino/calibration.json"
    document = json.loads(path.read_text())
    document["files"]["../../outside"] = next(iter(document["files"].values()))
    path.write_bytes(seal({key: value for key, value in document.items() if key != "digest"}))
    [problem] = verify_store(store.path)
    assert problem.file.endswith("mini-dino/calibration.json") and "not below the store" in problem.what
    assert "which is not below the store" in refusal("copy", tmp_path / "features", tmp_path / "copies")
    assert not (tmp_path / "outside").exists()
