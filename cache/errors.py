"""What can go wrong in a store, each as an exception whose message says what, where and what to do."""

from __future__ import annotations

from typing import Any

from sak_common.errors import SakError


class CacheError(SakError):
    """Base of every error the cache raises on purpose."""


class StoreNotFound(CacheError):
    """No store at a path, or no committed one."""


class SpecMismatch(CacheError):
    """What is asked differs from what a store was made with.

    Attributes:
        field: dotted name of the first differing field, e.g. ``policy.scale``.
        stored, asked: its two values.
    """

    def __init__(self, where: str, field: str, stored: Any, asked: Any, advice: str) -> None:
        self.field, self.stored, self.asked = field, stored, asked
        super().__init__(f"{where} was made with {field} = {stored!r}, asked for is {asked!r}. {advice}")


class UncommittedRow(CacheError, LookupError):
    """A row that no committed shard holds (yet)."""

    def __init__(self, array: str, sample: int, view: int, shard: int) -> None:
        self.array, self.sample, self.view, self.shard = array, sample, view, shard
        super().__init__(
            f"{array}: sample {sample}, view {view} (shard {shard}) is not committed; "
            "run `sak cache` again to finish the store"
        )


class CorruptFile(CacheError):
    """Bytes on disk are not what was committed: `what` is wrong with the file at `path`."""

    def __init__(self, path: object, what: str) -> None:
        self.path, self.what = path, what
        super().__init__(f"{path}: {what}; `sak verify` lists all damage, `sak repair` mends it")


class RemadeDiffers(CacheError):
    """What was made again for a committed file is not what was committed; nothing was written."""


class BadInput(CacheError, ValueError):
    """Arrays handed to a writer have the wrong keys, shapes, dtypes or values."""


class NonFiniteFeature(BadInput):
    """A feature is NaN or infinite, or would be when stored."""


class WriteFailed(CacheError):
    """The operating system refused a write; nothing was committed for it."""


class PlaceWarning(UserWarning):
    """Something is missing where a store lies that it can do without, at a price which the message names."""


class StoreFull(WriteFailed):
    """No space left for a file; nothing was committed for it."""


class AlreadyThere(WriteFailed):
    """A file that nobody may replace is there with other bytes (in object storage, where several may write)."""


class StoreLocked(CacheError):
    """Another process works on this part of the store."""


class StaleBatch(CacheError, RuntimeError):
    """A batch was used after its buffer had been given to a later one."""


class StateMismatch(CacheError, ValueError):
    """A loader's saved state belongs to another store or configuration."""
