"""Where a store lies, from what a person wrote: a folder's path, or an address such as ``s3://bucket/prefix`` or
``https://host/folder``."""

from __future__ import annotations

from pathlib import Path

from cache.errors import BadInput
from cache.places.local import LocalPlace
from cache.places.objects import SCHEMES, ObjectPlace
from cache.places.place import Place
from cache.places.web import SCHEMES as WEB_SCHEMES
from cache.places.web import WebPlace
from sak_common.names import UnknownName, unknown


def as_place(where: Place | Path | str) -> Place:
    """The place at a path, or at an address such as ``s3://bucket/prefix`` or ``https://host/folder``.

    Raises:
        UnknownName: an address of a kind that is not known.
        BadInput: an address that is written wrongly, or obstore is not installed.
    """
    if isinstance(where, Place):
        return where
    text = str(where)
    if isinstance(where, str) and "://" in text:
        scheme = text.partition("://")[0]
        if scheme in WEB_SCHEMES:
            return WebPlace.at(text)
        if scheme in SCHEMES:
            return ObjectPlace.at(text)
        raise UnknownName(unknown("kind of address", scheme, (*SCHEMES, *WEB_SCHEMES)))
    scheme = text.partition(":")[0]
    if scheme in (*SCHEMES, *WEB_SCHEMES):
        raise BadInput(f"{text}: write an address as {scheme}://{'host' if scheme in WEB_SCHEMES else 'bucket'}/folder")
    return LocalPlace(Path(text))
