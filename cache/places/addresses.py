"""Where a store lies, from what a person wrote: a folder's path, or an address such as ``s3://bucket/prefix``."""

from __future__ import annotations

from pathlib import Path

from cache.errors import BadInput
from cache.places.local import LocalPlace
from cache.places.objects import SCHEMES, ObjectPlace
from cache.places.place import Place


def as_place(where: Place | Path | str) -> Place:
    """The place at a path, or at an address such as ``s3://bucket/prefix``.

    Raises:
        BadInput: an address of a kind that is not known, or obstore is not installed.
    """
    if isinstance(where, Place):
        return where
    text = str(where)
    if isinstance(where, str) and "://" in text:
        return ObjectPlace.at(text)
    scheme = text.partition(":")[0]
    if scheme in SCHEMES:
        raise BadInput(f"{text}: write an address as {scheme}://bucket/folder")
    return LocalPlace(Path(text))
