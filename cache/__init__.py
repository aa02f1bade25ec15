"""Bytes on disk: specs, codecs, writer, reader, loader and verification of feature stores. Knows no model.

`Store`, `SourceSpec` and friends are here; `cache.loading.loader.Loader` is not, since it needs torch.
"""

from cache.format.spec import LabelSpec, LevelSpec, SourceSpec
from cache.store import Store, find_stores

__all__ = ["LabelSpec", "LevelSpec", "SourceSpec", "Store", "find_stores"]
