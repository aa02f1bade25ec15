"""Bytes on disk: specs, codecs, writer, reader, loader and verification of feature stores. Knows no model.

`Loader` is imported when it is first asked for, since it needs torch.
"""

from typing import TYPE_CHECKING, Any

from cache.format.spec import LabelSpec, LevelSpec, SourceSpec
from cache.store import Store, find_stores

if TYPE_CHECKING:
    from cache.loading.loader import Loader

__all__ = ["LabelSpec", "LevelSpec", "Loader", "SourceSpec", "Store", "find_stores"]


def __getattr__(name: str) -> Any:
    if name == "Loader":
        from cache.loading.loader import Loader

        return Loader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
