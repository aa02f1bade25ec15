"""What makes a store: facts that fix its bytes, written into it and compared when it is met again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import BadInput
from cache.format.documents import NAME, built
from cache.places.files import canonical_json

FORMAT_VERSION = 1

GRID_FORMAT_VERSION = 2
"""Of a calibration by which some level is transformed over its grid: who knows format 1 alone must not read on."""

IGNORE = 255
"""Value of a label that counts for nothing, in every dtype."""


def check_name(what: str, name: str) -> str:
    """`name`, if it can name a folder everywhere: letters, digits, ``_ . -``, not starting with a sign.

    Raises:
        BadInput: it cannot; names `what` it is of.
    """
    if not NAME.fullmatch(name):
        raise BadInput(f"{what} {name!r} cannot name a folder: use letters, digits, '_', '.' and '-'")
    return name


@dataclass(frozen=True)
class LabelSpec:
    """How one task's labels are stored: exact values, 255 where there is none.

    Attributes:
        dtype: ``uint8`` or ``float32``.
        channels: 0 for labels of shape (H, W), else c for (H, W, c).
        kind, classes: what the method makes of them; carried along, not interpreted here.
    """

    dtype: str
    channels: int = 0
    kind: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in ("uint8", "float32"):
            raise BadInput(f"label dtype {self.dtype!r}: only uint8 and float32 are stored")
        object.__setattr__(self, "classes", tuple(self.classes))


class CutIntoShards:
    """Samples, `rows_per_shard` of which share a file."""

    num_samples: int
    rows_per_shard: int

    @property
    def num_shards(self) -> int:
        """Shards a view is cut into."""
        return -(-self.num_samples // self.rows_per_shard)

    def rows(self, shard: int) -> range:
        """The samples that shard `shard` of any view holds."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.num_samples))


@dataclass(frozen=True)
class SourceSpec(CutIntoShards):
    """The source part of a store: which samples, seen how.

    Attributes:
        dataset, split: names; they are part of the store's own name.
        size: (H, W) of every view, px.
        policy: the view policy as JSON-able dict.
        seed: of the views.
        num_samples: N.
        samples_digest: of ids and file sizes, see `samples_digest`.
        labels: task -> how its labels are stored; empty for unlabelled splits.
        rows_per_shard: samples that share a file.
        fill: RGB value (uint8) of padding and of unreadable images.
        id_width: bytes of the longest sample id in UTF-8, see `id_width`.
        dataset_info: versions and options of what made the pixels, JSON-able.
    """

    dataset: str
    split: str
    size: tuple[int, int]
    policy: Mapping[str, Any]
    seed: int
    num_samples: int
    samples_digest: str
    labels: Mapping[str, LabelSpec] = field(default_factory=dict)
    rows_per_shard: int = 64
    fill: tuple[int, int, int] = (0, 0, 0)
    id_width: int = 64
    dataset_info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("dataset", self.dataset)
        check_name("split", self.split)
        for task in self.labels:
            check_name("task", task)
        object.__setattr__(self, "size", tuple(int(side) for side in self.size))
        fill = self.fill if isinstance(self.fill, Sequence) else (self.fill,) * 3
        object.__setattr__(self, "fill", tuple(int(value) for value in fill))
        if len(self.fill) != 3 or not all(0 <= value <= 255 for value in self.fill):
            raise BadInput(f"fill {self.fill}: three values of 0..255 are needed")
        if len(self.size) != 2 or min(self.size) < 1:
            raise BadInput(f"size {self.size}: (H, W) of at least one pixel each is needed")
        for name in ("num_samples", "rows_per_shard", "id_width"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} {getattr(self, name)}: at least 1 is needed")

    @property
    def digest(self) -> str:
        """16 hex digits of what decides a store's rows: samples, policy, seed, size (not how many views)."""
        decides = {
            name: _plain(getattr(self, name))
            for name in ("dataset", "split", "size", "policy", "seed", "num_samples", "samples_digest")
        }
        return hashlib.sha256(canonical_json(decides)).hexdigest()[:16]

    @property
    def store_name(self) -> str:
        """Folder name of the store: ``<dataset>-<split>-<HxW>-<digest>.zarr``."""
        height, width = self.size
        return f"{self.dataset}-{self.split}-{height}x{width}-{self.digest}.zarr"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        plain["labels"] = {task: _plain(asdict(label)) for task, label in self.labels.items()}
        return plain

    @classmethod
    def from_dict(cls, plain: Any, path: object = "a spec") -> SourceSpec:
        """The inverse of `to_dict`, of what anyone may have written; `path` of the file is named in errors.

        Raises:
            CorruptFile: it is no spec, or one that no reader believes.
        """
        if isinstance(plain, dict) and isinstance(fill := plain.get("fill"), int):  # as older stores have it
            plain = {**plain, "fill": [fill] * 3}
        return built(cls, plain, path, "the spec")


