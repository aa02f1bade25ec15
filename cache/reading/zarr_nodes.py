"""A store as zarr-python lists it: what is no Zarr is left out, of which it would warn at every listing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from zarr.abc.store import Store as ZarrStore
from zarr.storage import StorePath, WrapperStore

from cache.format.manifest import FOLDER, LOG

NO_NODES = frozenset({FOLDER, LOG})
"""What lies in a store's folder and is neither array nor group."""


class ZarrNodes(WrapperStore[ZarrStore]):
    """Another Zarr store without `NO_NODES` of the group at `root`."""

    root = ""

    def _with_store(self, store: ZarrStore) -> ZarrNodes:
        return _nodes(store, self.root)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """See zarr's own."""
        async for key in self._store.list_dir(prefix):
            if prefix.strip("/") != self.root or key not in NO_NODES:
                yield key


def zarr_nodes(place: Any) -> Any:
    """The place of a store, as `Place.zarr` gives it, so that listing meets arrays and groups alone."""
    if isinstance(place, StorePath):
        return StorePath(_nodes(place.store, place.path), place.path)
    return _nodes(place, "")


def _nodes(store: ZarrStore, root: str) -> ZarrNodes:
    made = ZarrNodes(store)
    made.root = root
    return made
