"""A part's metadata: creating it, growing its number of views, reading it. Metadata files first, the manifest last."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from cache.errors import AlreadyThere, BadInput, CorruptFile
from cache.faults import fault_point
from cache.format.documents import (
    MOST_METADATA_BYTES,
    MOST_VIEWS,
    GroupDocument,
    TeacherDocument,
    built,
    checked,
    parse_json,
    refused_as,
)
from cache.format.entries import PartMetadata
from cache.format.groups import check_levels
from cache.format.layout import ArraySpec, closed_json, group_json, source_arrays, teacher_arrays
from cache.format.manifest import CLOSED, PartManifest
from cache.format.spec import FORMAT_VERSION, LevelSpec, SourceSpec
from cache.places.files import FileDigest, digest_of, readable_json
from cache.places.place import Place

ATTRIBUTE = "sak"
"""Key of this project's attributes in ``zarr.json``."""


def array_json(array: ArraySpec, num_views: int, num_samples: int, rows_per_shard: int) -> bytes:
    """The bytes of an array's ``zarr.json``."""
    return readable_json(array.zarr_json(num_views, num_samples, rows_per_shard))


def source_groups(spec: SourceSpec) -> dict[str, dict[str, Any]]:
    """The groups of a store's source part: path of each one's ``zarr.json`` -> its document."""
    empty = ("samples", "views", "teachers", *(("labels",) if spec.labels else ()))
    return {
        "zarr.json": group_json({ATTRIBUTE: {"format": FORMAT_VERSION, "spec": spec.to_dict()}}),
        **{f"{name}/zarr.json": group_json({}) for name in empty},
        CLOSED: closed_json(),
    }


def create_part(
    place: Place,
    manifest: PartManifest,
    groups: Mapping[str, Mapping[str, Any]],
    arrays: Iterable[ArraySpec],
    num_samples: int,
    rows_per_shard: int,
) -> None:
    """Write a part's metadata, with no views yet, and commit it, unless another machine does so in this moment.

    Args:
        groups: path below `place` of each group's ``zarr.json`` -> its document.
        arrays: the part's arrays.

    Raises:
        BadInput: they are more than any reader would believe.
    """
    files = {path: readable_json(document) for path, document in groups.items()}
    by_path = {array.path: array for array in arrays}
    if why := PartMetadata(0, num_samples, rows_per_shard, by_path, {}).beyond_belief():
        raise BadInput(f"{manifest.part}: {why}")
    for path, array in by_path.items():
        files[f"{path}/zarr.json"] = array_json(array, 0, num_samples, rows_per_shard)
    absent = {f"{path}/zarr.json" for path in manifest.left_out}
    digests = {path: digest_of([files[path]]) for path in absent}
    try:
        digests |= place.write({path: [data] for path, data in files.items() if path not in absent})
        attributes = {path: document["attributes"] for path, document in groups.items() if document["attributes"]}
        manifest.commit_metadata(PartMetadata(0, num_samples, rows_per_shard, by_path, digests, attributes))
    except AlreadyThere:
        if not manifest.exists:
            raise
        # it was created, and has grown, since the caller looked


def grow_part(place: Place, manifest: PartManifest, num_views: int) -> None:
    """Make room for `num_views` views; does nothing where there is room already. No shard is touched.

    Several machines may grow a part at once, where they hold no lock, each to its own number of views: nothing is ever
    replaced by what knows of fewer, so the largest stays.

    Raises:
        CorruptFile: an array's ``zarr.json`` is not there.
        StoreFull, WriteFailed: metadata cannot be written; the part is as it was.
    """
    old = manifest.metadata
    if num_views <= old.num_views:
        return
    grown = {
        f"{path}/zarr.json": (array, array_json(array, num_views, old.num_samples, old.rows_per_shard))
        for path, array in old.arrays.items()
        if array.has_views
    }

    def larger(array: ArraySpec, data: bytes, now: bytes) -> bytes | None:
        return data if _promised_views(old, array, now) < num_views else None

    absent = {f"{path}/zarr.json" for path in manifest.left_out}
    try:
        place.update({path: partial(larger, *new) for path, new in grown.items() if path not in absent})
    except FileNotFoundError as error:
        raise CorruptFile(manifest.folder, f"a file of the part is missing ({error})") from error
    fault_point("grow")
    digests = {path: digest_of([data]) for path, (_, data) in grown.items()}
    manifest.grow_metadata(replace(old, num_views=num_views, files={**old.files, **digests}))


