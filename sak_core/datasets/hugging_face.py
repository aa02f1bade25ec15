"""Hugging Face datasets on disk, without labels: folders that `save_to_disk` wrote, Parquet files, or the Arrow files
that `load_dataset` leaves in its cache.

Needs pyarrow, not the `datasets` library; nothing is downloaded and no code of the dataset runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from sak_core.datasets.folder import check_root
from sak_core.datasets.published import ChosenImages
from sak_core.datasets.shards import SPLIT_WORDS, files_ending, files_of_split, locate, of_split
from sak_core.datasets.tables import ArrowTable, open_table, outer_file, read_arrow
from sak_core.errors import DatasetError, NoSuchSplit, UnreadableSample
from sak_core.images import decode_image, read_image
from sak_core.interfaces.dataset import Sample

_STATE = "state.json"
"""Beside the Arrow files that `save_to_disk` wrote."""
_INFO = "dataset_info.json"
"""Beside the Arrow files that `load_dataset` left."""


@dataclass(frozen=True)
class HuggingFaceFolder(ChosenImages):
    """One split of a dataset on disk; ids are row numbers.

    Args:
        root: what `save_to_disk` wrote (of one split or of several), or a folder of Parquet files, or of
            `load_dataset`'s Arrow files, whose paths name their splits.
        split: "train" (in stage 1's views), "val" or "test" (whole).
        images: the column that holds them; see `sak_core.datasets.tables.image_column`.

    Raises:
        DatasetError: no such split, no column of images or several of which none is called "image", files that
            cannot be read or are not whole, rows missing, or pyarrow missing.
    """

    name = "hugging_face"
    root: Path
    split: str
    images: str | None = None
    _files: tuple[Path, ...] = field(init=False, repr=False)
    _saved: Path | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_root(self.root)
        saved = _saved_folder(self.root, self.split)
        files = _saved_files(saved, "_data_files") if saved else _loose_files(self.root, self.split)
        object.__setattr__(self, "_files", files)
        object.__setattr__(self, "_saved", saved)
        if not saved:
            _check_count(files, self.split, self._num_stored)
        if not self.ids:
            raise DatasetError(f"{saved or self.root} has no rows")

    def __reduce__(self) -> tuple[type[HuggingFaceFolder], tuple[Path, str, str | None]]:
        # open tables do not travel to worker processes
        return type(self), (self.root, self.split, self.images)

    @cached_property
    def ids(self) -> Sequence[str]:
        """Row numbers as nine digits."""
        return [f"{row:09d}" for row in range(len(self._rows))]

    @cached_property
    def fingerprints(self) -> Sequence[int]:
        """Bytes of each image; for Parquet, whose images would all have to be unpacked, of its file."""
        stored = [size for table in self._tables for size in table.sizes()]
        return [stored[row] for row in self._rows]

    @property
    def archives(self) -> Sequence[Path]:
        """The Parquet or Arrow files."""
        return self._files

    def load(self, index: int) -> Sample:
        """Decode one image.

        Raises:
            UnreadableSample: it cannot be decoded; names file and row.
        """
        file, row = locate(self._rows[index], self._starts)
        where = f"{self._files[file]} row {row}"
        value = self._tables[file].image(row)
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is not None:
            return Sample(decode_image(content, where))
        outer = outer_file(value)
        if outer is not None and outer.exists():
            return Sample(read_image(outer))
        path = value.get("path") if isinstance(value, dict) else None
        raise UnreadableSample(where, f"has no image in it (path: {path}); save it with images embedded")

    @cached_property
    def _rows(self) -> Sequence[int]:
        """The row of the files, counted through, that each row of the data set is."""
        chosen = _saved_files(self._saved, "_indices_data_files") if self._saved else ()
        if not chosen:
            return range(self._num_stored)
        rows = [row for path in chosen for row in _indices(path)]
        if wrong := [row for row in rows if not 0 <= row < self._num_stored]:
            raise DatasetError(f"{self._saved}: its indices name row {wrong[0]} of {self._num_stored}")
        return rows

    @cached_property
    def _tables(self) -> list[ArrowTable]:
        return [open_table(path, self.images) for path in self._files]

    @property
    def _num_stored(self) -> int:
        return sum(table.num_rows for table in self._tables)

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((table.num_rows for table in self._tables[:-1]), initial=0))


def _saved_folder(root: Path, split: str) -> Path | None:
    """The folder that `save_to_disk` wrote for `split`, or None if `root` is of another kind."""
    if (root / _STATE).is_file():
        return root
    there = sorted(path.parent.name for path in root.glob(f"*/{_STATE}"))
    if not there and not (root / "dataset_dict.json").is_file():
        return None
    for word in SPLIT_WORDS[split]:
        if word in there:
            return root / word
    raise NoSuchSplit(f"{root} has splits {', '.join(there)}, none for {split!r}")


def _saved_files(folder: Path, which: str) -> tuple[Path, ...]:
    """The files that a saved folder lists as "_data_files" or "_indices_data_files", of which there may be none."""
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        listed = state[which] if which == "_data_files" else state.get(which) or ()
        return tuple(folder / Path(file["filename"]).name for file in listed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"cannot read {folder / _STATE}: {error!r}") from error


def _indices(path: Path) -> list[int]:
    import pyarrow as pa

    try:
        return [int(row) for row in read_arrow(path).column("indices").to_pylist()]
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise DatasetError(f"cannot read the indices in {path}: {error}") from error


def _loose_files(root: Path, split: str) -> tuple[Path, ...]:
    """A split's Parquet files, or where there are none its files in `load_dataset`'s cache."""
    if files_ending(root, ".parquet"):
        return files_of_split(root, split, ".parquet")
    # what `map` and `filter` leave beside a data set is no part of it
    files = [path for path in files_ending(root, ".arrow") if not path.name.startswith("cache-")]
    if not files:
        raise DatasetError(f"{root} holds no .parquet files, and no .arrow files that load_dataset leaves")
    folders = sorted({path.parent for path in files if (path.parent / _INFO).is_file()})
    if saved := [folder for folder in folders if (folder / _STATE).is_file()]:
        raise DatasetError(f"save_to_disk wrote {saved[0]}: give that folder, or the one that holds its splits")
    if len(folders) > 1:
        raise DatasetError(f"{root} holds several data sets, give the folder of one: {', '.join(map(str, folders))}")
    return of_split(files, root, split)


def _check_count(files: Sequence[Path], split: str, num_rows: int) -> None:
    """Refuse `load_dataset`'s files where their rows are not as many as it wrote down."""
    path = files[0].parent / _INFO
    if files[0].suffix.lower() != ".arrow" or not path.is_file():
        return
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
        counts = {name: facts["num_examples"] for name, facts in (told.get("splits") or {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"cannot read {path}: {error!r}") from error
    for word in SPLIT_WORDS[split]:
        if word in counts and counts[word] != num_rows:
            raise DatasetError(f"{path} tells of {counts[word]} rows in {word}, the files beside it hold {num_rows}")
