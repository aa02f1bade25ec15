"""Tables with a column of images, as Arrow and Parquet files hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sak_core.datasets.shards import locate
from sak_core.errors import DatasetError, SeveralInputs
from sak_core.images import file_size

_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
"""What an Arrow stream closes with: without it, a file that was cut between two batches reads as a shorter one."""


class ArrowTable:
    """The image column of one Arrow file, stream or random access, mapped into memory.

    Args:
        column: see `image_column`.

    Raises:
        DatasetError: there is no such column or more than one, or the file is not whole.
        OSError, pyarrow.ArrowException: it cannot be read.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        table = read_arrow(path)
        self.num_rows: int = table.num_rows
        self._column: Any = table.column(image_column(path, table.schema, column))

    def sizes(self) -> list[int]:
        """Bytes of each image, of its file where it lies outside, 0 where there is none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        content, is_struct = self._column, pa.types.is_struct(self._column.type)
        if is_struct:
            content = pc.struct_field(content, "bytes")
        sizes = pc.binary_length(content.cast(pa.large_binary())).to_pylist()
        return [_outer_size(self.image(row)) if size is None else size for row, size in enumerate(sizes)]

    def image(self, row: int) -> Any:
        """{"bytes", "path"} of a row, or its bytes."""
        return self._column[row].as_py()


class ParquetTable(ArrowTable):
    """The image column of one Parquet file; the row group that was read last is kept.

    Args:
        column: see `image_column`.

    Raises:
        DatasetError: there is no such column or more than one.
        OSError, pyarrow.ArrowException: it cannot be read.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        import pyarrow.parquet as pq

        self._file: Any = pq.ParquetFile(path)
        self._name = image_column(path, self._file.schema_arrow, column)
        self.num_rows = self._file.metadata.num_rows
        self._size = path.stat().st_size
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = [sum(counts[:i]) for i in range(len(counts))]
        self._kept: tuple[int, Any] = (-1, None)

    def sizes(self) -> list[int]:
        """The file's size, once a row: its images would all have to be unpacked for their own."""
        return [self._size] * self.num_rows

    def image(self, row: int) -> Any:
        """{"bytes", "path"} of a row, or its bytes."""
        group, row = locate(row, self._starts)
        if self._kept[0] != group:
            self._kept = group, self._file.read_row_group(group, columns=[self._name]).column(self._name)
        return self._kept[1][row].as_py()


def open_table(path: Path, column: str | None = None) -> ArrowTable:
    """The image column of a `.parquet` or Arrow file.

    Args:
        column: see `image_column`.

    Raises:
        DatasetError: it is not readable or not whole, has no such column, or pyarrow is missing.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DatasetError("Hugging Face datasets are read with pyarrow: pip install pyarrow") from error
    try:
        return ParquetTable(path, column) if path.suffix.lower() == ".parquet" else ArrowTable(path, column)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error


def read_arrow(path: Path) -> Any:
    """A whole Arrow file as a table.

    Raises:
        DatasetError: it is not whole.
        OSError, pyarrow.ArrowException: it cannot be read.
    """
    import pyarrow as pa

    source = pa.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        return pa.ipc.open_file(source).read_all()
    source.seek(0)
    table = pa.ipc.open_stream(source).read_all()
    end, size = source.tell(), source.size()
    if end < size:
        raise DatasetError(f"cannot read {path}: {size - end} bytes follow the end of its stream at byte {end}")
    source.seek(max(size - len(_STREAM_END), 0))
    if source.read() != _STREAM_END:
        raise DatasetError(
            f"cannot read {path}: it stops at byte {size} without a stream's end, so rows may be missing"
        )
    return table


def image_column(path: Path, schema: Any, asked: str | None = None) -> str:
    """Name of the column that holds the images: the one that is asked for, or the only one, or "image".

    Which ones do is told by the features that `datasets` writes into the schema, else by types: {"bytes", "path"}, else
    plain bytes.

    Raises:
        DatasetError: there is no such column, or more than one.
    """
    if asked is not None:
        if asked in schema.names and _holds_bytes(schema.field(asked).type):
            return asked
        raise DatasetError(f"{path} has no column of images {asked!r}; {_columns(schema)}")
    names = _image_columns(schema)
    if len(names) == 1 or "image" in names:
        return "image" if "image" in names else names[0]
    if names:
        raise SeveralInputs(f"{path} has several columns of images: {', '.join(names)}")
    raise DatasetError(f"{path} has no column of images; {_columns(schema)}")


def _image_columns(schema: Any) -> list[str]:
    import pyarrow as pa

    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = written.get("info", {}).get("features", {})
    if names := [str(name) for name, feature in features.items() if _is_image(feature)]:
        return names
    holding = [column for column in schema if _holds_bytes(column.type)]
    structs = [str(column.name) for column in holding if pa.types.is_struct(column.type)]
    return structs or [str(column.name) for column in holding]


def _is_image(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "Image"


def _holds_bytes(kind: Any) -> bool:
    """Whether values are bytes, or {"bytes": ...}."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or kind == pa.binary_view())


def _columns(schema: Any) -> str:
    return "columns: " + ", ".join(f"{column.name} ({column.type})" for column in schema)


def outer_file(value: Any) -> Path | None:
    """The file that a row's image lies in, where the row names one in place of holding it; None for relative paths, of
    which no one states where they begin.
    """
    path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else None
    return Path(path) if path and Path(path).is_absolute() else None


def _outer_size(value: Any) -> int:
    path = outer_file(value)
    return file_size(path) if path else 0
