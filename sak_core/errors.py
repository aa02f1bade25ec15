"""What can be wrong with data."""

from __future__ import annotations

from pathlib import Path

from sak_common.errors import SakError


class DatasetError(SakError):
    """A dataset cannot be opened: wrong folder, missing list, unknown split. The message says what to do."""


class NoSuchSplit(DatasetError):
    """A data set that is otherwise in order has no such split."""


class UnreadableSample(Exception):
    """One sample cannot be read; the run can go on without it.

    Attributes:
        path: the file at fault (or the sample's id, where no file is).
        reason: what is wrong with it, in words.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableSample], tuple[str, str]]:
        # default pickling would hand the joined message to the two-argument constructor
        return type(self), (self.path, self.reason)