def is_interrupted_growth(metadata: PartMetadata, path: str, found: FileDigest) -> bool:
    """Whether a ``zarr.json`` that differs from its digest is what growing to more views would write.

    A run that is killed between `grow_part`'s two steps leaves this; the next `grow_part` goes on from it.
    """
    array = metadata.arrays.get(path.removesuffix("/zarr.json"))
    if array is None or not array.has_views:
        return False
    return any(
        digest_of([array_json(array, views, metadata.num_samples, metadata.rows_per_shard)]) == found
        for views in range(metadata.num_views + 1, MOST_VIEWS)
    )


def _promised_views(metadata: PartMetadata, array: ArraySpec, raw: bytes) -> int:
    """The number of views that an array's ``zarr.json`` promises; 0 where it is not as this project writes it."""
    try:
        views = int(json.loads(raw)["shape"][0])
    except (ValueError, LookupError, TypeError):
        return 0
    return views if raw == array_json(array, views, metadata.num_samples, metadata.rows_per_shard) else 0


def committed_attributes(place: Place, manifest: PartManifest, name: str) -> dict[str, Any]:
    """This project's attributes in a group's ``zarr.json``, named by its path below `place`.

    Raises:
        CorruptFile: it cannot be read, or is not the file that was committed.
    """
    path = place.show(name)
    raw = place.read_committed(name, MOST_METADATA_BYTES)
    if digest_of([raw]) != manifest.metadata.files.get(name):
        raise CorruptFile(path, f"it is not the file that was committed{who_wrote(raw)}")
    return checked(GroupDocument, parse_json(raw, path), path).attributes.sak


def committed_spec(place: Place, manifest: PartManifest) -> SourceSpec:
    """What the source part at `place` was made with.

    Raises:
        CorruptFile: it cannot be told, or the part's arrays are not those of it.
    """
    path = place.show("zarr.json")
    plain = committed_attributes(place, manifest, "zarr.json")
    with refused_as(path):
        spec = SourceSpec.from_dict(plain.get("spec"), path)
        _check_arrays(manifest, spec, source_arrays(spec))
    return spec


def committed_teacher(
    place: Place, manifest: PartManifest, spec: SourceSpec, name: str
) -> tuple[dict[str, Any], tuple[LevelSpec, ...]]:
    """What a teacher's features in the store of `spec` were made by, and its levels.

    Raises:
        CorruptFile: it cannot be told, or the part's arrays are not those of these levels.
    """
    group = f"teachers/{name}/zarr.json"
    path = place.show(group)
    read = checked(TeacherDocument, committed_attributes(place, manifest, group), path)
    with refused_as(path):
        levels = tuple(built(LevelSpec, level, path, "a level") for level in read.levels)
        check_levels(levels)
        _check_arrays(manifest, spec, teacher_arrays(name, levels))
    return read.provenance, levels


def _check_arrays(manifest: PartManifest, spec: SourceSpec, arrays: Iterable[ArraySpec]) -> None:
    """That a part has these arrays, of as many samples as the source has."""
    metadata, path = manifest.metadata, manifest.place.show(f"{manifest.folder}/metadata.json")
    mine, asked = (metadata.num_samples, metadata.rows_per_shard), (spec.num_samples, spec.rows_per_shard)
    if mine != asked:
        raise CorruptFile(path, f"it has {mine[0]} samples, {mine[1]} a shard; {asked[0]}, {asked[1]} were promised")
    for array in arrays:
        found = metadata.arrays.get(array.path)
        if found is None or found.decides != array.decides:
            have = "is not there" if found is None else f"is {found.decides}"
            raise CorruptFile(path, f"{array.path} {have}; promised is {array.decides}")


def who_wrote(raw: bytes) -> str:
    """What there is to say of bytes that are not those of a committed ``zarr.json``; "" if nothing is."""
    return ": zarr.consolidate_metadata has written into it" if b'"consolidated_metadata"' in raw else ""
