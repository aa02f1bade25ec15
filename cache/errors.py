"""What can go wrong in a store, each as an exception whose message says what and where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sak_common.errors import SakError


class CacheError(SakError):
    """Base of every error the cache raises on purpose."""


class StoreNotFound(CacheError):
    """No store at a path, or no committed one."""


class UnfinishedStore(StoreNotFound):
    """The creation of the store at a path never finished."""


class LeftOut(CacheError):
    """Pixels or labels were left out of a store, as of one that is published without them; `store` is where it lies."""

    def __init__(self, store: object, arrays: Iterable[str]) -> None:
        self.store, self.arrays = store, sorted(arrays)
        super().__init__(f"{store} holds features without the images: {', '.join(self.arrays)} left out")


class NotLocal(CacheError):
    """The store lies in object storage, where a folder of this machine is needed."""


class NotCalibrated(CacheError):
    """A teacher's features cannot be decoded: its codecs need a calibration, and none is committed yet."""


class SpecMismatch(CacheError):
    """What is asked differs from what a store was made with.

    Attributes:
        field: dotted name of the first differing field, e.g. ``policy.scale``.
        stored, asked: its two values.
    """

    def __init__(self, where: str, field: str, stored: Any, asked: Any) -> None:
        self.field, self.stored, self.asked = field, stored, asked
        super().__init__(f"{where} was made with {field} = {stored!r}, asked for is {asked!r}")


class StoresDiffer(CacheError):
    """Stores that are to be read as one are not of the same rows; the message names what differs, and where."""


class UncommittedRow(CacheError, LookupError):
    """A row that no committed shard holds (yet)."""

    def __init__(self, array: str, sample: int, view: int, shard: int) -> None:
        self.array, self.sample, self.view, self.shard = array, sample, view, shard
        super().__init__(f"{array}: sample {sample}, view {view} (shard {shard}) is not committed")


class CorruptFile(CacheError):
    """Bytes on disk are not what was committed: `what` is wrong with the file at `path`."""

    def __init__(self, path: object, what: str) -> None:
        self.path, self.what = path, what
        super().__init__(f"{path}: {what}")


class LeadsAway(CacheError, OSError):
    """A file of a store, or a folder in it, is `what`: its bytes would be read, or written, outside of the store."""

    def __init__(self, path: object, what: str) -> None:
        super().__init__(f"{path} is {what}: a store's files must lie in its folder; put there what it leads to")


class RemadeDiffers(CacheError):
    """What was made again for a committed file is not what was committed; nothing was written."""


class CalibrationDiffers(RemadeDiffers):
    """A calibration that was made again is not the committed one; `file` is the first that differs."""

    def __init__(self, teacher: str, file: str) -> None:
        self.teacher, self.file = teacher, file
        super().__init__(
            f"teacher {teacher}: {file} differs from the committed calibration; the teacher, the device, the number "
            "of threads or the version of sak is not the one that made it"
        )


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


class TooManyOpenFiles(WriteFailed):
    """This process may open no more files; where it wrote, nothing was committed."""


class AlreadyThere(WriteFailed):
    """A file that nobody may replace is there with other bytes (in object storage, where several may write)."""


class StoreLocked(CacheError):
    """Another process works on this part of the store."""


class StaleBatch(CacheError, RuntimeError):
    """A batch was used after its buffer had been given to a later one."""


class StateMismatch(CacheError, ValueError):
    """A loader's saved state belongs to another store or configuration."""
