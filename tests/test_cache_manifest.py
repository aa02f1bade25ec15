"""A manifest that several threads of one process read and commit to."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cache.format.manifest import SOURCE, PartManifest
from cache.places.files import FileDigest
from cache.places.local import LocalPlace
from cache.store import Store
from tests import cache_toy as toy


class _Unwritten(LocalPlace):
    """Keeps nothing, so that threads have nothing to wait for between commits."""

    def write(self, files: Any, **options: Any) -> dict[str, FileDigest]:
        return {}

    def exists(self, name: str) -> bool:
        return False


def test_threads_that_commit_at_once_do_not_mix_shards_up(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec(num_samples=65, rows_per_shard=1))
    metadata = store.part(SOURCE).metadata
    digests = {shard: FileDigest(shard, f"{shard:064x}") for shard in range(64)}  # one is left: nothing is compacted
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(80):
            manifest = PartManifest(_Unwritten(store.path), SOURCE)
            manifest._metadata = metadata

            def commit(first: int, manifest: PartManifest = manifest) -> None:
                for shard in range(first, 64, 4):
                    manifest.commit_shard(0, shard, {"pixels": digests[shard], "views/box": digests[shard]})
                    assert manifest.view(0).file(shard, "pixels") == digests[shard]

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(commit, range(4)))
            for array in ("pixels", "views/box"):
                assert {shard: manifest.view(0).file(shard, array) for shard in digests} == digests
    finally:
        sys.setswitchinterval(switching)
