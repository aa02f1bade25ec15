"""What can be wrong with data and teachers."""

from __future__ import annotations

from pathlib import Path

from sak_common.errors import SakError
from sak_common.names import UnknownName


class DatasetError(SakError):
    """A dataset cannot be opened: wrong folder, missing list, unknown split. The message says what to do."""


class NoSuchSplit(DatasetError):
    """A data set that is otherwise in order has no such split."""


class FolderNeeded(DatasetError):
    """A data set lies in a folder, and none was named."""


class SeveralInputs(DatasetError):
    """Several images could be a sample's input."""


class TeacherUnavailable(SakError):
    """A teacher cannot be built here."""


class NoWeights(TeacherUnavailable):
    """The library's hub did not give a teacher's weights."""


class NoSettings(TeacherUnavailable):
    """transformers' hub did not give a model's config.json and preprocessor_config.json."""


class OwnCode(TeacherUnavailable):
    """A teacher is code of the user's own, which is not allowed to run."""


class PerhapsOwnCode(UnknownName):
    """There is no such teacher, unless it is code of the user's own."""


class BadTeacherOptions(SakError, ValueError):
    """What is asked of a teacher cannot be: levels that it does not have, two sources of weights."""


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
