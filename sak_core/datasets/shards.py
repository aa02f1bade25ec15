"""Files that each hold many images: which of them belong to a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sak_core.datasets.folder import files_below
from sak_core.errors import DatasetError, NoSuchSplit

SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test",)}
"""How file and folder names call a split."""


def files_of_split(root: Path, split: str, *suffixes: str) -> tuple[Path, ...]:
    """The files below `root` that end in one of `suffixes` (in whatever case) and belong to `split`, sorted; see
    `of_split`.

    Raises DatasetError: no such file; NoSuchSplit: none of this split.
    """
    files = files_ending(root, *suffixes)
    if not files:
        raise DatasetError(f"{root} holds no {suffixes[0]} files")
    return of_split(files, root, split)


def files_ending(root: Path, *suffixes: str) -> list[Path]:
    """The files below `root` that end in one of `suffixes` (in whatever case), sorted."""
    return sorted(root / path for path in files_below(root) if path.lower().endswith(suffixes))


def of_split(files: Sequence[Path], root: Path, split: str) -> tuple[Path, ...]:
    """Those of `files` that belong to `split`.

    Where paths below `root` name splits ("val/0.tar", "imagenet-train-000.tar"), those that name this one; where none
    names any, all of them.

    Raises NoSuchSplit: there is none.
    """
    named = {path: _splits(path.relative_to(root).as_posix()) for path in files}
    if not any(named.values()):
        return tuple(files)
    chosen = tuple(path for path in files if split in named[path])
    if not chosen:
        there = sorted({name for names in named.values() for name in names})
        raise NoSuchSplit(f"{root} holds {files[0].suffix} files of {', '.join(there)}, none of {split}")
    return chosen


def _splits(path: str) -> list[str]:
    words = set(re.split(r"[^a-z]+", path.lower()))
    return [split for split, names in SPLIT_WORDS.items() if words & set(names)]


def locate(index: int, starts: Sequence[int]) -> tuple[int, int]:
    """Which file a row is in and which of its rows it is; `starts`: number of each file's first row."""
    from bisect import bisect_right

    file = bisect_right(starts, index) - 1
    return file, index - starts[file]