@dataclass(frozen=True)
class LevelSpec:
    """One level of a teacher as stored.

    Attributes:
        level: its number, 0 = shallowest.
        grid: (h, w) cells that cover the view exactly.
        width: C, channels.
        codec: name of the codec.
        prefix: true for the level's class and register tokens, kept beside its map; ``grid`` is then (1, P).
        fidelity: token cosine that is promised, plain and centred; None for what the codec promises by itself.
        predicts_from: number of the lower level whose decoded features this one is coded against, or None.
        standardized: whether the cosine is promised of standardized channels, too (see `cache.codecs.fidelity`).
    """

    level: int
    grid: tuple[int, int]
    width: int
    codec: str
    prefix: bool = False
    fidelity: float | None = None
    predicts_from: int | None = None
    standardized: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(int(side) for side in self.grid))
        if self.fidelity is not None and not 0 < self.fidelity < 1:
            raise BadInput(f"fidelity {self.fidelity} is no cosine between 0 and 1, such as 0.995")
        if self.level < 0 or self.width < 1 or len(self.grid) != 2 or min(self.grid) < 1:
            raise BadInput(f"level {self.level} with grid {self.grid} and width {self.width} is no level")

    @property
    def array(self) -> str:
        """Name of its array inside the teacher's group."""
        return f"level_{self.level}_prefix" if self.prefix else f"level_{self.level}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; what is as by default is left out."""
        plain: dict[str, Any] = {"level": self.level, "grid": list(self.grid), "width": self.width, "codec": self.codec}
        plain |= {"prefix": True} if self.prefix else {}
        plain |= {} if self.fidelity is None else {"fidelity": self.fidelity}
        plain |= {} if self.predicts_from is None else {"predicts_from": self.predicts_from}
        plain |= {"standardized": True} if self.standardized else {}
        return plain


def _plain(value: Any) -> Any:
    """`value` as JSON would give it back (tuples become lists)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def to_plain(what: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `value` as JSON would give it back.

    Raises:
        BadInput: it holds something that JSON cannot (NaN included), naming `what`.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(_plain(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{what} must be plain JSON values: {error}") from error
    return plain


def deciding(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance without its `notes`: what one wants to know of the making, but no byte depends on."""
    return {key: value for key, value in provenance.items() if key != "notes"}


def samples_digest(ids: Sequence[str], fingerprints: Sequence[int]) -> str:
    """SHA-256 (hex) of the sample ids, in order, with a number for each (a file's size, or 0)."""
    sha = hashlib.sha256()
    for name, fingerprint in zip(ids, fingerprints, strict=True):
        sha.update(canonical_json([name, int(fingerprint)]))
    return sha.hexdigest()


def id_width(ids: Sequence[str]) -> int:
    """Bytes of the longest id in UTF-8, at least 1."""
    return max((len(name.encode()) for name in ids), default=1) or 1


def encode_ids(ids: Sequence[str], width: int) -> npt.NDArray[np.uint8]:
    """Ids as uint8 (n, width): UTF-8, padded with zeros.

    Raises:
        BadInput: an id is longer than `width` bytes or holds a zero character.
    """
    out = np.zeros((len(ids), width), np.uint8)
    for row, name in enumerate(ids):
        raw = name.encode()
        if len(raw) > width or b"\0" in raw:
            raise BadInput(f"sample id {name!r} takes {len(raw)} bytes; the store's id_width is {width}")
        out[row, : len(raw)] = np.frombuffer(raw, np.uint8)
    return out


def decode_ids(table: npt.NDArray[np.uint8]) -> list[str]:
    """The inverse of `encode_ids`: uint8 (n, width) -> n strings.

    Raises:
        BadInput: one is not UTF-8.
    """
    try:
        return [row.tobytes().rstrip(b"\0").decode() for row in table]
    except UnicodeDecodeError as error:
        raise BadInput(f"a sample's id is no text: {error}") from error
