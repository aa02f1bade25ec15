"""Mending a store's metadata from the store itself.

What is mended must be what was committed: every repair ends in the SHA-256 that the manifest recorded, or is not made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from cache.errors import CorruptFile
from cache.faults import fault_point
from cache.format.layout import closed_json, group_json
from cache.format.manifest import CLOSED, FOLDER, PartManifest, view_and_shard
from cache.format.parts import array_json
from cache.format.seals import is_sealed, seal
from cache.maintenance.verification import Problem, verify_store
from cache.places.addresses import as_place
from cache.places.files import FileDigest, digest_of, readable_json
from cache.places.place import Place

MAX_SEARCHED_BYTES = 1 << 15
"""Larger files are not searched for a flipped bit: each candidate costs a SHA-256 of the whole file."""


def mend_metadata(path: Place | Path | str) -> tuple[list[str], list[Problem]]:
    """Put a store's metadata right where the store itself says how: manifest files, ``zarr.json``, calibration.

    What follows from intact metadata is written again; elsewhere a flipped bit is searched for. Nothing else is
    touched, and nothing is taken for right that does not have the digest that was recorded.

    Returns:
        (files that are as they were committed again, what is still damaged of the metadata).

    Raises:
        StoreNotFound: there is no store at `path`.
        WriteFailed: a mended file cannot be written.
    """
    place = as_place(path)
    mended: list[str] = []
    while True:  # intact metadata shows what else is damaged
        problems = verify_store(place, everything=False)
        found = {problem.file: content for problem in problems if (content := _as_committed(place, problem))}
        if not found:
            return mended, problems
        right = {file: [content] for file, content in found.items()}
        place.write(right, replace=True, before_commit=lambda _: fault_point("repair"))
        mended += found


def _as_committed(place: Place, problem: Problem) -> bytes | None:
    """The bytes that a damaged metadata file should have, where they can be told."""
    try:
        damaged = place.read(problem.file)
    except OSError:
        damaged = b""
    if problem.file.startswith(f"{FOLDER}/") and problem.file != CLOSED:
        return _without_flip(damaged, is_sealed) or _as_the_files_say(place, problem, damaged)
    digest = _recorded(PartManifest(place, problem.part), problem.file)
    for candidate in _derived(PartManifest(place, problem.part), problem.file):
        if digest_of([candidate]) == digest:
            return candidate
    if len(damaged) != digest.num_bytes:
        return None
    return _without_flip(damaged, lambda raw: hashlib.sha256(raw).hexdigest() == digest.sha256)


def _recorded(manifest: PartManifest, file: str) -> FileDigest:
    files = manifest.metadata.files
    return files[file] if file in files else (manifest.calibration() or {})[file]


def _derived(manifest: PartManifest, file: str) -> Iterator[bytes]:
    """What a ``zarr.json`` says where nothing but the manifest decides it."""
    metadata = manifest.metadata
    array = metadata.arrays.get(file.removesuffix("/zarr.json"))
    if array is not None:
        yield array_json(array, metadata.num_views, metadata.num_samples, metadata.rows_per_shard)
        yield array_json(array, 0, metadata.num_samples, metadata.rows_per_shard)
    yield readable_json(closed_json() if file == CLOSED else group_json(metadata.groups.get(file, {})))


def _as_the_files_say(place: Place, problem: Problem, damaged: bytes) -> bytes | None:
    """The manifest file of a whole view, with the digests of the files that lie there; or None.

    For those too large to be searched. It is taken for right where it is one bit away from the damaged one: it carries
    its own digest, and a shard whose file is damaged as well would change that altogether.
    """
    view, shard = view_and_shard(problem.file)
    if view is None or shard is not None:
        return None
    try:
        document = json.loads(damaged.decode(errors="replace"), strict=False)
        metadata = PartManifest(place, problem.part).metadata
        document["shards"] = list(range(metadata.num_shards))
        document["files"] = {}
        for array in metadata.arrays_of(view):
            files = [place.digest(array.file(view, shard)) for shard in document["shards"]]
            columns = {"bytes": [file.num_bytes for file in files], "sha256": [file.sha256 for file in files]}
            document["files"][array.path] = columns
        del document["digest"]
    except (ValueError, LookupError, TypeError, OSError, CorruptFile):  # the flip is where this cannot tell
        return None
    rebuilt = seal(document)
    bits = sum((one ^ other).bit_count() for one, other in zip(rebuilt, damaged, strict=False))
    return rebuilt if len(rebuilt) == len(damaged) and bits == 1 else None


def _without_flip(damaged: bytes, is_right: Callable[[bytes], bool]) -> bytes | None:
    """`damaged` with the one bit turned back that makes it right, or None."""
    if len(damaged) > MAX_SEARCHED_BYTES:
        return None
    candidate = bytearray(damaged)
    for place in range(len(candidate)):
        for bit in range(8):
            candidate[place] ^= 1 << bit
            if is_right(bytes(candidate)):
                return bytes(candidate)
            candidate[place] ^= 1 << bit
    return None
