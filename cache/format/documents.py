"""What the JSON files of a store may say: their types, and bounds on what a reader believes. A store may come from
anyone, so all else is refused before memory is taken for it or a file opened that it names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from cache.errors import CacheError, CorruptFile
from sak_common.names import UnknownName

Kind = TypeVar("Kind")
Model = TypeVar("Model", bound=BaseModel)

MOST_METADATA_BYTES = 16 << 20
"""Of ``zarr.json``, ``metadata.json`` and ``calibration.json``."""
MOST_ENTRIES_BYTES = 1 << 30
"""Of a view's committed shards: some 70 bytes an array and shard."""
MOST_DEPTH = 64
"""Of values within values."""
MOST_VIEWS = 4096
MOST_SAMPLES = 1 << 27
MOST_SHARDS = 1 << 22
"""Of a view."""
MOST_ROWS_PER_SHARD = 1 << 16
MOST_ROW_BYTES = 1 << 28
"""Of one row of one array, decoded; of arrays in layout *chunks*, of a whole chunk."""
MOST_SHARD_BYTES = 1 << 34
"""Of one shard's file, which a copy holds whole."""
MOST_TABLE_BYTES = 1 << 30
"""Of one array of a calibration."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Count = Annotated[int, Field(ge=0, le=1 << 62)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Document(BaseModel):
    """What a JSON file, or a part of one, must be; members that it does not name are left out."""

    model_config = ConfigDict(strict=True, frozen=True)


class FileDocument(Document):
    """A committed file."""

    bytes: Count
    sha256: Sha256


class ArrayDocument(Document):
    """An array's layout, see `cache.format.layout.ArraySpec`."""

    dtype: str
    row_shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST_ROW_BYTES)]], Field(max_length=8)]
    dims: list[str]
    has_views: bool
    sharded: bool
    fill_value: int | float | str
    coder: str | None = None


class MetadataDocument(Document):
    """``metadata.json`` of a part."""

    num_views: Annotated[int, Field(ge=0, le=MOST_VIEWS)]
    num_samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
    rows_per_shard: Annotated[int, Field(ge=1, le=MOST_ROWS_PER_SHARD)]
    arrays: dict[str, ArrayDocument]
    files: dict[str, FileDocument]
    groups: dict[str, dict[str, Any]] = {}


class AttributesDocument(Document):
    """Attributes of a group's ``zarr.json``: this project's are one of them."""

    sak: dict[str, Any]


class GroupDocument(Document):
    """A group's ``zarr.json``."""

    attributes: AttributesDocument


class TeacherDocument(Document):
    """This project's attributes of a teacher's group."""

    provenance: dict[str, Any]
    levels: Annotated[list[dict[str, Any]], Field(max_length=1024)]


class TableDocument(Document):
    """``zarr.json`` of an array of a calibration."""

    shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST_TABLE_BYTES)]], Field(min_length=1, max_length=2)]
    data_type: Literal["float16", "float32", "float64"]


class CalibrationDocument(Document):
    """``calibration.json`` of a teacher."""

    files: dict[str, FileDocument]


class ColumnsDocument(Document):
    """An array's files, a shard each."""

    bytes: list[Count]
    sha256: list[Sha256]


class EntriesDocument(Document):
    """The committed shards of a view."""

    shards: list[Count]
    files: dict[str, ColumnsDocument]
    invalid: dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,12}$")], str]
    clipped: dict[str, list[Count]]


def parse_json(raw: bytes, path: object) -> Any:
    """The value of a JSON file; `path` is named in errors.

    Raises:
        CorruptFile: it is no JSON, holds NaN or half of a character, or values within values within values.
    """
    try:
        if _SURROGATE.search(raw):
            raise ValueError("it holds half of a character")
        value = json.loads(raw, parse_constant=_refuse)
        _check_depth(value, MOST_DEPTH)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(path, f"it cannot be read as JSON: {error}") from error
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, dict | list):
        return
    if not left:
        raise ValueError(f"it holds more than {MOST_DEPTH} values within each other")
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            _check_depth(item, left - 1)


def checked(kind: type[Model], plain: Any, path: object) -> Model:
    """`plain` as a document of that kind.

    Raises:
        CorruptFile: it is none; names the first member that is missing, of another type or out of bounds.
    """
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise CorruptFile(path, first_fault(error)) from None


adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
"""Made once for a class."""


def built(kind: type[Kind], plain: Any, path: object, what: str) -> Kind:
    """A dataclass from its JSON value, of exactly its fields and their types; `what` it is of is named in errors.

    Raises:
        CorruptFile: a field is unknown, missing, of another type or refused by the class itself.
    """
    known = kind.__dataclass_fields__  # type: ignore[attr-defined]
    if isinstance(plain, Mapping) and (unknown := sorted(set(plain) - set(known))):
        raise CorruptFile(path, f"{what} has an unknown {unknown[0]!r}")
    try:
        made: Kind = adapter(kind).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise CorruptFile(path, f"{what}: {first_fault(error)}") from None
    return made


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, in words."""
    first = error.errors(include_url=False, include_context=False)[0]
    member = ".".join(str(part) for part in first["loc"])
    value = repr(first["input"])
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{member + ': ' if member else ''}{first['msg'].removeprefix('Value error, ')} (it is {shown})"


@contextmanager
def refused_as(path: object) -> Iterator[None]:
    """What a reader finds wrong in values of the file at `path`, as a damaged file of that name.

    Raises:
        CorruptFile: in place of any other error of this package, and of an unknown name.
    """
    try:
        yield
    except CorruptFile:
        raise
    except (CacheError, UnknownName) as error:
        raise CorruptFile(path, str(error)) from error


def check_below(path: object, names: Sequence[str], folders: Sequence[str]) -> None:
    """That files which the manifest file at `path` names lie in `folders` below its store; a stranger's need not.

    Args:
        folders: each ending in a slash; "" is the store's own.

    Raises:
        CorruptFile: one does not, and would be read, or written by a copy, elsewhere; or two would be one file where
            names in capitals are no others.
    """
    for name in names:
        if not all(NAME.fullmatch(part) for part in name.split("/")):
            raise CorruptFile(path, f"it names {name!r}, which is not below the store")
        if not any(name.startswith(folder) for folder in folders):
            raise CorruptFile(path, f"it names {name!r}, which is not of this part")
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(name.casefold(), name)) is not name and other != name:
            raise CorruptFile(path, f"it names {other!r} and {name!r}, which are one file on many machines")
