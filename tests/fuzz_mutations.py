"""Seeded mutations of a small store: damage that its digests still tell of, and what a stranger would write.

A *damaged* store has other bytes than its manifest says. A *stranger's* one has been changed by somebody who made
every checksum, digest and seal on the way hold again: of its numbers nobody can know better, but a reader must not be
led out of the store, nor into memory without bound, nor to a traceback.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc

from cache.format.checksums import crc_suffix
from cache.format.manifest import PartManifest
from cache.places.files import digest_of, readable_json

UNDIGESTED = ("log.jsonl", "lock", "manifest/source/files")
HUGE = (2**31, 2**40, 2**62, 2**63, 2**64, 10**30)
VALUES: tuple[Any, ...] = (
    *HUGE, -1, 0, 1, 3, 4096, 1.5, 1e300, True, None, "", "x", "../../outside", "/etc/passwd", "a\0b", "a" * 5000,
    "\ud800", "int4", "klt", "float64", "object", [], {}, [1], [[1, 2]], [2**62, 2**62], {"a": 1},
)  # fmt: skip
NAMES = ("../../outside", "/tmp/outside", "pixels", "Pixels", "a//b", "a\nb", "", ".", "x" * 300, "manifest/zarr.json")


@dataclass
class Mutation:
    """A store that was changed.

    Attributes:
        kind: of change, for tables.
        what: was changed, in words.
        is_damage: some digest does not hold any more.
        keeps_checksums: crc32c and sizes hold, so that only SHA-256 can tell.
        aside: what lies elsewhere meanwhile: path -> where.
    """

    kind: str
    what: str
    is_damage: bool = True
    keeps_checksums: bool = False
    aside: dict[Path, Path] = field(default_factory=dict)


class Mutator:
    """Changes one store again and again, and puts it right in between.

    store: its folder. outside: a folder beside it that no reader may look into.
    """

    def __init__(self, store: Path, outside: Path, seed: int) -> None:
        self.store, self.outside, self.draw = store, outside, random.Random(seed)
        self.intact = {name: (store / name).read_bytes() for name in self._names()}
        self.digested = [name for name in self.intact if not name.endswith(UNDIGESTED)]
        recorded = [name for name in self.digested if not name.startswith("manifest/") or name == "manifest/zarr.json"]
        self.sources = {name: self._recorder(name) for name in recorded}
        """File -> the manifest file that has its digest."""
        self._changed: set[str] = set()
        outside.mkdir(exist_ok=True)

    def _names(self) -> list[str]:
        return [p.relative_to(self.store).as_posix() for p in sorted(self.store.rglob("*")) if p.is_file()]

    def _recorder(self, name: str) -> str:
        """The manifest file that holds the digest of a file."""
        part = "/".join(name.split("/")[:2]) if name.startswith("teachers/") and name.count("/") > 1 else "source"
        if "/calibration/" in name or name.endswith("calibration/zarr.json"):
            return f"manifest/{part}/calibration.json"
        if name.endswith("zarr.json"):
            return f"manifest/{part}/metadata.json"
        array, numbers = name.rpartition("/c.")[::2]
        has_views = not array.startswith("samples/")
        return f"manifest/{part}/view_{int(numbers.split('.')[0]) if has_views else 0:04d}.json"

    # -- changing files -----------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> None:
        self._changed.add(name)
        (self.store / name).write_bytes(data)

    def document(self, name: str) -> Any:
        document = json.loads((self.store / name).read_bytes())
        if name not in self.sources:
            del document["digest"]
        return document

    def put_json(self, name: str, document: Any, text: bytes = b"") -> None:
        """A JSON file, or its `text`, whose digest holds, whatever it says."""
        text = text or json.dumps(document).encode()
        if name in self.sources:
            self.put_recorded(name, text)
        elif text[:1] == b"{" and len(text) > 2:
            self.put(name, b'{"digest":"' + hashlib.sha256(text).hexdigest().encode() + b'",' + text[1:])
        else:
            self.put(name, text)

    def put_recorded(self, name: str, data: bytes) -> None:
        """Bytes whose digest the manifest has, too."""
        self.put(name, data)
        recorder = self.sources[name]
        document, digest = self.document(recorder), digest_of([data])
        if "shards" in document:
            array, numbers = name.rpartition("/c.")[::2]
            shard = int(numbers.split(".")[0 if array.startswith("samples/") else 1])
            columns = document["files"][array]
            columns["bytes"][shard], columns["sha256"][shard] = digest.num_bytes, digest.sha256
        else:
            document["files"][name] = {"bytes": digest.num_bytes, "sha256": digest.sha256}
        self.put_json(recorder, document)

    def restore(self, mutation: Mutation) -> None:
        """The store as it was."""
        for path, aside in mutation.aside.items():
            remove(path)
            aside.rename(path)
        for name in self._changed:
            remove(self.store / name)
            (self.store / name).write_bytes(self.intact[name])
        self._changed.clear()

    # -- damage -------------------------------------------------------------------------------------

    def some_file(self, *ends: str) -> str:
        names = [name for name in self.digested if not ends or name.endswith(ends)]
        return self.draw.choice(names)

    def flip(self) -> Mutation:
        name = self.some_file()
        data = bytearray(self.intact[name])
        place = self.draw.randrange(len(data))
        data[place] ^= 1 << self.draw.randrange(8)
        self.put(name, bytes(data))
        return Mutation("flip", f"{name} at {place}")

    def garbage(self) -> Mutation:
        name = self.some_file()
        data = bytearray(self.intact[name])
        start = self.draw.randrange(len(data))
        run = self.draw.randbytes(min(self.draw.randrange(1, 64), len(data) - start))
        if data[start : start + len(run)] == run:
            return self.garbage()
        data[start : start + len(run)] = run
        self.put(name, bytes(data))
        return Mutation("garbage", f"{name} at {start}")

    def resized(self) -> Mutation:
        name = self.some_file()
        data = self.intact[name]
        cut = self.draw.choice([data[: self.draw.randrange(len(data))], b"", data + self.draw.randbytes(9)])
        self.put(name, cut)
        return Mutation("resized", f"{name} to {len(cut)}")

    def missing(self) -> Mutation:
        name = self.some_file()
        self._changed.add(name)
        (self.store / name).unlink()
        return Mutation("missing", name)

    def in_place_of_another(self) -> Mutation:
        """A whole file of the store under another's name: of equal size its checksums hold."""
        name = self.some_file()
        folder = [other for other in self.digested if Path(other).parent == Path(name).parent]
        other = self.draw.choice(folder if self.draw.random() < 0.8 else self.digested)
        if self.intact[other] == self.intact[name]:
            return self.flip()
        self.put(name, self.intact[other])
        return Mutation("in place of another", f"{other} as {name}", keeps_checksums="/c." in name)

    def sparse(self) -> Mutation:
        name = self.some_file()
        self._changed.add(name)
        with (self.store / name).open("wb") as file:
            file.truncate(1 << 40)
        return Mutation("a terabyte of nothing", name)

    def no_file(self) -> Mutation:
        name = self.some_file()
        self._changed.add(name)
        path = self.store / name
        path.unlink()
        self.draw.choice([os.mkfifo, Path.mkdir])(path)
        return Mutation("no file", name)

    def link(self) -> Mutation:
        """A file that is a link to its own bytes outside."""
        name = self.draw.choice(list(self.intact))
        self._changed.add(name)
        (self.outside / "file").write_bytes(self.intact[name])
        (self.store / name).unlink()
        (self.store / name).symlink_to(self.outside / "file")
        return Mutation("link", name, is_damage=not name.endswith(UNDIGESTED))

    def linked_folder(self) -> Mutation:
        folders = sorted({parent for name in self.intact for parent in Path(name).parents} - {Path()})
        folder = self.store / self.draw.choice(folders)
        aside = self.outside / "folder"
        folder.rename(aside)
        folder.symlink_to(aside)
        return Mutation("linked folder", str(folder.relative_to(self.store)), aside={folder: aside})

    def forged(self) -> Mutation:
        """A row with other numbers and its own checksum right."""
        name, data, rows = self._shard()
        row = self.draw.randrange(len(rows))
        start, size = rows[row]
        body = bytearray(data[start : start + size - 4])
        body[self.draw.randrange(len(body))] ^= 1 << self.draw.randrange(8)
        self.put(name, data[:start] + bytes(body) + crc_suffix(bytes(body)) + data[start + size :])
        return Mutation("forged row", f"{name} row {row}", keeps_checksums=True)

    # -- strangers ----------------------------------------------------------------------------------

    def _shard(self) -> tuple[str, bytes, list[tuple[int, int]]]:
        """A shard's file, its bytes, and where its rows lie."""
        arrays = [(part, a) for part in self._parts() for a in part.metadata.arrays.values() if a.sharded]
        part, array = self.draw.choice(arrays)
        per_shard, shard = part.metadata.rows_per_shard, self.draw.randrange(part.metadata.num_shards)
        name = array.file(self.draw.randrange(part.metadata.num_views), shard)
        data = self.intact[name]
        index = np.frombuffer(data[-16 * per_shard - 4 : -4], "<u8").reshape(-1, 2)
        return name, data, [(int(a), int(b)) for a, b in index[: len(part.metadata.rows(shard))]]

    def _parts(self) -> list[PartManifest]:
        teachers = sorted({name.split("/")[1] for name in self.intact if name.startswith("teachers/t")})
        return [PartManifest(self.store, part) for part in ("source", *(f"teachers/{name}" for name in teachers))]

    def told_otherwise(self) -> Mutation:
        """A JSON file with one value changed, removed, doubled or named otherwise; digests made to hold."""
        spoken = [name for name in self.digested if name.startswith("manifest/")] + [
            "zarr.json",
            "teachers/t/zarr.json",
        ]
        name = self.some_file(".json") if self.draw.random() < 0.3 else self.draw.choice(spoken)
        document = self.document(name)
        where: list[Any] = []
        parent, key, at = None, None, document
        while isinstance(at, dict | list) and at and (parent is None or self.draw.random() < 0.8):
            parent, key = at, self.draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = parent[key]
            where.append(key)
        how = self.draw.choice(["value", "value", "value", "gone", "twice", "named", "deep", "nan"])
        if how == "gone":
            del parent[key]
        elif how == "twice" and isinstance(parent, list):
            parent.append(at)
        elif how == "named" and isinstance(parent, dict):
            parent[self.draw.choice(NAMES)] = parent.pop(key)
        else:
            parent[key] = {"deep": "@", "nan": float("nan")}.get(how, self.draw.choice(VALUES))
        depth = self.draw.choice([70, 900, 100_000]) if how == "deep" else 0
        text = json.dumps(document).encode()
        self.put_json(name, document, text.replace(b'"@"', b"[" * depth + b"]" * depth) if depth else text)
        return Mutation("told otherwise", f"{name}: {where} {how} {str(parent)[:60]}", is_damage=False)

    def numbers_agreed(self) -> Mutation:
        """The same number changed wherever the store says it, so that all agrees."""
        key = self.draw.choice(["num_samples", "rows_per_shard", "num_views", "size", "id_width"])
        value: Any = self.draw.choice([*HUGE, 2**27, 2**16, 10_000, 7])
        for name in [name for name in self.digested if name.endswith(("metadata.json", "zarr.json"))]:
            document = self.document(name)
            found = _replaced(document, key, [value, value] if key == "size" else value)
            for array in document.get("arrays", {}).values() if key == "size" else ():
                array["row_shape"] = [
                    value if dim in ("y", "x") else n for dim, n in zip(array["dims"], array["row_shape"], strict=False)
                ]
            if found or "arrays" in document:
                self.put_json(name, document)
        return Mutation("numbers agreed", f"{key} = {value}", is_damage=False)

    def table(self) -> Mutation:
        """A calibration's table with NaN, another shape or type, or more bytes."""
        names = [name for name in self.digested if "/calibration/" in name and "/c.0" in name]
        name = self.draw.choice(names)
        described = f"{name.rpartition('/')[0]}/zarr.json"
        data, document = self.intact[name][:-4], self.document(described)
        how = self.draw.choice(["nan", "shape", "type", "bytes", "zeros", "gone"])
        if how == "nan":
            size = np.dtype(document["data_type"]).itemsize
            place = self.draw.randrange(len(data) // size) * size
            bad = np.array([self.draw.choice([np.nan, np.inf])], document["data_type"]).tobytes()
            data = data[:place] + bad + data[place + size :]
        elif how == "shape":
            shape = self.draw.choice([[2**40], [2**31, 2**31], [1], [0], [-1], [len(data)], [1, 1, 1]])
            document["shape"] = shape
        elif how == "type":
            document["data_type"] = self.draw.choice(["float64", "float16", "object", "S1", "V9", "float32"])
        elif how == "bytes":
            data = data * 3
        elif how == "zeros":
            data = bytes(len(data))
        self.put_recorded(name, data + crc_suffix(data))
        self.put_recorded(described, readable_json(document))
        if how == "gone":
            recorder = self.sources[name]
            record = self.document(recorder)
            del record["files"][self.draw.choice([name, described])]
            self.put_json(recorder, record)
        return Mutation("table", f"{name} {how}", is_damage=False)

    def index(self) -> Mutation:
        """A shard's index that leads elsewhere."""
        name, data, rows = self._shard()
        part = next(part for part in self._parts() if self.sources[name].startswith(part.folder))
        per_shard = part.metadata.rows_per_shard
        table = bytearray(data[-16 * per_shard - 4 : -4])
        hostile = [2**64 - 1, 2**63, 2**62, 2**32, len(data), 0, 1, 5]
        struct.pack_into("<Q", table, 8 * self.draw.randrange(2 * len(rows)), self.draw.choice(hostile))
        self.put_recorded(name, data[: -16 * per_shard - 4] + bytes(table) + crc_suffix(bytes(table)))
        return Mutation("index", name, is_damage=False)

    def coded(self) -> Mutation:
        """A row whose bytes a decoder must not believe; its checksum, the index and the digests hold."""
        name, data, rows = self._shard()
        row = self.draw.randrange(len(rows))
        start, size = rows[row]
        body = bytearray(data[start : start + size - 4])
        how = self.draw.choice(["header", "header", "noise", "bomb", "flip"])
        if how == "header" and len(body) >= 16:
            struct.pack_into(
                "<I", body, self.draw.choice([0, 4, 8, 12]), self.draw.choice([0, 1, 2**31 - 1, 2**32 - 1])
            )
        elif how == "bomb":
            bomb = blosc.compress(np.zeros(1 << 22, np.uint16), b"zstd", 9, blosc.BITSHUFFLE, 0)
            body[:] = (bomb + bytes(len(body)))[: len(body)]
        elif how == "noise":
            body[:] = self.draw.randbytes(len(body))
        else:
            body[self.draw.randrange(len(body))] ^= 1 << self.draw.randrange(8)
        self.put_recorded(name, data[:start] + bytes(body) + crc_suffix(bytes(body)) + data[start + size :])
        return Mutation("coded", f"{name} row {row} {how}", is_damage=False)

    def log(self) -> Mutation:
        """Lines of the log, which no digest covers."""
        name = next(name for name in self.intact if name.endswith("log.jsonl"))
        lines = [b"[1]", b"7", b"null", b"{", b"[" * 100_000, b'{"stage":"stored fidelity","teacher":"t"}', b"\xff\xfe"]
        lines += [b'{"stage":"stored fidelity","teacher":"t","rows":"x","levels":{"level_0":{"cosine":"x"}}}']
        lines += [b'{"stage":"stored fidelity","teacher":"t","rows":1,"levels":[1]}']
        self.put(name, b"\n".join(self.draw.sample(lines, self.draw.randrange(1, 4))) + b"\n")
        return Mutation("log", name, is_damage=False)

    def next(self) -> Mutation:
        """Another mutation."""
        bytewise: list[Callable[[], Mutation]] = [self.flip, self.flip, self.garbage, self.resized, self.missing]
        bytewise += [self.in_place_of_another, self.sparse, self.no_file, self.link, self.linked_folder, self.forged]
        strangers: list[Callable[[], Mutation]] = [self.told_otherwise] * 8
        strangers += [self.numbers_agreed, self.table, self.table, self.index, self.coded, self.coded, self.log]
        return self.draw.choice([*bytewise, *strangers])()


def _replaced(document: Any, key: str, value: Any) -> int:
    """Put `value` in place of every member `key`; how many there were."""
    count = 0
    if isinstance(document, dict):
        if key in document:
            document[key], count = value, 1
        return count + sum(_replaced(item, key, value) for item in document.values())
    return sum(_replaced(item, key, value) for item in document) if isinstance(document, list) else 0


def remove(path: Path) -> None:
    """Whatever lies there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
