"""Processes killed at every named point, and what the next run makes of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cache.faults import fault_point
from cache.maintenance.verification import verify_store
from cache.store import Store
from tests import cache_toy as toy
from tests.cache_toy import unlisted_files
from tests.conftest import program

ROOT = Path(__file__).parents[1]
MAKE = """
import os, sys
from pathlib import Path
from tests import cache_toy as toy
os.fsync = lambda descriptor: None  # a killed process, unlike a power cut, loses nothing that was written
toy.make_store(Path(sys.argv[1]), num_views=2)
"""


def make(root: Path, fault: str = "") -> int:
    return program(MAKE, root, env={"SAK_FAULT": fault}).returncode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("undisturbed")
    assert make(root) == 0
    return toy.tree(root)


# grow: the source's two views, then each view of each teacher. commit: 8 source shards, then teachers' shards.
@pytest.mark.parametrize(
    "fault",
    [
        "grow:1",
        "prepare:1",
        "prepare:7",
        "commit:6",
        "compact:1",
        "calibrate:1",
        "grow:2",
        "write:6",
        "commit:13",
        "compact:6",
    ],
)
def test_killed_and_resumed_is_byte_identical(tmp_path: Path, undisturbed: dict[str, bytes], fault: str) -> None:
    assert make(tmp_path, fault) == -signal.SIGKILL
    store = Store.open(next(tmp_path.glob("*.zarr")))
    assert verify_store(store.path) == []  # half finished is not damaged
    phase = fault.split(":")[0]
    leftovers = unlisted_files(store.path)
    assert any(name.endswith(".tmp") for name in leftovers) == (phase in ("prepare", "write"))
    committed = [
        (store.path / array.file(view, shard))
        for part in ("source", *(f"teachers/{name}" for name in store.teachers))
        for view in range(2)
        for shard in store.part(part).view(view).shards
        for array in store.part(part).metadata.arrays_of(view)
    ]
    stamps = {path: path.stat() for path in committed}
    assert bool(stamps) == (fault not in ("grow:1", "prepare:1"))
    assert make(tmp_path) == 0
    assert toy.tree(tmp_path) == undisturbed
    for path, before in stamps.items():  # committed shards are not written again
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_fault_is_named_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, sig: killed.append(sig))
    fault_point("somewhere")
    monkeypatch.setenv("SAK_FAULT", "elsewhere:3")
    for _ in range(5):
        fault_point("elsewhere")
    assert killed == [signal.SIGKILL]
