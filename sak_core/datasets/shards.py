"""Files that each hold many images: which of them belong to a split."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sak_core.datasets.folder import files_below
from sak_core.errors import DatasetError, NoSuchSplit

SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test",)}
"""How file and folder names call a split."""
_NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)")


def files_of_split(root: Path, split: str, *suffixes: str) -> tuple[Path, ...]:
    """The files below `root` that end in one of `suffixes` (in whatever case) and belong to `split`, sorted; see
    `of_split`.

    Raises:
        DatasetError: no such file.
        NoSuchSplit: none of this split.
    """
    files = files_ending(root, *suffixes)
    if not files:
        raise DatasetError(f"{root} holds no {suffixes[0]} files")
    return of_split(files, root, split)


def files_ending(root: Path, *suffixes: str) -> list[Path]:
    """The files below `root` that end in one of `suffixes` (in whatever case), sorted."""
    return sorted(root / path for path in files_below(root) if path.lower().endswith(suffixes))


def of_split(files: Sequence[Path], root: Path, split: str) -> tuple[Path, ...]:
    """Those of `files` that belong to `split`, all that their names say there are.

    Where paths below `root` name splits ("val/0.tar", "imagenet-train-000.tar"), those that name this one; where none
    names any, all of them.

    Raises:
        NoSuchSplit: there is none.
        DatasetError: a file names two splits, or of files named "...-00001-of-00004" some are missing.
    """
    named = {path: _split_of(path, root) for path in files}
    there = sorted({name for name in named.values() if name})
    chosen = [path for path in files if named[path] == split] if there else list(files)
    if not chosen:
        raise NoSuchSplit(f"{root} holds {files[0].suffix} files of {', '.join(there)}, none of {split}")
    _check_numbers(chosen)
    return tuple(chosen)


def _split_of(path: Path, root: Path) -> str | None:
    """The split that a file's name says, or else the nearest folder's; None where none does."""
    for part in reversed(path.relative_to(root).parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        splits = [split for split, names in SPLIT_WORDS.items() if words & set(names)]
        if len(splits) > 1:
            raise DatasetError(f"{path} may be of {' or of '.join(splits)}: rename it, so that {part} says one split")
        if splits:
            return splits[0]
    return None


def _check_numbers(files: Sequence[Path]) -> None:
    """Refuse files that number themselves "00001-of-00004" and are not all there."""
    series: dict[tuple[Path, str, int], set[int]] = defaultdict(set)
    for path in files:
        if found := _NUMBERED.match(path.name):  # a hash of the file's own may follow
            before, number, total = found.groups()
            series[path.parent, before, int(total)].add(int(number))
    for (folder, before, total), numbers in series.items():
        first = 1 if max(numbers) == total else 0  # some count from 1
        if missing := sorted(set(range(first, first + total)) - numbers):
            listed = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise DatasetError(
                f"{folder} lacks {len(missing)} of the {total} files {before}*-of-{total:05d} (number {listed}): get "
                "them, or, to do without, rename those that are there"
            )


def locate(index: int, starts: Sequence[int]) -> tuple[int, int]:
    """Which file a row is in and which of its rows it is.

    Args:
        starts: number of each file's first row.
    """
    from bisect import bisect_right

    file = bisect_right(starts, index) - 1
    return file, index - starts[file]
