"""A reader of stores as a stranger would write it from docs/cache-format.md: numpy and the standard library alone."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, a byte at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


def checked(data: bytes) -> bytes:
    """Data without the checksum that follows it."""
    if crc32c(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ValueError("damaged")
    return data[:-4]


def manifest_file(path: Path) -> dict[str, Any]:
    """A file of the manifest; its digest is that of the same file without the member."""
    document: dict[str, Any] = json.loads(path.read_bytes())
    digest = document.pop("digest")
    plain = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    if hashlib.sha256(plain.encode()).hexdigest() != digest:
        raise ValueError(f"{path} is damaged")
    return document


class Stranger:
    """Reads rows of one array of a part ("source" or "teachers/<name>") of a store."""

    def __init__(self, store: Path, part: str, array: str) -> None:
        self.store, self.part, self.array = store, part, array
        meta = json.loads((store / array / "zarr.json").read_text())
        self.shape, self.names = meta["shape"], meta["dimension_names"]
        self.per_shard = meta["chunk_grid"]["configuration"]["chunk_shape"][self.names.index("sample")]
        self.is_sharded = meta["codecs"][0]["name"] == "sharding_indexed"
        self.dtype = np.dtype(meta["data_type"]).newbyteorder("<")
        self.row_shape = self.shape[self.names.index("sample") + 1 :]

    def is_there(self, shard: int, view: int) -> bool:
        """Whether a shard has an entry, of its own or in its view's."""
        folder = self.store / "manifest" / self.part
        single, whole = folder / f"view_{view:04d}/shard_{shard:06d}.json", folder / f"view_{view:04d}.json"
        return any(shard in manifest_file(path)["shards"] for path in (single, whole) if path.exists())

    def row(self, sample: int, view: int = 0) -> np.ndarray:
        """One row as stored; `LookupError` where it is not committed."""
        shard, place = divmod(sample, self.per_shard)
        if not self.is_there(shard, view):
            raise LookupError(f"sample {sample}, view {view} is not committed")
        grid = ([view] if self.names[0] == "view" else []) + [shard] + [0] * len(self.row_shape)
        data = (self.store / self.array / ("c." + ".".join(map(str, grid)))).read_bytes()
        if not self.is_sharded:
            rows = np.frombuffer(checked(data), self.dtype).reshape(self.per_shard, *self.row_shape)
            return rows[place]
        index = np.frombuffer(checked(data[-16 * self.per_shard - 4 :]), "<u8").reshape(self.per_shard, 2)
        start, num_bytes = map(int, index[place])
        return np.frombuffer(checked(data[start : start + num_bytes]), self.dtype).reshape(self.row_shape)

    def features(self, sample: int, view: int = 0) -> np.ndarray:
        """One row of a teacher's level in one of the raw codecs, decoded to float32."""
        stored, (_, teacher, level) = self.row(sample, view), self.array.split("/")
        group = json.loads((self.store / "teachers" / teacher / "zarr.json").read_text())
        specs = {f"level_{spec['level']}": spec for spec in group["attributes"]["sak"]["levels"]}
        codec = specs[level]["codec"]
        if codec == "bf16":
            return (stored.astype("<u4") << 16).view("<f4")
        if codec != "int8":
            return stored.astype("<f4")
        folder = self.store / "teachers" / teacher / "calibration" / level
        low, high = (np.frombuffer(checked((folder / name / "c.0").read_bytes()), "<f4") for name in ("min", "max"))
        step = ((high - low.astype("f8")) / 255).astype("f4")
        offset = (low + 128 * step.astype("f8")).astype("f4")
        return stored * np.where(step > 0, step, np.float32(1)) + np.where(step > 0, offset, low)
