"""Any folder of images, nested and of mixed formats, without labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sak_common.errors import out_of_resources
from sak_core.datasets.published import SizesOfFiles, Stage1Images
from sak_core.errors import DatasetError
from sak_core.images import EXTENSIONS, read_image
from sak_core.interfaces.dataset import Sample


@dataclass(frozen=True)
class ImageFolder(SizesOfFiles, Stage1Images):
    """All images below a folder. Every split holds all of them: "train" in stage 1's random views, "val" and
    "test" whole.

    Ids are paths relative to the folder, with "/" between names, in the order of their characters; hidden
    files and folders are left out, links are followed.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        name: as on the command line.

    Raises:
        DatasetError: no such folder, or no images in it.
    """

    root: Path
    split: str
    name: str = "folder"
    _paths: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_root(self.root)
        paths = tuple(sorted(path for path in files_below(self.root) if path.lower().endswith(EXTENSIONS)))
        if not paths:
            raise DatasetError(f"{self.root} holds no images (looked for {', '.join(EXTENSIONS)}, nested too)")
        object.__setattr__(self, "_paths", paths)

    @cached_property
    def ids(self) -> Sequence[str]:
        """Relative paths; bytes that are no UTF-8 are written as \\xNN."""
        return [as_text(path) for path in self._paths]

    def files(self, index: int) -> dict[str, Path]:
        """The image."""
        return {"image": self.root / self._paths[index]}

    def load(self, index: int) -> Sample:
        """Decode one image.

        Raises:
            UnreadableSample: its file does not allow it.
        """
        return Sample(read_image(self.root / self._paths[index]))


def check_root(root: Path) -> None:
    """Check that `root` is a folder.

    Raises:
        DatasetError: it is none, or not there.
    """
    if not root.exists():
        raise DatasetError(f"no folder {root}")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file, a folder is needed")


def as_text(path: str) -> str:
    """A path as Unicode can hold it: bytes that are no UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def files_below(root: Path) -> Iterator[str]:
    """Relative POSIX paths of the files below `root`, in no order. Hidden files and folders are left out, links are
    followed, broken ones listed; each real folder is entered once, whatever links lead to it.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    entered: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one."""
    if out_of_resources(error):
        raise error
    raise DatasetError(
        f"{error.filename} cannot be listed ({error.strerror}), so its images would be left out"
    ) from error
