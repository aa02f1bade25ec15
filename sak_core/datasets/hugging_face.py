"""Hugging Face datasets on disk, without labels: folders that `save_to_disk` wrote, or Parquet files.

Needs pyarrow, not the `datasets` library; nothing is downloaded and no code of the dataset runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sak_core.datasets.folder import check_root
from sak_core.datasets.published import Stage1Images
from sak_core.datasets.shards import SPLIT_WORDS, files_of_split, locate
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.images import decode_image
from sak_core.interfaces.dataset import Sample


@dataclass(frozen=True)
class HuggingFaceFolder(Stage1Images):
    """One split of a dataset on disk; ids are row numbers.

    Args:
        root: what `save_to_disk` wrote (of one split or of several), or a folder of Parquet files whose paths
            name their splits. split: "train" (in stage 1's views), "val" or "test" (whole).

    Raises:
        DatasetError: no such split, no column of images or several of which none is called "image", files that
            cannot be read, or pyarrow missing.
    """

    root: Path
    split: str
    _files: tuple[Path, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_root(self.root)
        saved = _saved_folder(self.root, self.split)
        files = _saved_files(saved) if saved else files_of_split(self.root, self.split, ".parquet")
        object.__setattr__(self, "_files", files)
        if not self.ids:
            raise DatasetError(f"{saved or self.root} has no rows")

    def __reduce__(self) -> tuple[type[HuggingFaceFolder], tuple[Path, str]]:
        # open tables do not travel to worker processes
        return type(self), (self.root, self.split)

    @property
    def name(self) -> str:
        """The dataset's name."""
        return "hugging_face"

    @cached_property
    def ids(self) -> Sequence[str]:
        """Row numbers as nine digits."""
        return [f"{row:09d}" for row in range(sum(table.num_rows for table in self._tables))]

    @cached_property
    def fingerprints(self) -> Sequence[int]:
        """Bytes of each image; for Parquet, whose images would all have to be unpacked, of its file."""
        return [size for table in self._tables for size in table.sizes()]

    @property
    def archives(self) -> Sequence[Path]:
        """The Parquet or Arrow files."""
        return self._files

    def load(self, index: int) -> Sample:
        """Decode one image; raises UnreadableSample naming file and row."""
        file, row = locate(index, self._starts)
        where = f"{self._files[file]} row {row}"
        value = self._tables[file].image(row)
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            path = value.get("path") if isinstance(value, dict) else None
            raise UnreadableSample(where, f"has no image in it (path: {path}); save it with images embedded")
        return Sample(decode_image(content, where))

    @cached_property
    def _tables(self) -> list[_Table]:
        return [_open_table(path) for path in self._files]

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for table in self._tables[:-1]:
            starts.append(starts[-1] + table.num_rows)
        return starts


class _Table:
    """The image column of one Arrow file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        self.num_rows: int = table.num_rows
        self._column: Any = table.column(image_column(path, table.schema))

    def sizes(self) -> list[int]:
        """Bytes of each image, 0 where there is none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self._column
        content = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        return [size or 0 for size in pc.binary_length(content).to_pylist()]

    def image(self, row: int) -> Any:
        """{"bytes", "path"} of a row, or its bytes."""
        return self._column[row].as_py()


class _ParquetTable(_Table):
    """The image column of one Parquet file; the row group that was read last is kept."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._file: Any = pq.ParquetFile(path)
        self._name = image_column(path, self._file.schema_arrow)
        self.num_rows = self._file.metadata.num_rows
        self._size = path.stat().st_size
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = [sum(counts[:i]) for i in range(len(counts))]
        self._kept: tuple[int, Any] = (-1, None)

    def sizes(self) -> list[int]:
        """The file's size, once a row."""
        return [self._size] * self.num_rows

    def image(self, row: int) -> Any:
        """{"bytes", "path"} of a row, or its bytes."""
        group, row = locate(row, self._starts)
        if self._kept[0] != group:
            self._kept = group, self._file.read_row_group(group, columns=[self._name]).column(self._name)
        return self._kept[1][row].as_py()


def _open_table(path: Path) -> _Table:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DatasetError("Hugging Face datasets are read with pyarrow: pip install pyarrow") from error
    try:
        return _ParquetTable(path) if path.suffix.lower() == ".parquet" else _Table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error


def image_column(path: Path, schema: Any) -> str:
    """Name of the column that holds the images, by the features that `datasets` writes into the schema, or by
    its type. Raises DatasetError where that is none or not one.
    """
    import pyarrow as pa

    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = written.get("info", {}).get("features", {})
    names = [name for name, feature in features.items() if _is_image(feature)]
    if not features:
        names = [
            column.name
            for column in schema
            if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        ]
    if len(names) == 1 or "image" in names:
        return "image" if "image" in names else str(names[0])
    found = f"several columns of images: {', '.join(names)}" if names else "no column of images"
    raise DatasetError(f"{path} has {found}; columns: {', '.join(schema.names)}")


def _is_image(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "Image"


def _saved_folder(root: Path, split: str) -> Path | None:
    """The folder that `save_to_disk` wrote for `split`, or None if `root` is of another kind."""
    if (root / "state.json").is_file():
        return root
    if not (root / "dataset_dict.json").is_file():
        return None
    for word in SPLIT_WORDS[split]:
        if (root / word / "state.json").is_file():
            return root / word
    there = sorted(path.parent.name for path in root.glob("*/state.json"))
    raise DatasetError(f"{root} has splits {', '.join(there)}, none for {split!r}")


def _saved_files(folder: Path) -> tuple[Path, ...]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return tuple(folder / Path(file["filename"]).name for file in state["_data_files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"cannot read {folder / 'state.json'}: {error!r}") from error
